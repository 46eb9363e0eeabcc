"""Any ASGI application, called inside an entry span of its own.

The patch of a server or of a framework calls `serve` in place of the application, before anything else runs.
"""

from __future__ import annotations

import functools
from time import time_ns
from types import CoroutineType
from typing import Any

from stagetrace.guard import report, switch
from stagetrace.instrumentation.asgi.channels import WHERE, Receive, Send
from stagetrace.instrumentation.asgi.request import AsgiRequest
from stagetrace.instrumentation.base import SCOPE_KEY
from stagetrace.instrumentation.connection.socket_wait import show, waited_ns
from stagetrace.instrumentation.http import attributes as http
from stagetrace.instrumentation.http import metrics as http_metrics
from stagetrace.instrumentation.http.conventions import SUPPRESS_KEYS
from stagetrace.instrumentation.http.pickled_scope import goes_on
from stagetrace.recording.context import get_current
from stagetrace.recording.current_record import recording
from stagetrace.recording.loop_blockers import stepped
from stagetrace.runtime.runtime import runtime
from stagetrace.sources import loops

_patch = switch(WHERE)


async def serve(original: Any, app: Any, scope: Any, receive: Any, send: Any) -> Any:
    """Return what `original(app, scope, receive, send)` does on a request or websocket, inside its own entry span."""
    request = None
    if not _patch.off:
        try:
            waited = waited_ns(getattr(send, "__self__", None))
            now = time_ns()
            request = _begin(scope, send, now - waited)
            loops.record(now)
            if waited and request is not None:
                show(request.record, now - waited, now)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price; so below
            report(WHERE, error)
            request = None
    if request is None:
        return await original(app, scope, receive, send)
    try:
        if scope["type"] == "http":
            work = original(app, scope, Receive(request.record, receive, request), Send(request.record, send, request))
        else:
            request.note_task()
            receive, send = (
                functools.partial(request.receive_message, receive),
                functools.partial(request.send_message, send),
            )
            work = original(app, scope, receive, send)
        return await (stepped(work, request.record) if type(work) is CoroutineType else work)
    except Exception as error:
        request.fail(error)
        raise
    except BaseException:
        request.note_incomplete()
        raise
    finally:
        try:
            request.finish()
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)


def _begin(scope: Any, send: Any, started: int) -> AsgiRequest | None:
    """Return the request that begins with this scope; None if it is a part of one, or not to be recorded.

    Its parent is the request whose scope was pickled, else whoever the headers name. A span in the context at hand is
    not: it may be one around the whole server, or that of an earlier request, whose context asyncio keeps for later
    ones of the connection (cpython#140947).
    """
    text = scope.get(SCOPE_KEY, "")
    if type(text) is not str or (text and goes_on(scope, text)):
        return None
    context = get_current()
    if context and (recording() is not None or any(context.get(key) for key in SUPPRESS_KEYS)):
        return None  # called within the process by a request that is recorded, or kept out by somebody
    urls = http.excluded()
    if urls is not None and urls.url_disabled(_url(scope)):
        return None
    request = AsgiRequest(scope, send, started, runtime.recorder)
    counted = http_metrics.wanted()
    if counted is not None and scope["type"] == "http":
        request.count_in(counted)
    return request


def _url(scope: Any) -> str:
    host = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), None)
    if host is None:
        address, port = scope.get("server") or ("", None)
        host = f"{address}:{port}" if port else address
    return f"{scope.get('scheme', 'http')}://{host}{scope.get('path', '')}"
