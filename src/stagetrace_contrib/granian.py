"""granian, its ASGI interfaces: the application that it loads is wrapped, so that each request has an entry span."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.base import before, patching
from stagetrace.instrumentation.servers import flushing, preparing


def _wrapping(place: int) -> Any:
    """Return how to wrap a callable that gets an application as its argument at a position."""

    def wrap_argument(*args: Any, **kwargs: Any) -> Any:
        if len(args) <= place:
            return None
        from stagetrace.protocols.asgi import around

        return (*args[:place], around(args[place]) or args[place], *args[place + 1 :]), kwargs

    return before(wrap_argument)


# A worker passes its application to two callables: for requests, and for the lifespan.
patch_asgi = patching(
    {
        "_callback_wrapper": _wrapping(0),
        "LifespanProtocol.__init__": _wrapping(1),
        "LifespanProtocol.startup": preparing,
        "LifespanProtocol.shutdown": flushing,
    }
)
