"""Any WSGI application, called inside an entry span of its own.

The patch of a server calls `serve` in place of the application: it sees every application and knows when the request
arrived. Where no server is patched, the patch of a framework does. The first one records the request; the frameworks
within add its route.
"""

from __future__ import annotations

import functools
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import report, switch
from stagetrace.instrumentation.connection.arrival import arriving
from stagetrace.instrumentation.connection.socket_wait import arrived
from stagetrace.instrumentation.http import attributes as http
from stagetrace.instrumentation.http import metrics as http_metrics
from stagetrace.instrumentation.http.pickled_scope import is_part
from stagetrace.instrumentation.wsgi.adopted import AdoptedRequest, adopts
from stagetrace.instrumentation.wsgi.response import WHERE
from stagetrace.recording.context import get_current
from stagetrace.runtime.runtime import runtime
from stagetrace.sources.thread_cpu import sample

if TYPE_CHECKING:
    from collections.abc import Callable


from stagetrace.instrumentation.wsgi.request import WsgiRequest, path_of

# Whose OTEL_PYTHON_<name>_EXCLUDED_URLS holds where it is loaded; OpenTelemetry has an instrumentation for each.
FRAMEWORKS = ("flask", "django", "falcon", "pyramid")
_patch = switch(WHERE)


def serve(app: Any, call: Callable[[Any, Any], Any], environ: Any, start_response: Any) -> Any:
    """Serve one request by `call(environ, start_response)`, which is `app`'s, inside an entry span of its own."""
    try:
        request = None if _patch.off else _begin(app, environ)
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        report(WHERE, error)
        request = None
    if request is None:
        return call(environ, start_response)
    first = request.record.step = sample(time_ns())
    try:
        return request.run(call, environ, start_response)
    finally:
        request.record.divide(first)


def _begin(app: Any, environ: Any) -> WsgiRequest | AdoptedRequest | None:
    """Return the request that begins; None if it is a part of one, or not to be recorded."""
    arrival = arriving.get()
    if arrival is not None:
        arriving.set(None)
    if is_part(environ):
        return None
    if not runtime.ready:
        runtime.prepare_now()
    lists = _excluded()
    if lists and any(urls.url_disabled(_url(environ)) for urls in lists):
        return None
    if adopts(app):
        return AdoptedRequest(environ, get_current())
    started = time_ns()
    arrival = arrived(environ, arrival, started)
    request = WsgiRequest(environ, arrival, started, runtime.recorder)
    counted = http_metrics.wanted()
    if counted is not None:
        request.count_in(counted)
    return request


@functools.cache
def _excluded() -> list[Any]:
    loaded = [name.upper() for name in FRAMEWORKS if name in sys.modules] or ["WSGI"]
    return [urls for urls in map(http.excluded, loaded) if urls is not None]


def _url(environ: Any) -> str:
    host = environ.get("HTTP_HOST") or f"{environ.get('SERVER_NAME', '')}:{environ.get('SERVER_PORT', '')}"
    return f"{environ.get('wsgi.url_scheme', 'http')}://{host}{path_of(environ)}"
