"""A scope or environ that was pickled: a request reference is in the place of the request (docs/decisions/022).

Where that request still runs in this process, an application called with the scope is a part of it. Anywhere else it
begins a request of its own, whose parent is the stage that was open when the scope was pickled.
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
    """Return whether the request that a scope refers to still runs in this process; if so, put it into the scope."""
    named = origin(text)
    timeline = find(named.key) if named is not None else None
    if timeline is None or timeline.closed:
        return False
    scope[SCOPE_KEY] = timeline
    return True


def below(text: Any, context: Context) -> Context:
    """Return the context of the headers, with the stage as its span that a scope's request reference names."""
    named = origin(text) if type(text) is str and text else None
    return context if named is None else with_span(NonRecordingSpan(named.context), context)
