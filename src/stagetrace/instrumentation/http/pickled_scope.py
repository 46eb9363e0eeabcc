"""A scope or environ that has been pickled: a text stands in it for the request (docs/decisions/022).

Where that request still goes on in this process, what is called with such a scope is a part of it; anywhere else it is
a request of its own, below the stage in which the other was as it was pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.trace import NonRecordingSpan

from stagetrace.instrumentation.http.scope_key import SCOPE_KEY
from stagetrace.recording.context import with_span
from stagetrace.recording.remote_stages import find
from stagetrace.recording.worker import origin

if TYPE_CHECKING:
    from opentelemetry.context import Context


def goes_on(scope: Any, text: str) -> bool:
    """Return whether the request that a scope's text names goes on in this process; if so, put it back there."""
    named = origin(text)
    timeline = find(named.key) if named is not None else None
    if timeline is None or timeline.closed:
        return False
    scope[SCOPE_KEY] = timeline
    return True


def below(text: Any, context: Context) -> Context:
    """Return a context, which headers carry, with the stage in it that a scope's text names."""
    named = origin(text) if type(text) is str and text else None
    return context if named is None else with_span(NonRecordingSpan(named.context), context)
