"""What the patches of aiohttp.web, tornado and sanic share. Programs that serve nothing import it: no OpenTelemetry."""

from __future__ import annotations

import functools
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.request.current import current

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.instrumentation.async_servers.request import ServerRequest
    from stagetrace.instrumentation.base import Wrap


@guarded
def note_error(error: BaseException) -> None:
    """Note an exception of the current request's application, which the server may respond to with an error."""
    note = getattr(current.get(), "note_error", None)
    if note is not None:
        note(error)


@guarded
def note_route(template: str) -> None:
    """Note the route of the current request."""
    set_route = getattr(current.get(), "set_route", None)
    if set_route is not None:
        set_route(template)


@guarded
def request_of(server: Any) -> ServerRequest | None:
    """Return the request that this code serves, if it is one that `server` has; None if not."""
    one: Any = current.get()
    return one if one is not None and getattr(one, "server", None) is server else None


@guarded
def stepped(work: Any, one: ServerRequest | None) -> Any:
    """Return what to await of `work`, whose steps are the request's."""
    if one is None or type(work) is not CoroutineType:
        return work
    from stagetrace.request import loop_blockers

    return loop_blockers.stepped(work, one)


def passing(find: Callable[..., ServerRequest | None], activity: str) -> Wrap:
    """Return how to wrap a coroutine function whose work is an activity of the request that `find` finds for a call."""
    find = guarded(find)

    def wrap(original: Any) -> Any:
        @functools.wraps(original)
        async def work(*args: Any, **kwargs: Any) -> Any:
            one = None if current.get() is None else find(*args, **kwargs)
            if one is None or one.is_ended:
                return await original(*args, **kwargs)
            return await adapter().receiving(one, original(*args, **kwargs), activity)

        return work

    return wrap


@functools.cache
def adapter() -> Any:
    """Return the module of the requests of these servers, for wrappers that have one: it is imported by then."""
    from stagetrace.instrumentation.async_servers import request

    return request
