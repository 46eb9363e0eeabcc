"""A scope or environ that was pickled: a request reference is in the place of the request.

Where that request still runs in this process, an application called with the scope is a part of it. Anywhere else it
begins a request of its own, whose parent is the stage that was open when the scope was pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context as otel_context
from opentelemetry.trace import NonRecordingSpan

from stagetrace.request.context import get_current, with_span
from stagetrace.request.current import SCOPE_KEY, recording
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from opentelemetry.context import Context


def _reference_to(request: Request) -> str | None:
    from stagetrace.request.remote_stages import reference_to

    return reference_to(request)


Request.reference_to = staticmethod(_reference_to)  # until `remote_stages` is imported


def goes_on(scope: Any, text: str) -> bool:
    """Return whether the request that a scope refers to still runs in this process; if so, put it into the scope."""
    from stagetrace.request.remote_stages import find, read_reference

    named = read_reference(text)
    request = find(named.key) if named is not None else None
    if request is None or request.closed:
        return False
    scope[SCOPE_KEY] = request
    return True


def is_part(scope: Any) -> bool:
    """Return whether what a scope or environ asks for is a part of a recorded request, or excluded by other code."""
    text = scope.get(SCOPE_KEY, "")
    if type(text) is not str or (text and goes_on(scope, text)):
        return True
    context = get_current()
    return recording() is not None or (bool(context) and any(context.get(key) for key in SUPPRESS_KEYS))


def below(text: Any, context: Context) -> Context:
    """Return the context of the headers, with the stage as its span that a scope's request reference names."""
    if type(text) is not str or not text:
        return context
    from stagetrace.request.remote_stages import read_reference

    named = read_reference(text)
    return context if named is None else with_span(NonRecordingSpan(named.context), context)


# The keys that opentelemetry-instrumentation's suppress_http_instrumentation() and suppress_instrumentation() set.
SUPPRESS_KEYS: Final = (otel_context._SUPPRESS_HTTP_INSTRUMENTATION_KEY, otel_context._SUPPRESS_INSTRUMENTATION_KEY)
# A program that has set a global response propagator has imported this module.
PROPAGATORS: Final = "opentelemetry.instrumentation.propagators"
# Why a response is incomplete: the client disconnected, or the server cancelled the request.
CLIENT: Final = "client"
CANCELLED: Final = "cancelled"
