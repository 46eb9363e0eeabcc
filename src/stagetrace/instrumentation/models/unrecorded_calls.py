"""Calls of models outside recorded requests: log once where no request is recorded, count them where some are.

A call of a model outside a recorded request is no fault: a warm-up, a training, a batch job. Below the handler of a
server without a patch it is one, which is logged at once. Where the calls go on for a minute and nothing has served, it
is logged with what is known. It is never logged where a patched server serves, or may serve yet, unless a process that
records requests has made this one: then the calls may be those of a batcher.
Where one serves, calls are counted from the first request on that was judged (`request/serving_process.py`).
"""

from __future__ import annotations

import sys
from contextlib import suppress
from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from stagetrace import log
from stagetrace.guard import guarded
from stagetrace.request import serving_process
from stagetrace.semconv import ML_FRAMEWORK
from stagetrace.system.import_hooks import finder
from stagetrace.system.threads import allocate_lock, sleep, start

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import FrameType

CHECK_EVERY_NS: Final = 1_000_000_000
LOG_AFTER_NS: Final = 60_000_000_000
LOG_DELAY_S: Final = 0.5
NEVER: Final = float("inf")
# Servers without a patch: by name, a module that is loaded where they serve.
UNPATCHED: Final = {
    "robyn": "robyn",
}
# By the module of a frame, the server that it belongs to. Many programs that serve nothing load http.server.
FRAMES: Final = {
    "robyn.": "robyn",
    "http.server": "http.server",
}
# How to get entry spans of OpenTelemetry there, to which stagetrace adds stages.
SPAN: Final = "start a span of kind SERVER around each request, of a tracer provider"
# Once one of these packages or modules is patched, the process may be about to serve. Programs that serve nothing load
# grpc, wsgiref and aiohttp's client.
SERVING: Final = {
    *("uvicorn", "hypercorn", "granian", "daphne", "gunicorn", "waitress", "werkzeug", "cheroot", "gevent"),
    *("fastapi", "starlette", "litestar", "quart", "falcon", "blacksheep", "flask", "django", "bottle"),
    *("litserve", "mlserver", "mosec", "cog", "celery", "aiohttp.web_protocol", "tornado.httpserver", "sanic"),
}

due: float = 0  # when to check again, in nanoseconds since the epoch
is_counting = False  # whether calls are counted
_since = 0  # when a model was first called outside a request, in nanoseconds since the epoch
_logging = allocate_lock()  # acquired for good by the thread that logs


def begin_counting() -> None:
    """Count from now on instead: a patched server serves, or a model's call in a request was recorded."""
    global due, is_counting
    due, is_counting = 0, True


@guarded
def count(describe: Callable[..., Mapping[str, Any] | None], *arguments: Any) -> bool:
    """Count a call, once a request was judged here; return whether that is so: calls inside are a part of it."""
    process: Any = sys.modules.get("stagetrace.sla.process")
    if process is None or not process.counter().has_counted:
        return False
    serving_process.note(str((describe(*arguments) or {}).get(ML_FRAMEWORK, "a model")))
    return True


@guarded
def check(model: Any) -> None:
    """Log, if it is time, that a model is called outside recorded requests; at most one check a second is made."""
    global due, _since  # noqa: PLW0603
    now = time_ns()
    due = now + CHECK_EVERY_NS
    if _is_served():
        begin_counting()
        return
    server, parent = _calling_server(), None
    if server is None:
        _since = _since or now
        if now - _since < LOG_AFTER_NS:
            return
        parent = _recorded_parent()
        if parent is None:
            if _may_be_served():
                return
            server = next((name for name, module in UNPATCHED.items() if module in sys.modules), None)
            if server is None and _is_a_further_child():
                return
    due = NEVER
    if _logging.acquire(blocking=False):
        _log(type(model).__name__, server, parent)


def _is_served() -> bool:
    runtime = sys.modules.get("stagetrace.runtime.runtime")
    return runtime is not None and runtime.runtime.ready


def _calling_server() -> str | None:
    """Return the server without a patch below whose handler the code runs, if there is one."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        for name, server in FRAMES.items():
            if module.startswith(name):
                return server
        frame = frame.f_back
    return None


def _may_be_served() -> bool:
    """Return whether a server or framework was patched, or a provider was set, whose entry spans would be adopted."""
    # Not by `get_tracer_provider`, which may set one.
    if getattr(sys.modules.get("opentelemetry.trace"), "_TRACER_PROVIDER", None) is not None:
        return True
    return any(name in SERVING or name.partition(".")[0] in SERVING for name in finder.patched)


def _parent() -> int | None:
    """Return the process that has made this one by `multiprocessing`, and receives its requests, if any."""
    process = sys.modules.get("multiprocessing.process")
    parent = None if process is None else process.parent_process()
    return None if parent is None else parent.pid


def _is_a_further_child() -> bool:
    """Return whether `multiprocessing` has made this process, and others before it: one of them is enough to log."""
    process = sys.modules.get("multiprocessing.process")
    return (
        process is not None
        and process.parent_process() is not None
        and process.current_process()._identity[-1:] != (1,)
    )


def _recorded_parent() -> int | None:
    """Return it if it records requests."""
    from stagetrace.process_status import files

    parent, folder = _parent(), files.folder()
    if parent is None or folder is None:
        return None
    return parent if any(one.alive and one.path.stem.startswith(f"{parent}-") for one in files.read(folder)) else None


def _log(model: str, server: str | None, parent: int | None) -> None:
    """Log it a little later: cog takes what is printed during a call for a part of the response."""
    write, text = log.info, f"{model} is called, and no request is recorded: "
    if parent is not None:
        text += (
            f"process {parent}, which has made this one, records some.\n"
            "Where this one serves them, see docs/servers.md#batches-and-worker-processes; batch jobs need nothing."
        )
    elif server is None:
        text += (
            "none of the servers that stagetrace knows has served here.\n"
            "A service is recorded under those that README.md names. If this process serves requests of others, see\n"
            "docs/servers.md#batches-and-worker-processes; training and batch jobs need nothing."
        )
    else:
        write = log.warning
        text += (
            f"stagetrace does not see those of {server}, and nothing that it knows has served here.\n"
            "Serve by one of the servers that README.md names, or add stages to entry spans of OpenTelemetry's: "
            f"{SPAN}."
        )
    with suppress(RuntimeError):  # the interpreter shuts down
        start(partial(_log_later, write, text), "stagetrace-log")


def _log_later(write: Callable[[str], None], text: str) -> None:
    sleep(LOG_DELAY_S)
    write(text)
