"""A WSGI request whose entry span is that of OpenTelemetry's own instrumentation of WSGI, Flask or Django.

Its stages are marked all the same, on a record that the entry span is bound to as it starts, and
`opentelemetry/server_instrumentations.py` lets the application see that span as one that hands on its stages. An
application that hides its instrumentation from `adopts` gets our entry span, and theirs becomes INTERNAL under it, by
their own rule.
"""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING, Any

from opentelemetry import trace

from stagetrace.guard import guarded_end
from stagetrace.instrumentation.base import SCOPE_KEY
from stagetrace.instrumentation.wsgi.environ import header_in
from stagetrace.instrumentation.wsgi.response import Transfer, incomplete_reason
from stagetrace.recording.context import RequestSpan
from stagetrace.recording.record import RequestRecord
from stagetrace.sla.providers import is_silent

if TYPE_CHECKING:
    from opentelemetry.context import Context

OTEL_PACKAGE = "opentelemetry.instrumentation."
ADOPTED = tuple(OTEL_PACKAGE + name for name in ("wsgi", "flask", "django"))
# Under which names a WSGI middleware keeps what it wraps.
INNER = ("app", "wsgi_app", "application", "wsgi", "wrapped", "_app", "__wrapped__")
MOST_LAYERS = 16


class AdoptedRequest(Transfer):
    """A request that others record: marked are the times at which body and response pass, and who went away."""

    _raised = False

    def __init__(self, environ: Any, context: Context) -> None:
        self.record = RequestRecord()
        self.record.exchange = self
        self._context = context
        self._environ = environ
        self._method = environ.get("REQUEST_METHOD", "")
        environ[SCOPE_KEY] = self
        self.wrap_body(environ)

    def method_and_route(self) -> tuple[str | None, str]:
        """Return method and route as the policy names them, as far as they are known by now."""
        span = self.record.adopted
        return self._method, str((getattr(span, "attributes", None) or {}).get("http.route", ""))

    def header(self, name: str) -> str | None:
        """Return the value of a header of the request, its name in lower case; None if there is no such header."""
        return None if self._environ is None else header_in(self._environ, name)

    def deadline_ns(self) -> int | None:
        """Return None: HTTP has no deadlines of its own, only headers."""
        return None

    def set_route(self, template: str) -> None:
        """Note the route, where they do not: plain WSGI middleware."""
        span = trace.get_current_span()
        if isinstance(span, RequestSpan) and "http.route" not in (getattr(span, "attributes", None) or ()):
            span.set_attribute("http.route", template)

    def note_uncaught(self, error: BaseException) -> None:  # noqa: ARG002
        """Note that it was the application that did not complete the response."""
        self._raised = True

    @guarded_end
    def note_incomplete(self) -> None:
        """Note why the rest is not sent; theirs ends next, as the application closes its response."""
        if not self._raised and not self._has_all():
            self.record.disconnect = incomplete_reason()

    @guarded_end
    def finish(self) -> None:
        """Let go; theirs ends when it ends."""
        if self._environ is not None:
            self._environ.pop(SCOPE_KEY, None)
            self._environ = self._start_response = None

    def let_go(self) -> None:
        """Let go of the record, too: their span has ended as the application closed its response."""
        super().let_go()
        self.record.release()


def adopts(app: Any) -> bool:
    """Return whether an application's entry spans are those of OpenTelemetry's instrumentation, and are sent."""
    if not any(name in sys.modules for name in ADOPTED):
        return False
    layer = app
    for _ in range(MOST_LAYERS):
        layer = getattr(layer, "__self__", layer)  # of a bound method
        kind = type(layer).__module__
        instrumented = kind.startswith(OTEL_PACKAGE) or getattr(layer, "_is_instrumented_by_opentelemetry", False)
        if instrumented and not is_silent(_tracer(layer)):
            return True
        if kind.startswith("django.core.handlers"):
            from django.conf import settings
            from django.utils.module_loading import import_string

            theirs = [import_string(name) for name in settings.MIDDLEWARE if name.startswith(OTEL_PACKAGE)]
            return any(not is_silent(getattr(one, "_tracer", None)) for one in theirs)
        inside = getattr(layer, "__dict__", {})
        layer = next((inside[name] for name in INNER if callable(inside.get(name))), None)
        if layer is None:
            return False
    return False


def _tracer(layer: Any) -> Any:
    """Return the tracer of what OpenTelemetry has instrumented; None where that cannot be told."""
    before_request = getattr(layer, "_before_request", None)  # Flask's, which has it in its closure
    if before_request is not None:
        return inspect.getclosurevars(before_request).nonlocals.get("tracer")
    return getattr(layer, "tracer", None)
