"""A scope or environ that was pickled: a request reference is in the place of the request.

Where that request still runs in this process, an application called with the scope is a part of it. Anywhere else it
begins a request of its own, whose parent is the stage that was open when the scope was pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.request.context import here
from stagetrace.request.current import SCOPE_KEY, recording
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Mapping


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
    context = here.get_current()
    return recording() is not None or (bool(context) and here.is_suppressed(context))


def below(text: Any, context: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the context of the headers, with the stage as its span that a scope's request reference names."""
    if type(text) is not str or not text:
        return context
    from stagetrace.request.remote_stages import read_reference

    named = read_reference(text)
    return context if named is None else here.with_span(context, named.context)


# A program that has set a global response propagator has imported this module.
PROPAGATORS: Final = "opentelemetry.instrumentation.propagators"
# Why a response is incomplete: the client disconnected, or the server cancelled the request.
CLIENT: Final = "client"
CANCELLED: Final = "cancelled"
