"""A service whose streams are late for one reason at a time: each sends three chunks, and the last one is late."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import computing
import httpx
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse
from starlette.requests import Request
from starlette.responses import StreamingResponse

app = FastAPI()
LATE_S = 0.3
TICK_S = 0.02


@app.get("/health")
async def health() -> str:
    return "ok"


@app.get("/late")
async def late() -> str:
    await asyncio.sleep(LATE_S)
    return "late"


@app.get("/block")
async def block() -> str:
    time.sleep(LATE_S)  # noqa: ASYNC251 -- the fault: block
    return "done"


@app.get("/hog")
async def hog() -> str:
    computing.compute(LATE_S)
    return "done"


async def blocking() -> AsyncIterator[bytes]:
    yield b"1"
    yield b"2"
    time.sleep(LATE_S)  # noqa: ASYNC251 -- the fault: blocks
    yield b"3"


async def computes() -> AsyncIterator[bytes]:
    yield b"1"
    yield b"2"
    computing.compute(LATE_S)
    yield b"3"


async def awaits() -> AsyncIterator[bytes]:
    yield b"1"
    await asyncio.sleep(LATE_S)
    yield b"2"


async def asks(port: int | None) -> AsyncIterator[bytes]:
    yield b"1"
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"http://127.0.0.1:{port}/late")
    yield b"2"


async def ticks() -> AsyncIterator[bytes]:
    for _ in range(50):
        yield b"1"
        await asyncio.sleep(TICK_S)


async def first() -> AsyncIterator[bytes]:
    computing.compute(LATE_S)
    yield b"1"
    yield b"2"


def sleeps() -> Iterator[bytes]:
    yield b"1"
    time.sleep(LATE_S)
    yield b"2"


def computes_in_thread() -> Iterator[bytes]:
    yield b"1"
    computing.compute(LATE_S)
    yield b"2"


async def much() -> AsyncIterator[bytes]:
    for _ in range(200):
        yield bytes(1 << 18)


BODIES = {one.__name__: one for one in (blocking, computes, awaits, ticks, first, sleeps, computes_in_thread, much)}


@app.get("/stream/{name}")
async def stream(name: str, request: Request) -> StreamingResponse:
    return StreamingResponse(asks(request.url.port) if name == "asks" else BODIES[name]())


@app.get("/stream/sse/{name}", response_class=EventSourceResponse)
async def events(name: str) -> AsyncIterator[bytes]:
    async for one in BODIES[name]():
        yield one


@app.get("/stream/sse-in-thread/{name}", response_class=EventSourceResponse)
def events_in_thread(name: str) -> Iterator[bytes]:
    yield from BODIES[name]()
