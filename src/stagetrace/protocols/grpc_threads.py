"""gRPC's server of threads: an interceptor meets each RPC as it arrives, before it waits for a thread of the pool.

The handler that it returns shares one object, the RPC, between deserialiser, behaviour and serialiser. When a thread
takes the RPC up, and when it is done, is seen around the function of `grpc._server` that the thread runs.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from threading import get_ident
from time import time, time_ns
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from stagetrace.guard import guarded, guarded_end, report, switch
from stagetrace.protocols.grpc_request import CANCELLED, FOREVER_S, Rpc, Server, arrive, metadata_value, on_their_way
from stagetrace.request.context import here
from stagetrace.request.current import current
from stagetrace.semconv import NETWORK_RECEIVE, NETWORK_SEND, QUEUE
from stagetrace.sources.thread_cpu import DIVIDED_NS, sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from types import ModuleType

    from stagetrace.request.request import Request

if TYPE_CHECKING:
    Continuation = Callable[[Any], Any]


WHERE = "stagetrace.protocols.grpc_threads"
_patch = switch(WHERE)
NOBODY = 0  # as the thread of an RPC that waits for one
NOTED_AS_CANCELLED = "cancelled"  # what `grpc._server` notes of a caller that has gone
# By whether requests and responses are streams.
KINDS: dict[tuple[bool, bool], tuple[str, Any]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


class Interceptor(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before all other interceptors of one server."""

    def __init__(self, pool: Any) -> None:
        self.server = Server(pool)

    def intercept_service(self, continuation: Continuation, handler_call_details: Any) -> Any:
        """Return the handler of an RPC that has just arrived, the RPC itself if it is recorded."""
        rpc = None
        if not _patch.off:
            try:
                rpc = arrive(self.server, handler_call_details, ThreadRpc)
            except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price; so below
                report(WHERE, error)
        handler = continuation(handler_call_details)
        if rpc is None or handler is None:
            return handler
        try:
            wrapped = rpc.wrap(handler)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
            wrapped = None
        if wrapped is None:
            rpc.exclude()
            return handler
        return wrapped

    execute = intercept_service  # to a server that has no other interceptor this is all of its chain of them


class ThreadRpc(Rpc):
    """An RPC that a thread of a pool will serve."""

    request_streaming = False
    _has_begun = False  # the handler
    _has_raised = False

    def wrap(self, handler: Any) -> Any:
        """Return a handler for this RPC alone; None if it is of a kind that is not recorded."""
        requests, answers = bool(handler.request_streaming), bool(handler.response_streaming)
        if requests or answers:
            self.request_streaming = self._takes_stream = requests
            self.response_streaming = answers
        name, make = KINDS[requests, answers]
        behaviour = self._behaviour = getattr(handler, name)
        self._deserializer, self._serializer = handler.request_deserializer, handler.response_serializer
        self.pools = self._server.pools
        self.enter(QUEUE, self._server.wait(), self.started)
        self.thread = NOBODY
        if answers and getattr(behaviour, "experimental_non_blocking", False):
            return None
        if hasattr(behaviour, "experimental_thread_pool"):
            self.pools = (getattr(behaviour.experimental_thread_pool, "_threads", ()),)
            ours = _with_pool(getattr(self, name), behaviour.experimental_thread_pool)
            return make(ours, self.request_deserializer, self.response_serializer)
        return self

    def _converted(self, convert: Any, message: Any) -> Any:
        made = super()._converted(convert, message)
        if made is None:  # to gRPC as if it had raised
            self._is_broken = True
        return made

    @guarded
    def _count_sent(self, message: Any) -> None:
        super()._count_sent(message)
        if self.response_streaming:
            self.enter(NETWORK_SEND)
        else:
            on_their_way.add(self)

    def _answer(self, request: Any, context: Any) -> Any:
        """Do as the handler does whose response is one message."""
        self._has_begun = True
        if self.stage_report is not None:
            self.stage_report.context = context
        if self.request_streaming:
            request = self._received(request) or request
        first = sample()
        try:
            return self._behaviour(request, context)
        except BaseException as error:
            self.failed_by(error, context)
            raise
        finally:
            self.end_section_of(first)

    def _answers(self, request: Any, context: Any) -> Any:
        """Do as the handler does whose response is a stream."""
        answers = self._answer(request, context)
        return self._sent(answers, context) or answers

    unary_unary = stream_unary = _answer
    unary_stream = stream_stream = _answers

    @guarded
    def _received(self, messages: Any) -> Any:
        return Requests(messages, self)

    @guarded
    def _sent(self, answers: Any, context: Any) -> Any:
        return Answers(answers, self, context)

    @guarded_end
    def failed_by(self, error: BaseException, context: Any) -> None:
        """Note an exception of the handler's, or what stands for an abort or for a caller that has gone."""
        self._has_raised = True
        self.response_complete()
        code = context.code()
        if type(error) is Exception and not error.args and code is not None:  # abort() raises this
            self._aborted(code, context.details())
        elif type(error) is not grpc.RpcError:  # raised bare where the caller has gone
            self._raised(error, code)

    def take_up(self, event: Any) -> None:
        """Note that a thread takes the RPC up; it receives the request first."""
        now = time_ns()
        self.pools = ()
        self.leave(QUEUE, now)
        self.thread = get_ident()
        if not self.request_streaming:
            self.enter(NETWORK_RECEIVE, None, now)
        self._look_at(event)

    def finish(self, state: Any) -> None:
        """End: the thread is done, and has handed the response over."""
        code = state.code
        if time_ns() - self.started >= DIVIDED_NS:
            self.divide_rest()
        if self._is_broken:
            self._go_out()
        if code is None:
            if self._is_broken:
                code = "INTERNAL"
            elif self._has_raised:
                code = "UNKNOWN"
            else:  # without a handler, no message came where there must be one
                code = "OK" if self._has_begun else "UNIMPLEMENTED"
        self.conclude(code, cancelled=state.client == NOTED_AS_CANCELLED)

    @guarded_end
    def reject(self, event: Any, status: int) -> None:
        """End an RPC that gRPC itself answers, on arrival."""
        self._go_out()
        self._look_at(event)
        if status == grpc.StatusCode.UNIMPLEMENTED.value[0]:
            self.has_no_method()
        self.conclude(status, cancelled=False)

    def _look_at(self, event: Any) -> None:
        # Not at the end: while gRPC sends, asking for the peer takes 20 us.
        self._peer = event.call.peer().decode()
        left_s = event.call_details.deadline - time()
        if left_s < FOREVER_S:
            self._expires_in(left_s)


class Answers:
    """The responses that go out; between two of them the first is sent."""

    def __init__(self, answers: Any, rpc: ThreadRpc, context: Any) -> None:
        self._answers = answers
        self._rpc = rpc
        self._context = context

    def __iter__(self) -> Answers:
        return self

    def __next__(self) -> Any:
        rpc = self._rpc
        try:
            rpc.leave(NETWORK_SEND)
            rpc.end_chunk()
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        first = sample(time_ns())
        try:
            return next(self._answers)
        except StopIteration:
            rpc.response_complete()
            raise
        except BaseException as error:
            rpc.failed_by(error, self._context)
            raise
        finally:
            rpc.end_section_of(first)


def _with_pool(ours: Any, pool: Any) -> Any:
    @functools.wraps(ours)
    def behaviour(request: Any, context: Any) -> Any:
        return ours(request, context)

    behaviour.experimental_thread_pool = pool  # type: ignore[attr-defined]
    behaviour.__self__ = ours.__self__  # type: ignore[attr-defined]  # by which `_in_pool` knows the RPC
    return behaviour


def patch_pool(module: ModuleType) -> None:
    """Wrap what `grpc._server` runs in a thread for each RPC, and its refusal of one."""
    wrapped = {
        name: _in_pool(getattr(module, name)) for name in ("_unary_response_in_pool", "_stream_response_in_pool")
    }
    wrapped["_reject_rpc"] = _rejecting(module._reject_rpc)
    for name, ours in wrapped.items():  # all there, or none is wrapped
        setattr(module, name, ours)


def _in_pool(original: Any) -> Any:
    @functools.wraps(original)
    def run(event: Any, state: Any, behaviour: Any, *args: Any, **kwargs: Any) -> Any:
        rpc = getattr(behaviour, "__self__", None)
        if not isinstance(rpc, ThreadRpc):
            return original(event, state, behaviour, *args, **kwargs)
        try:
            rpc.take_up(event)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        try:
            return original(event, state, behaviour, *args, **kwargs)
        finally:
            try:
                rpc.finish(state)
            except Exception as error:  # noqa: BLE001
                report(WHERE, error)

    return run


def _rejecting(original: Any) -> Any:
    @functools.wraps(original)
    def reject(event: Any, state: Any, status: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(event, state, status, *args, **kwargs)
        finally:
            _note_rejection(event, state, status)

    return reject


@guarded_end
def _note_rejection(event: Any, state: Any, status: int) -> None:
    rpc = state.context.get(current)
    if isinstance(rpc, ThreadRpc):
        state.context.run(rpc.reject, event, status)


class _Messages:
    """In the place of gRPC's own iterator, whose other attributes it has."""

    def __init__(self, messages: Any, rpc: Rpc) -> None:
        self._messages = messages
        self._rpc = rpc

    def __getattr__(self, name: str) -> Any:
        return getattr(self._messages, name)


class Requests(_Messages):
    """For a handler in a thread."""

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> Any:
        self._rpc.begin_receiving()
        try:
            return next(self._messages)
        finally:
            self._rpc.end_receiving()

    def next(self) -> Any:
        """Return the next message."""
        return self.__next__()


class AioRequests(_Messages):
    """For a handler in a task."""

    def __aiter__(self) -> AioRequests:
        return self

    async def __anext__(self) -> Any:
        self._rpc.begin_receiving()
        try:
            return await self._messages.__anext__()
        finally:
            self._rpc.end_receiving()


# --- A gRPC server with OpenTelemetry's own interceptor: its entry span is adopted, and seen by the handler as ours is.
#
# The interceptors here stand last, so that what they wrap runs inside that span.


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
        _begin_section(entered)
        try:
            return behaviour(request, context)
        finally:
            _look_at(entered, context)
            _leave(entered)

    def answers(request: Any, context: Any) -> Iterator[Any]:
        entered = _enter(context)
        _begin_section(entered)
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
    from stagetrace.bridge.entry import adopted_here

    found = adopted_here()
    if found is None:
        return None
    request, around = found
    current.set(request)
    _note_caller(request, context)
    return request, here.attach(around)


@guarded_end
def _begin_section(entered: Any) -> None:
    """Note the CPU sample from which on this thread works for the request."""
    if entered is not None:
        entered[0].step = sample()


@guarded
def _note_caller(request: Request, context: Any) -> None:
    request.caller = AdoptedCaller(context, request.started)


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
        here.detach(entered[1])
        current.set(None)
