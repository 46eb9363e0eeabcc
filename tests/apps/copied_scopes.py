"""Applications behind a middleware that copies or pickles the scope, as the path's first part says; its second: whose.

`/worker/...` is answered by another process, which is given the scope out of a pickle, as Ray Serve's replicas are.
"""

import asyncio
import copy
import importlib
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import cloudpickle
from breaking import make_broken, mend
from fastapi import FastAPI

if "KIND" in os.environ:
    import asgi_beside  # noqa: F401

WITHOUT_US = """
import pickle, sys
scope = pickle.load(sys.stdin.buffer)
assert "stagetrace" not in sys.modules
sys.stdout.buffer.write(pickle.dumps(scope))
"""

fast = FastAPI()


@fast.get("/items/{item}")
async def item(item: int) -> dict[str, int]:
    return {"item": item}


@fast.get("/broken")
async def broken() -> None:
    raise ValueError("broken")


def through_another_process(scope: Any) -> Any:
    argv = [sys.executable, "-I", "-S", "-c", WITHOUT_US]
    done = subprocess.run(argv, input=pickle.dumps(scope), stdout=subprocess.PIPE, check=True)
    return pickle.loads(done.stdout)  # noqa: S301


KINDS: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda scope: pickle.loads(pickle.dumps(scope)),  # noqa: S301
    "oldest-pickle": lambda scope: pickle.loads(pickle.dumps(scope, protocol=0)),  # noqa: S301
    "cloudpickle": lambda scope: pickle.loads(cloudpickle.dumps(scope)),  # noqa: S301
    "another-process": through_another_process,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "copied-values": lambda scope: {key: copy.copy(value) for key, value in scope.items()},
    "spread": lambda scope: {**scope},
}


def app_of(name: str) -> Any:
    return fast if name == "fast" else importlib.import_module(name).app


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await live(receive, send)
        return
    if scope["path"] == "/health":
        mend()
        for one in _pools:
            await asyncio.wrap_future(one.submit(mend))
        await answer(send, b"ok")
        return
    if scope["path"].startswith("/break/"):
        part = scope["path"].removeprefix("/break/")
        make_broken(part)
        await asyncio.wrap_future(pool().submit(make_broken, part))
        await answer(send, b"broken")
        return
    _, kind, name, rest = scope["path"].split("/", 3)
    scope["path"], scope["raw_path"] = f"/{rest}", f"/{rest}".encode()
    if kind == "worker":
        for message in await asyncio.wrap_future(pool().submit(work, name, pickle.dumps(scope))):
            await send(message)
    else:
        await app_of(name)(KINDS[kind](scope), receive, send)


async def live(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            for one in _pools:
                one.shutdown()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def answer(send: Any, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


_pools: list[ProcessPoolExecutor] = []


def pool() -> ProcessPoolExecutor:
    if not _pools:
        if "UNTRACED_WORKER" in os.environ:
            del os.environ["STAGETRACE"]
        _pools.append(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")))
    return _pools[0]


def work(name: str, pickled: bytes) -> list[Any]:
    """Answer a request in the worker process."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def serve() -> None:
        try:
            await app_of(name)(pickle.loads(pickled), receive, send)  # noqa: S301
        except ValueError:
            if not sent:
                raise

    asyncio.run(serve())
    return sent
