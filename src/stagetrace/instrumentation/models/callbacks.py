"""Model calls that end elsewhere, in a callback on another thread, or as somebody waits for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded_end
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.models.marked import attributes_of_call, inside
from stagetrace.semconv import INFERENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stagetrace.request.record import RequestRecord


class Begun:
    """An inference of a request, from the call that began it."""

    __slots__ = ("end", "record")

    def __init__(self, record: RequestRecord, described: Mapping[str, Any]) -> None:
        self.record = record

        @guarded_end
        def end() -> None:
            record.leave(INFERENCE)

        self.end: Callable[[], None] = end
        """End it, once; never raises."""
        record.enter(INFERENCE, attributes_of_call(described))


def asking() -> RequestRecord | None:
    """Return the request whose inference a call would be that is made now; None outside, and inside another model."""
    return None if inside.get() else current_work()
