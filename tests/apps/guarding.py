"""A service whose handlers guard their work by a lock or a semaphore."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
from fastapi import FastAPI
from site_packages_locks import read

KINDS = {
    "asyncio-lock": asyncio.Lock,
    "asyncio-semaphore": lambda: asyncio.Semaphore(1),
    "anyio-lock": anyio.Lock,
    "anyio-semaphore": lambda: anyio.Semaphore(1),
}
guards = {}
app = FastAPI()


@app.get("/health")
async def health() -> None: ...


@app.get("/guarded")
async def guarded(kind: str, sign: Path, seconds: float) -> None:
    guard = guards.setdefault(kind, KINDS[kind]())
    sign.touch()  # noqa: ASYNC240
    async with guard:
        await asyncio.sleep(seconds)


@app.get("/entered")
async def entered(kind: str, sign: Path, seconds: float) -> None:
    guard = guards.setdefault(kind, KINDS[kind]())
    sign.touch()  # noqa: ASYNC240
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(guard)
        await asyncio.sleep(seconds)


@app.get("/library")
async def library(kind: str, sign: Path, seconds: float) -> None:
    guard = guards.setdefault(kind, KINDS[kind]())
    sign.touch()  # noqa: ASYNC240
    await read(guard, seconds)


async def part(guard: asyncio.Lock, seconds: float) -> None:
    async with guard:
        await asyncio.sleep(seconds)


@app.get("/gathered")
async def gathered(kind: str, seconds: float) -> None:
    """Do two things, one after the other by a lock of the request's own."""
    guard = KINDS[kind]()
    await asyncio.gather(part(guard, seconds), part(guard, seconds))


@app.get("/grouped")
async def grouped(kind: str, seconds: float) -> None:
    guard = KINDS[kind]()
    async with anyio.create_task_group() as group:
        group.start_soon(part, guard, seconds)
        group.start_soon(part, guard, seconds)
