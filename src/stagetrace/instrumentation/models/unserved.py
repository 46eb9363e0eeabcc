"""Say once that models are called in a process whose requests nobody records: such a service would get no word at all.

A model that is called outside any recorded request is no fault: it may be warmed up, trained, or part of a batch job.
Below the handler of a server that no hook covers it is, and that is said at once. Where the calls go on for a while
and nothing has served, it is said with what is known. Never where a server that is hooked serves, or may yet.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from stagetrace import log
from stagetrace.guard import guarded
from stagetrace.real_threads import allocate_lock, sleep, start

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

LOOK_EVERY_NS: Final = 1_000_000_000
A_WHILE_NS: Final = 60_000_000_000
SAY_AFTER_S: Final = 0.5
NEVER: Final = float("inf")
# Servers without a hook: by how people call them, a module that is loaded where they serve.
UNCOVERED: Final = {
    "aiohttp.web": "aiohttp.web",
    "tornado": "tornado.httpserver",
    "sanic": "sanic.app",
    "robyn": "robyn",
    "mosec": "mosec.server",
    "cog": "coglet",
}
# And by the module of a frame, what it belongs to: http.server is loaded by many that serve nothing.
FRAMES: Final = {
    "aiohttp.web": "aiohttp.web",
    "tornado.web": "tornado",
    "tornado.httpserver": "tornado",
    "sanic.": "sanic",
    "robyn.": "robyn",
    "mosec.": "mosec",
    "http.server": "http.server",
}
# What makes entry spans of OpenTelemetry's there, which are given their stages.
SPAN: Final = "start a span of kind SERVER around each request, of a tracer provider"
SPANS: Final = {
    "aiohttp.web": "run it by opentelemetry-instrument, with opentelemetry-instrumentation-aiohttp-server installed",
    "tornado": "run it by opentelemetry-instrument, with opentelemetry-instrumentation-tornado installed",
}
# Where one of these has been hooked, the process may be about to serve. grpc and wsgiref are loaded by others, too.
COVERED: Final = {
    *("uvicorn", "hypercorn", "granian", "daphne", "gunicorn", "waitress", "werkzeug", "cheroot", "gevent"),
    *("fastapi", "starlette", "litestar", "quart", "falcon", "blacksheep", "flask", "django", "bottle"),
    *("litserve", "mlserver"),
}

due: float = 0  # when to look again, ns since 1970
_since = 0  # when a model was first called outside requests
_saying = allocate_lock()  # acquired for good by who says it


def settle() -> None:
    """Look no more: a request has been recorded, or all is said."""
    global due  # noqa: PLW0603
    due = NEVER


@guarded
def look(model: Any) -> None:
    """Look, once a second at most, whether there is something to say of a model that is called outside requests."""
    global due, _since  # noqa: PLW0603
    now = time_ns()
    due = now + LOOK_EVERY_NS
    if _is_served():
        settle()
        return
    server = _calling()
    if server is None:
        _since = _since or now
        if now - _since < A_WHILE_NS or _may_be_served():
            return
        server = next((name for name, module in UNCOVERED.items() if module in sys.modules), None)
        if server is None and _has_parent():
            return
    settle()
    if _saying.acquire(blocking=False):
        _say(type(model).__name__, server)


def _is_served() -> bool:
    runtime = sys.modules.get("stagetrace.runtime.runtime")
    return runtime is not None and runtime.runtime.ready


def _calling() -> str | None:
    """Return which server without a hook has called what runs now, if one has."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        for name, server in FRAMES.items():
            if module.startswith(name):
                return server
        frame = frame.f_back
    return None


def _may_be_served() -> bool:
    """Return whether a server or framework has been hooked, or a provider is set, whose entry spans we would adopt."""
    from stagetrace.instrumentation.registry import state

    # Not by `get_tracer_provider`, which may set one.
    if getattr(sys.modules.get("opentelemetry.trace"), "_TRACER_PROVIDER", None) is not None:
        return True
    return any(name.partition(".")[0] in COVERED for name in state()[0])


def _has_parent() -> bool:
    """Return whether `multiprocessing` has made this process: its requests come to another."""
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


def _say(model: str, server: str | None) -> None:
    """Say it, a little later: what is printed during a call, cog takes for part of the answer."""
    say, text = log.warning, f"{model} is called, and no request is recorded: "
    if server is None:
        say = log.info
        text += (
            "none of the servers that stagetrace knows has served here.\n"
            "A service is recorded under those that README.md names; training and batch jobs need nothing."
        )
    else:
        text += (
            f"stagetrace does not see those of {server}, and nothing that it knows has served here.\n"
            "Serve by one of the servers that README.md names, or add stages to entry spans of OpenTelemetry's: "
            f"{SPANS.get(server, SPAN)}."
        )
    with suppress(RuntimeError):  # the interpreter ends
        start(partial(_say_later, say, text), "stagetrace-say")


def _say_later(say: Callable[[str], None], text: str) -> None:
    sleep(SAY_AFTER_S)
    say(text)
