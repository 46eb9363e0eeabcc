"""The request that this code serves. Imports no OpenTelemetry: patches ask here in any process."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

from stagetrace.guard import report

if TYPE_CHECKING:
    from stagetrace.request.request import Request

current: ContextVar[Request | None] = ContextVar("stagetrace.request", default=None)
# Records of open entry spans that are not our own, by span id: filled when the span starts, emptied when it ends.
entries: dict[int, Request] = {}


def recording() -> Request | None:
    """Return the request that this code serves, if its entry span is open. Never raises."""
    request = current.get()
    if request is not None and not request.closed:
        return request if request.bound else None
    return _of_span() if entries else None


def _of_span() -> Request | None:
    """Ask the span in context: all there is under a server without a patch, in an SDK set-up of the service."""
    try:
        trace = sys.modules["opentelemetry.trace"]  # without OpenTelemetry's context there is no entry span
        request = entries.get(trace.get_current_span().get_span_context().span_id)
    except Exception as error:  # noqa: BLE001
        report("stagetrace.request.current", error)
        return None
    return request if request is not None and request.bound and not request.closed else None


# The value is the request, which a mounted application shares with the application around it. It is None
# where nothing is to be recorded, and a text where the scope comes out of a pickle (pickled_scope.py).
SCOPE_KEY: Final = "stagetrace.request"
