"""A bare ASGI application without a lifespan, which does what the query says and tells what it measured."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qsl

import anyio.to_thread
from starlette.responses import StreamingResponse


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        raise RuntimeError("there is no lifespan here")
    if scope["type"] == "websocket":
        await talk(receive, send)
        return
    asked = dict(parse_qsl(scope["query_string"].decode()))
    await PATHS.get(scope["path"], answer)(scope, receive, send, asked)


async def talk(receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        for _ in range(2):
            await send({"type": "websocket.send", "text": message["text"]})


async def start(send: Any, status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})


async def finish(send: Any, said: Any = "", status: int = 200) -> None:
    await start(send, status)
    await send({"type": "http.response.body", "body": json.dumps(said).encode()})


async def read(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Read the body; say how long it was waited for, in seconds. A body cut short gets no answer."""
    waited, size = 0.0, 0
    while True:
        began = time.monotonic()
        message = await receive()
        waited += time.monotonic() - began
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await finish(send, {"waited_s": waited, "bytes": size})


async def answer(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Answer with `status`, in `chunks` pieces of `size` bytes `pause_s` apart; raise `before` or `within`."""
    if "sleep_s" in asked:
        await asyncio.sleep(float(asked["sleep_s"]))
    if asked.get("raise") == "before":
        raise ValueError("before the answer")
    chunks, size = int(asked.get("chunks", 1)), int(asked.get("size", 10))
    await start(send, int(asked.get("status", 200)))
    for number in range(chunks):
        if number:
            await asyncio.sleep(float(asked.get("pause_s", 0)))
        if asked.get("raise") == "within" and number == chunks // 2:
            raise ValueError("within the answer")
        await send({"type": "http.response.body", "body": b"x" * size, "more_body": number < chunks - 1})


async def stream(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Send pieces at the times asked for; in the last one say when the others had been handed over, in seconds."""
    began, times = time.monotonic(), []
    await start(send)
    for pause in asked["pauses"].split(","):
        await asyncio.sleep(float(pause))
        await send({"type": "http.response.body", "body": b"piece\n", "more_body": True})
        times.append(time.monotonic() - began)
    await send({"type": "http.response.body", "body": json.dumps(times).encode()})


async def large(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Send `megabytes`; at the end say how long sending took, in seconds."""
    took = 0.0
    message = {"type": "http.response.body", "body": b"x" * 1_000_000, "more_body": True}
    await start(send)
    for _ in range(int(asked["megabytes"])):
        began = time.monotonic()
        await send(message)
        took += time.monotonic() - began
    await send({"type": "http.response.body", "body": b"\n" + json.dumps(took).encode()})


async def thread(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Hold a thread of the pool for `hold_s`; say how long it was waited for."""
    began = time.monotonic()

    def hold() -> float:
        waited = time.monotonic() - began
        time.sleep(float(asked["hold_s"]))
        return waited

    await finish(send, await anyio.to_thread.run_sync(hold))


async def block(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    began = time.monotonic()
    time.sleep(float(asked["block_s"]))  # noqa: ASYNC251 -- that is the point
    await finish(send, time.monotonic() - began)


async def gone(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Stream, if `chunks` asks for it, until the client goes away, and give up then."""

    async def listen() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    listener = asyncio.ensure_future(listen())
    if "chunks" in asked:
        await start(send)
        while not listener.done():
            await send({"type": "http.response.body", "body": b"x" * 10, "more_body": True})
            await asyncio.wait([listener], timeout=0.005)
    await listener


releases: dict[str, asyncio.Event] = {}


async def released(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Answer when /release is called, without ever listening for the client."""
    await releases.setdefault(asked["id"], asyncio.Event()).wait()
    await asyncio.sleep(0.2)  # the server has seen by then who has gone
    await finish(send)


async def release(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    releases.setdefault(asked["id"], asyncio.Event()).set()
    await finish(send)


async def hang(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    await asyncio.sleep(3600)


async def nothing(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    await start(send)


async def announced(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Announce `size` bytes, send `sent` of them at once, and end when the client has gone, or after a while."""
    size, sent = int(asked["size"]), int(asked["sent"])
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    if sent:
        await send({"type": "http.response.body", "body": b"x" * sent, "more_body": True})
    try:
        async with asyncio.timeout(0.3):
            while (await receive())["type"] != "http.disconnect":
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b""})


async def cancelled(scope: Any, receive: Any, send: Any, asked: dict[str, str]) -> None:
    """Send all of what is announced, and have something left to do before the end, in which Starlette cancels it."""

    async def body() -> AsyncIterator[bytes]:
        yield b"x" * 500
        yield b"x" * 500
        await asyncio.sleep(1)

    await StreamingResponse(body(), headers={"content-length": "1000"})(scope, receive, send)


PATHS = {
    "/announced": announced,
    "/cancelled": cancelled,
    "/read": read,
    "/stream": stream,
    "/large": large,
    "/thread": thread,
    "/block": block,
    "/gone": gone,
    "/released": released,
    "/release": release,
    "/hang": hang,
    "/nothing": nothing,
}
