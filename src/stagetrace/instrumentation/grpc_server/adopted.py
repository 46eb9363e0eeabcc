"""A gRPC server with OpenTelemetry's own interceptor: its entry span is adopted, and seen by the handler as ours is.

The interceptors here stand last, so that what they wrap runs inside that span.
"""

from __future__ import annotations

import asyncio
import inspect
from time import time_ns
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from opentelemetry import context as otel_context
from opentelemetry import trace

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.grpc_server.request import CANCELLED, FOREVER_S, metadata_value
from stagetrace.instrumentation.grpc_server.threads import KINDS
from stagetrace.recording.context import RequestSpan, attach, get_current, with_span
from stagetrace.recording.current_record import current, entries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from stagetrace.recording.record import RequestRecord


class Adopter(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Stands behind all other interceptors of a server of threads."""

    def intercept_service(self, continuation: Callable[[Any], Any], handler_call_details: Any) -> Any:
        """Return the handler, run in the request's context."""
        handler = continuation(handler_call_details)
        return _adopted(handler, _in_thread) or handler


class AioAdopter(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands behind all other interceptors of an asyncio server."""

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        """Return the handler, run in the request's context."""
        handler = await continuation(handler_call_details)
        return _adopted(handler, _in_task) or handler


@guarded
def _adopted(handler: Any, wrap: Callable[[Any, bool], Any]) -> Any:
    if handler is None:
        return None
    kind = bool(handler.request_streaming), bool(handler.response_streaming)
    name, make = KINDS[kind]
    wrapped = wrap(getattr(handler, name), kind[1])
    return None if wrapped is None else make(wrapped, handler.request_deserializer, handler.response_serializer)


def _in_thread(behaviour: Any, answers_stream: bool) -> Any:
    def answer(request: Any, context: Any) -> Any:
        entered = _enter(context)
        try:
            return behaviour(request, context)
        finally:
            _look_at(entered, context)
            _leave(entered)

    def answers(request: Any, context: Any) -> Iterator[Any]:
        entered = _enter(context)
        try:
            yield from behaviour(request, context)
        finally:
            _look_at(entered, context)
            _leave(entered)

    return answers if answers_stream else answer


def _in_task(behaviour: Any, answers_stream: bool) -> Any:
    async def answer(request: Any, context: Any) -> Any:
        entered = _enter(context)
        try:
            return await behaviour(request, context)
        except asyncio.CancelledError:
            _cancel(entered)
            raise
        finally:
            _leave(entered)

    async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
        entered = _enter(context)
        answers = behaviour(request, context)
        try:
            async for one in answers:
                yield one
        except GeneratorExit:  # given up; in the context of another task
            await answers.aclose()
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError):
                _cancel(entered)
            _leave(entered)
            raise
        _leave(entered)

    if inspect.iscoroutinefunction(behaviour):
        return answer
    return answers if answers_stream and inspect.isasyncgenfunction(behaviour) else None


class AdoptedCaller:
    """What gRPC knows of the caller of an RPC whose entry span is somebody else's."""

    def __init__(self, context: Any, started: int) -> None:
        self._metadata = context.invocation_metadata
        left_s = context.time_remaining()
        self._deadline_ns = None
        if left_s is not None and left_s < FOREVER_S:
            self._deadline_ns = max(int(left_s * 1e9) + time_ns() - started, 0)

    def header(self, name: str) -> str | None:
        """Return the value of metadata, its name in lower case; None if there is none."""
        return metadata_value(self._metadata() or (), name)

    def deadline_ns(self) -> int | None:
        """Return what was left of the caller's deadline on arrival; None where it has set none."""
        return self._deadline_ns


@guarded
def _enter(context: Any) -> Any:
    """Enter the context in which the entry span that is open hands on its stages; return what to leave it by."""
    span = trace.get_current_span()
    record = entries.get(span.get_span_context().span_id)
    if record is None:
        return None
    current.set(record)
    _note_caller(record, context)
    return record, attach(with_span(RequestSpan(span, record), get_current()))


@guarded
def _note_caller(record: RequestRecord, context: Any) -> None:
    record.caller = AdoptedCaller(context, record.started)


@guarded_end
def _look_at(entered: Any, context: Any) -> None:
    """Note whether the caller has gone meanwhile: by cancelling, or since its deadline has passed."""
    if entered is not None and not context.is_active():
        entered[0].disconnect = CANCELLED


@guarded_end
def _cancel(entered: Any) -> None:
    if entered is not None:
        entered[0].disconnect = CANCELLED


@guarded_end
def _leave(entered: Any) -> None:
    if entered is not None:
        otel_context.detach(entered[1])
        current.set(None)
