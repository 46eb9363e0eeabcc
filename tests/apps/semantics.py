"""A service with every way in which FastAPI can answer, and code that speaks to the current span."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import semantics_span
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Route


class HandledError(Exception):
    pass


class Body(BaseModel):
    number: int


class Early:
    """ASGI middleware that does what its header `x-early` says, before any routing."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        early = dict(scope.get("headers", ())).get(b"x-early")
        if early == b"rename":
            trace.get_current_span().update_name("named by middleware")
        elif early == b"rewrite":
            scope.update(path="/plain", raw_path=b"/plain", method="GET")
        elif early == b"proxy":
            scope.update(client=("203.0.113.9", 0), scheme="https")
        elif early == b"take headers":
            scope.update(headers=[], query_string=b"")
        elif early == b"child":
            with trace.get_tracer("app").start_as_current_span("in middleware"):
                return await self.app(scope, receive, send)
        elif early == b"raise":
            raise RuntimeError("raised in middleware")
        return await self.app(scope, receive, send)


at_the_end: list[Callable[[], Any]] = []


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield
    for function in at_the_end:
        function()


app = FastAPI(lifespan=lifespan)
app.add_middleware(Early)


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.api_route("/plain", methods=["GET"])
async def plain() -> dict[str, bool]:
    return {"ok": True}


@app.get("/sync")
def sync() -> dict[str, bool]:
    return {"ok": True}


@app.head("/head")
@app.get("/head")
async def head() -> dict[str, bool]:
    return {"ok": True}


@app.get("/items/{item_id}")
async def item(item_id: str) -> dict[str, str]:
    return {"id": item_id}


@app.get("/files/{name:path}")
async def files(name: str) -> dict[str, str]:
    return {"name": name}


@app.get("/slash/")
async def slash() -> dict[str, bool]:
    return {"ok": True}


@app.post("/validated")
async def validated(body: Body) -> dict[str, int]:
    return {"number": body.number}


@app.get("/status/{code}")
async def status(code: int) -> None:
    raise HTTPException(code, "as asked")


@app.get("/raise")
async def raises() -> None:
    raise ValueError("the app's own error: ü")


@app.get("/raise-in-stream")
async def raise_in_stream() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"one"
        raise ValueError("in the stream")

    return StreamingResponse(body())


@app.exception_handler(Exception)
async def on_any(_: Request, error: Exception) -> Response:
    trace.get_current_span().set_attribute("seen by the handler of all", type(error).__name__)
    return PlainTextResponse("broken", 500)


@app.exception_handler(HandledError)
async def on_handled(_: Request, error: Exception) -> Response:
    return JSONResponse(semantics_span.note_handled(error), 418)


@app.get("/handled")
async def handled() -> None:
    raise HandledError("by a handler")


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def body() -> AsyncIterator[bytes]:
        for number in range(3):
            await asyncio.sleep(0.001)
            yield f"chunk {number}\n".encode()

    return StreamingResponse(body())


@app.get("/background")
async def background(tasks: BackgroundTasks) -> dict[str, bool]:
    async def work() -> None:
        trace.get_current_span().set_attribute("late", "yes")

    tasks.add_task(work)
    return {"ok": True}


@app.get("/background-raises")
async def background_raises(tasks: BackgroundTasks) -> dict[str, bool]:
    def work() -> None:
        raise ValueError("in the background")

    tasks.add_task(work)
    return {"ok": True}


@app.get("/user")
async def user() -> dict[str, Any]:
    return semantics_span.user()


@app.get("/user-ok")
async def user_ok() -> None:
    trace.get_current_span().set_status(StatusCode.OK)
    raise HTTPException(503, "but the user says that is fine")


@app.get("/user-and-503")
async def user_and_503() -> None:
    trace.get_current_span().set_status(Status(StatusCode.ERROR, "says the user"))
    raise HTTPException(503)


@app.get("/user-exception")
async def user_exception() -> dict[str, bool]:
    return semantics_span.user_exception()


@app.get("/override")
async def override() -> dict[str, bool]:
    return semantics_span.override(**{"url.scheme": "gopher"})


@app.get("/child")
async def child() -> dict[str, bool]:
    return semantics_span.child()


@app.get("/context")
async def context() -> dict[str, Any]:
    return semantics_span.context()


@app.get("/headers")
async def headers(response: Response) -> dict[str, bool]:
    semantics_span.add_headers(response.headers)
    response.set_cookie("session", "secret cookie")
    return {"ok": True}


@app.websocket("/ws/{room}")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    trace.get_current_span().set_attribute("room", websocket.path_params["room"])
    while True:
        text = await websocket.receive_text()
        if text == "bye":
            break
        await websocket.send_text(text)
    await websocket.close()


@app.websocket("/ws-headers")
async def ws_headers(websocket: WebSocket) -> None:
    await websocket.accept(headers=[(b"x-answer", b"shown"), (b"x-answer-token", b"secret")])
    await websocket.close()


@app.websocket("/ws-refused")
async def refused(websocket: WebSocket) -> None:
    await websocket.close()


@app.websocket("/ws-raises")
async def ws_raises(websocket: WebSocket) -> None:
    await websocket.accept()
    raise ValueError("in a websocket")


router = APIRouter(prefix="/things")
inner = APIRouter()


@router.get("/{thing}")
async def thing(thing: int) -> dict[str, int]:
    return {"thing": thing}


@inner.get("/deep/{level}")
async def deep(level: int) -> dict[str, int]:
    return {"level": level}


@inner.websocket("/ws/{room}")
async def inner_echo(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.close()


router.include_router(inner, prefix="/inner")
app.include_router(router, prefix="/api")
app.add_route("/starlette-route/{name}", lambda request: PlainTextResponse(request.path_params["name"]))


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"hello {request.path_params.get('you')}")


sub = FastAPI()


@sub.get("/items/{item_id}")
async def sub_item(item_id: int) -> dict[str, int]:
    return {"item_id": item_id}


@sub.get("/raise")
async def sub_raise() -> None:
    raise ValueError("in a mounted app")


class OwnKindOfRoute(BaseRoute):
    path = "/own-kind/{of}/route"

    def matches(self, scope: Any) -> tuple[Match, dict[str, Any]]:
        return (Match.FULL if scope["path"].startswith("/own-kind/") else Match.NONE), {}

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("own")(scope, receive, send)


class OwnApiRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Any]:
        original = super().get_route_handler()

        async def handler(request: Request) -> Response:
            trace.get_current_span().set_attribute("through", "an own route class")
            return await original(request)

        return handler


own_class = APIRouter(route_class=OwnApiRoute, prefix="/own-class")
own_class.add_api_route("/{name}", lambda name: {"name": name})
app.include_router(own_class)
app.router.routes.append(OwnKindOfRoute())
app.mount("/sub", sub)
app.mount("/star", Starlette(routes=[Route("/hello/{you}", hello), Mount("/in", routes=[Route("/hello", hello)])]))
app.mount("/tenants/{tenant}", Starlette(routes=[Route("/hello", hello)]))
app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
app.router.routes.append(Host("host.example", Starlette(routes=[Route("/by-host/{you}", hello)])))
