"""A bare ASGI application whose garbage collector is off: `/state` returns what requests have left behind."""

import asyncio
import gc
import json
import sys
import time
import weakref
from collections import Counter
from typing import Any

LATE_S = 0.05
gc.disable()
alive: "weakref.WeakSet[Large]" = weakref.WeakSet()


class Large:
    """What a handler has in a variable."""

    def __init__(self) -> None:
        alive.add(self)


async def wait() -> None:
    large = Large()
    await asyncio.sleep(LATE_S)
    del large


def work() -> None:
    large = Large()
    time.sleep(LATE_S)
    del large


async def cancelled() -> None:
    try:
        await asyncio.wait_for(wait(), LATE_S / 2)
    except asyncio.TimeoutError:
        await wait()


async def cancelled_from_outside() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(LATE_S, task.cancel)
    large = Large()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        del large


async def several() -> None:
    await asyncio.gather(wait(), asyncio.to_thread(work), asyncio.get_running_loop().run_in_executor(None, work))


async def fails() -> None:
    large = Large()
    await wait()
    raise RuntimeError(type(large).__name__)


async def blocks() -> None:
    work()


async def state() -> dict[str, Any]:
    """Return the types of our objects that are garbage, and how much is kept that no request needs."""
    from stagetrace.request.in_flight import in_flight

    kept = {"large": len(alive), "in_flight": len(in_flight.requests)}
    working = sys.modules.get("stagetrace.request.working")
    kept["working"] = 0 if working is None else len(working.working)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    found = Counter(type(one).__name__ for one in gc.garbage if type(one).__module__.startswith("stagetrace"))
    found.update(type(one).__name__ for one in gc.garbage if type(one).__name__ in ("coroutine", "Large", "frame"))
    gc.set_debug(0)
    gc.garbage.clear()
    found.pop("SpanContext", None)  # the exporter holds that of what it has sent last: it is garbage or not
    return {"garbage": dict(found), "kept": kept, "is_watched": in_flight.is_watched}


PATHS = {f"/{one.__name__}": one for one in (wait, cancelled, cancelled_from_outside, several, fails, blocks, state)}


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError("HTTP alone")
    found = await PATHS[scope["path"]]() if scope["path"] in PATHS else None
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(found).encode()})
