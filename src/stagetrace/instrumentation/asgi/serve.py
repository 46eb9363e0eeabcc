"""Any ASGI application, called inside an entry span of its own.

The patch of a server or of a framework calls `serve` in place of the application, before anything else runs.
"""

from __future__ import annotations

from time import time_ns
from types import CoroutineType
from typing import Any

from stagetrace.guard import report, switch
from stagetrace.instrumentation.asgi.channels import WHERE, Receive, Send
from stagetrace.instrumentation.asgi.request import AsgiRequest
from stagetrace.instrumentation.asgi.websocket import Messages
from stagetrace.instrumentation.connection.socket_wait import show, waited_ns
from stagetrace.instrumentation.http import attributes as http
from stagetrace.instrumentation.http import metrics as http_metrics
from stagetrace.instrumentation.http.pickled_scope import is_part
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
            request = begin_request(scope, send, now - waited)
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
            work = original(app, scope, Receive(request, receive), Send(request, send))
        else:
            messages = request.messages = Messages(request.record, receive, send, request.accept)
            work = original(app, scope, messages.receive, messages.send)
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


def begin_request(scope: Any, send: Any, started: int, kind: type[AsgiRequest] = AsgiRequest) -> AsgiRequest | None:
    """Return the request that begins with this scope; None if it is a part of one, or not to be recorded.

    Its parent is the request whose scope was pickled, else whoever the headers name. A span in the context at hand is
    not: it may be one around the whole server, or that of an earlier request, whose context asyncio keeps for later
    ones of the connection (cpython#140947).
    """
    if is_part(scope):
        return None
    urls = http.excluded()
    if urls is not None and urls.url_disabled(_url(scope)):
        return None
    request = kind(scope, send, started, runtime.recorder)
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
