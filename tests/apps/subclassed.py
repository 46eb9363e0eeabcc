"""An app class of the author's own, with middleware that runs each request in a task of its own."""

import ml
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint


class Service(FastAPI):
    pass


class AddHeader(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-added"] = "yes"
        return response


app = Service()
app.include_router(ml.app.router)
app.add_middleware(AddHeader)
