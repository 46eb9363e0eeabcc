"""A FastAPI application, whose model of the body works with any pydantic."""

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel
from work import WORK


class Body(BaseModel):
    """What is posted."""

    text: str
    times: int = 1


app = FastAPI()


@app.post("/echo")
async def echo(body: Body) -> Body:
    """Return what is posted."""
    return body


@app.get("/{name}", response_class=PlainTextResponse)
def work(name: str) -> str:
    """Answer as `WORK` does."""
    return WORK[f"/{name}"]().decode()
