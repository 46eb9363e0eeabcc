"""A service whose requests are late in each way in which one may be carried: `# late: NAME` ends the line."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
from fastapi import FastAPI, WebSocket
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import StreamingResponse

import stagetrace

SLEEPS_S = 0.25
app = FastAPI()
behind = FastAPI()
pool = ThreadPoolExecutor(4)


@app.get("/health")
async def health() -> dict[str, str]:
    return {}


@app.get("/thread")
def in_thread() -> None:
    time.sleep(SLEEPS_S)  # late: thread


@app.get("/loop")
async def in_loop() -> None:
    blocks()


def blocks() -> None:
    time.sleep(SLEEPS_S)  # late: loop


@app.get("/awaits")
@behind.get("/awaits")
async def awaits() -> None:
    await deeper()


async def deeper() -> None:
    await anyio.sleep(SLEEPS_S)  # late: awaits


@app.get("/gather")
async def gather() -> None:
    await asyncio.gather(asyncio.sleep(0), in_task())


async def in_task() -> None:
    await asyncio.sleep(SLEEPS_S)  # late: gather


@app.get("/group")
async def in_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 0)
        group.start_soon(of_group)


async def of_group() -> None:
    await anyio.sleep(SLEEPS_S)  # late: group


@app.get("/executor")
async def in_executor() -> None:
    await asyncio.get_running_loop().run_in_executor(None, of_executor)


def of_executor() -> None:
    time.sleep(SLEEPS_S)  # late: executor


@app.get("/pool")
def waits_for_pool() -> None:
    pool.submit(of_pool).result()


def of_pool() -> None:
    time.sleep(SLEEPS_S)  # late: pool


@app.get("/beside")
def leaves_to_pool() -> None:
    pool.submit(of_another)
    time.sleep(SLEEPS_S)  # late: beside


def of_another() -> None:
    time.sleep(2 * SLEEPS_S)


@app.get("/resumed")
async def resumed() -> None:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    carrier = stagetrace.carry()

    def work() -> None:
        with stagetrace.resume(carrier):
            time.sleep(SLEEPS_S)  # late: resumed
        loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=work).start()
    await done


@app.get("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse(chunks())


async def chunks() -> AsyncIterator[bytes]:
    yield b"1"
    await anyio.sleep(SLEEPS_S)  # late: stream
    yield b"2"


@app.get("/lines")
def lines() -> StreamingResponse:
    return StreamingResponse(chunks_of_thread())


def chunks_of_thread() -> Iterator[bytes]:
    yield b"1"
    time.sleep(SLEEPS_S)  # late: lines
    yield b"2"


@app.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await anyio.sleep(SLEEPS_S)  # late: socket
    await websocket.close()


async def pass_on(request: Any, call_next: Any) -> Any:
    return await call_next(request)


behind.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
app.mount("/behind", behind)
