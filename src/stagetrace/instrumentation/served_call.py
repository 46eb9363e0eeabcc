"""A call that a model server serves out of sight of any protocol's adapter: an entry span of its own.

The server calls a function of the user's, of any kind, once for each.
"""

from __future__ import annotations

import time
from contextlib import aclosing, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import by_kind
from stagetrace.request.context import here
from stagetrace.request.current import current
from stagetrace.request.steps import each_step, generated_async
from stagetrace.request.working import work_here
from stagetrace.semconv import QUEUE_REASON
from stagetrace.sla.call_request import CallRequest

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence

    from stagetrace.request.request import Request
    from stagetrace.tracing.span_context import SpanContext

    Begin = Callable[[], "ServedCall | None"]


CANCELLED = "cancelled"
BATCH = "batch"


class Ends(Protocol):
    """One call, or several that are served together."""

    def fail(self, error: Exception) -> object:
        """Note an exception that the server's code raised."""

    def cancel(self) -> object:
        """Note that it was cancelled."""

    def end(self) -> object:
        """End it."""


class ServedCall:
    """One call: its entry span, and the context of the code that serves it.

    It has waited, for `reason`, since a time in nanoseconds, if that is known: it begins then, with a stage `queue`.
    """

    def __init__(
        self,
        name: str,
        attributes: dict[str, Any],
        parent: Mapping[str, Any],
        *,
        since: int | None = None,
        reason: str = "",
    ) -> None:
        now = time.time_ns()
        self._parent = parent
        self.request = request = CallRequest(name, attributes, parent, here.recorder, start=min(since or now, now))
        if since is not None:
            request.wait_since(since, now, {QUEUE_REASON: reason})
        self._tokens: tuple[Any, Any] | None = None

    def stage_context(self) -> SpanContext:
        """Return the identity of the stage that it is in."""
        return self.request.stage_context() or self.request.identity.context

    def enter(self) -> None:
        """Let the code that runs now serve this call."""
        work_here(self.request)
        self._tokens = here.attach(here.around(self.request, self._parent)), current.set(self.request)

    @guarded_end
    def leave(self) -> None:
        """Restore the context of the code."""
        if self._tokens is not None:
            (attached, entered), self._tokens = self._tokens, None
            current.reset(entered)
            here.detach(attached)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Let the code of the block serve this call."""
        self._enter_guarded()
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Let the code of the block serve it, and hand over one chunk of the response, unless it raises."""
        with self.serving():
            yield
        self.note_chunk()

    @guarded
    def _enter_guarded(self) -> None:
        self.enter()

    @guarded
    def note_chunk(self) -> None:
        """Note that a chunk of the response, of an unknown size, is handed over now."""
        from stagetrace.request.chunk_times import Stream

        request = self.request
        if request.stream is None:
            request.stream = Stream(size_name="")
        request.stream.add(time.time_ns(), 0)

    @guarded_end
    def fail(self, error: Exception) -> None:
        """Note an exception that the server's code raised."""
        self.request.record_error(error)

    @guarded_end
    def mark_failed(self, description: str | None = None) -> None:
        """Note that the call fails."""
        here.set_error(self.request.entry_span, description)

    @guarded_end
    def cancel(self) -> None:
        """Note that the call was cancelled."""
        self.request.disconnect = CANCELLED

    @guarded_end
    def end(self, at: int | None = None) -> None:
        """End the entry span, now or at a time in nanoseconds; restore the context if this code serves the call."""
        try:
            self.request.finish(at)
        finally:
            self.leave()


class ServedTogether:
    """Calls that code serves at once: a batch, if there are several, with one inference."""

    def __init__(self, calls: Sequence[ServedCall]) -> None:
        self.calls = calls
        self._batch: tuple[Any, Any] | None = None
        if len(calls) == 1:
            calls[0].enter()
        else:
            self._enter_batch([call.request for call in calls])

    def _enter_batch(self, requests: Sequence[Request]) -> None:
        from stagetrace.request.remote_stages import RequestRef, hand_on
        from stagetrace.request.worker import Batch, at_work

        references = [RequestRef(hand_on(one, BATCH), one.entry) for one in requests if one.entry is not None]
        batch = Batch(references, len(requests), BATCH)
        inside = at_work(batch)
        inside.__enter__()
        self._batch = batch, inside

    @guarded_end
    def leave(self) -> None:
        """Restore the context, and report what was done to each of a batch; the calls themselves go on."""
        if self._batch is None:
            self.calls[0].leave()
        else:
            (batch, inside), self._batch = self._batch, None
            inside.__exit__(None, None, None)
            batch.finish()


# --- functions of a user


@contextmanager
def ending(call: Ends) -> Iterator[None]:
    """Note how the block ends, and end the call with it."""
    try:
        yield
    except Exception as error:
        call.fail(error)
        raise
    except BaseException:  # cancelled, or closed by whoever iterates
        call.cancel()
        raise
    finally:
        call.end()


def served(function: Callable[..., Any], begin: Begin) -> Callable[..., Any]:
    """Return a function of the same kind whose calls `begin` begins; None from it: the call is not recorded.

    A call of a generator goes on until its caller has had the last item, or closes it; each item is a chunk. Nobody but
    the server iterates, so what could be sent into an asynchronous generator is not passed on.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        recorded = begin()
        if recorded is None:
            return function(*args, **kwargs)
        with ending(recorded), recorded.serving():
            return function(*args, **kwargs)

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        recorded = begin()
        if recorded is None:
            return await function(*args, **kwargs)
        with ending(recorded), recorded.serving():
            return await function(*args, **kwargs)

    def generated(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        recorded = begin()
        if recorded is None:
            return (yield from function(*args, **kwargs))
        with ending(recorded):
            return (yield from each_step(recorded.step, function(*args, **kwargs)))

    async def streamed(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        recorded = begin()
        make = function if recorded is None else generated_async(lambda *_: recorded.step, function)
        async with aclosing(make(*args, **kwargs)) as steps:
            with nullcontext() if recorded is None else ending(recorded):
                async for item in steps:
                    yield item

    return by_kind(function, call, awaited, generated, streamed)  # type: ignore[no-any-return]
