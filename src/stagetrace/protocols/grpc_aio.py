"""gRPC's asyncio server: an interceptor meets each RPC in the task that serves it, whose end is the RPC's.

Handlers keep their kind, since gRPC looks at it: coroutine functions (with `context.write()` too), asynchronous
generators, and plain functions, which it runs in a pool of threads.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import current_task
from contextvars import Context
from time import time_ns
from types import CoroutineType
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from stagetrace.guard import guarded, guarded_end, report, switch
from stagetrace.protocols.grpc_request import FOREVER_S, Rpc, Server, arrive, on_their_way
from stagetrace.protocols.grpc_threads import KINDS, AioRequests, Requests
from stagetrace.request.context import here
from stagetrace.request.current import current
from stagetrace.request.loop_blockers import LONG_NS, blocked_since, note_behind, stepped
from stagetrace.semconv import NETWORK_RECEIVE, NETWORK_SEND, QUEUE
from stagetrace.sources import loops
from stagetrace.sources.thread_cpu import sample

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from stagetrace.request.chunk_times import Stream

if TYPE_CHECKING:
    Continuation = Callable[[Any], Awaitable[Any]]

WHERE = "stagetrace.protocols.grpc_aio"
OK = grpc.StatusCode.OK
_patch = switch(WHERE)
COROUTINE, GENERATOR = inspect.CO_COROUTINE, inspect.CO_ASYNC_GENERATOR


class Interceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Stands before all other interceptors of one server."""

    def __init__(self, pool: Any) -> None:
        self.server = Server(pool)

    async def intercept_service(self, continuation: Continuation, handler_call_details: Any) -> Any:
        """Return the handler of an RPC that has just arrived, the RPC itself if it is recorded."""
        rpc = None
        if not _patch.off:
            try:
                rpc = arrive(self.server, handler_call_details, AioRpc)
                task = current_task()
                if rpc is not None and task is not None:
                    task.add_done_callback(rpc.finish, context=Context())
            except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price; so below
                report(WHERE, error)
        if rpc is None:
            return await continuation(handler_call_details)
        try:
            handler = await continuation(handler_call_details)
        except Exception:
            rpc.status_of_grpc = "UNKNOWN"
            raise
        if handler is None:
            rpc.status_of_grpc = "UNIMPLEMENTED"
            return None
        try:
            wrapped = rpc.wrap(handler)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
            wrapped = None
        if wrapped is None:
            rpc.exclude()
            return handler
        return wrapped


def _flags(behaviour: Any) -> int:
    """Return whether a behaviour is a coroutine function or an asynchronous generator, as `inspect` sees it."""
    code = getattr(behaviour, "__code__", None)
    flags = code.co_flags & (COROUTINE | GENERATOR) if code is not None else 0
    if flags:  # most: `inspect` takes six calls to say the same
        return int(flags)
    return COROUTINE * inspect.iscoroutinefunction(behaviour) + GENERATOR * inspect.isasyncgenfunction(behaviour)


class AioRpc(Rpc):
    """An RPC that a task serves."""

    status_of_grpc = ""  # with this status code, no handler asked
    _shape = ""  # the name of the method that takes the place of the handler's behaviour
    _is_served = False
    _servicer: Any = None  # gRPC's context, which knows the status code
    _told: Any = None  # the status code that a handler in the pool sets, where gRPC's context does not tell
    _is_pooled = False
    _sends = False  # whether what follows a serialiser is the sending, as far as we can see its end
    _is_cancelled = False
    _has_aborted = False
    _has_raised = False
    _has_finished = False  # the handler

    @property
    def request_streaming(self) -> bool:
        """Whether the request is a stream. gRPC asks only if it serves the RPC: not if too many are running."""
        self._is_served = True
        return self._takes_stream

    def wrap(self, handler: Any) -> Any:
        """Return a handler for this RPC alone; None if it is of a kind that is not recorded."""
        loops.record(time_ns())
        self._takes_stream = requests = bool(handler.request_streaming)
        self.response_streaming = answers = bool(handler.response_streaming)
        name, _ = KINDS[requests, answers]
        behaviour = self._behaviour = getattr(handler, name)
        self._deserializer, self._serializer = handler.request_deserializer, handler.response_serializer
        flags = _flags(behaviour)
        if flags & COROUTINE:
            self._shape, self._sends = "_answer", not answers
        elif flags and answers:
            self._shape, self._sends = "_answers", True
        elif flags or inspect.isawaitable(behaviour):
            return None  # gRPC's own error
        else:
            self._shape, self._sends = ("_answers_in_pool", False) if answers else ("_answer_in_pool", True)
            self._is_pooled = True
        if not requests:
            self.enter(NETWORK_RECEIVE, None, self.started)
        elif self._is_pooled:
            self.enter(QUEUE, self._server.wait(), self.started)
        return self

    @property
    def unary_unary(self) -> Any:
        """The behaviour, of the same kind of function as the handler's own."""
        return getattr(self, self._shape)

    unary_stream = stream_unary = stream_stream = unary_unary

    def request_deserializer(self, message: bytes) -> Any:
        """Deserialise a message; a plain function then waits for a thread."""
        request = super().request_deserializer(message)
        if self._is_pooled and not self._takes_stream:
            self._queue()
        return request

    @guarded
    def _queue(self) -> None:
        self.enter(QUEUE, self._server.wait())

    @guarded
    def _count_sent(self, message: Any) -> None:
        super()._count_sent(message)
        if self.response_streaming and self._shape == "_answer":
            self.end_chunk()  # the handler writes itself: when gRPC has taken it, is not seen
        if self._sends:
            self.enter(NETWORK_SEND)

    async def _answer(self, request: Any, context: Any) -> Any:
        """Do as a coroutine function does."""
        self._servicer = context
        try:
            self._look_at(context)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        if self._takes_stream:
            request = self._received(request) or request
        elif time_ns() - self.started >= LONG_NS:
            self._note_socket_wait()
        try:
            answer = await self._in_steps(self._behaviour(request, context))
        except BaseException as error:
            self.failed_by(error)
            del self  # gRPC keeps an abort's exception, with this frame, in a cycle
            raise
        self._has_finished = True
        if self.response_streaming:
            self._over()
        else:
            on_their_way.add(self)
            if self.stage_report is not None:
                self.stage_report.renew()  # without OK, nothing is serialised
        return answer

    def _in_steps(self, work: Any) -> Any:
        """Return what awaits `work` and notes what its steps do."""
        is_followed = type(work) is CoroutineType or type(work).__name__ == "async_generator_asend"
        return stepped(work, self) if is_followed else work

    async def _answers(self, request: Any, context: Any) -> AsyncIterator[Any]:
        """Do as an asynchronous generator does."""
        self._begin(context)
        if self._takes_stream:
            request = self._received(request) or request
        answers = self.work = self._behaviour(request, context)
        try:
            steps = aiter(answers)
            while True:
                try:
                    answer = await self._in_steps(anext(steps))
                except StopAsyncIteration:
                    break
                yield answer
                self._sent()
        except GeneratorExit:  # given up; in the context of another task
            await answers.aclose()
            raise
        except BaseException as error:
            self.failed_by(error)
            raise
        self._over()

    def _answer_in_pool(self, request: Any, context: Any) -> Any:
        """Do as a plain function does, in a thread of the pool."""
        context = self._begin_in_pool(context) or context
        if self._takes_stream:
            request = self._received_in_pool(request) or request
        answer = self.in_thread(self._behaviour, request, context)
        self._over()
        return answer

    def _answers_in_pool(self, request: Any, context: Any) -> Any:
        """Do as a plain function whose response is a stream; gRPC calls it in the task, and iterates in a thread."""
        context = self._begin_in_pool(context) or context
        if self._takes_stream:
            request = self._received_in_pool(request) or request
        answers = self.in_thread(self._behaviour, request, context)
        return self._sent_from_pool(answers) or answers

    def in_thread(self, function: Any, *args: Any) -> Any:
        """Call a part of the handler in a thread that knows nothing of the task's context."""
        token = self._enter_thread()
        first = sample()
        try:
            return function(*args)
        except StopIteration:
            raise
        except BaseException as error:
            self.failed_by(error)
            raise
        finally:
            self.divide(first)
            self._leave_thread(token)

    @guarded
    def _enter_thread(self) -> Any:
        self.leave(QUEUE)
        before = current.get()
        current.set(self)
        return before, here.attach(here.around(self, self.parent_context))

    @guarded_end
    def _leave_thread(self, entered: Any) -> None:
        if entered is not None:
            before, token = entered
            here.detach(token)
            current.set(before)

    @guarded_end
    def _begin(self, context: Any) -> None:
        self._servicer = context
        self._look_at(context)

    @guarded_end
    def _begin_in_pool(self, context: Any) -> Any:
        self._look_at(context)
        return PooledContext(context, self)

    @guarded
    def _note_socket_wait(self) -> None:
        """Note for how long other work kept the loop from reading the message: it was there, for all that is known."""
        now = time_ns()
        since = blocked_since(self.started, now)
        if now - since >= LONG_NS:
            self.socket_waits = [*self.socket_waits, (since, now, True)]

    def _look_at(self, context: Any) -> None:
        if self.stage_report is not None:
            self.stage_report.context = context
        self._peer = context.peer()  # not at the end: gRPC has let go of the call then
        left_s = context.time_remaining()
        if left_s is not None and left_s < FOREVER_S:
            self._expires_in(left_s)

    @guarded
    def _received(self, messages: Any) -> Any:
        return AioRequests(messages, self)

    @guarded
    def _received_in_pool(self, messages: Any) -> Any:
        return Requests(messages, self)

    @guarded
    def _sent_from_pool(self, answers: Any) -> Any:
        return PooledAnswers(answers, self)

    def _add_chunk(self, stream: Stream, now: int, size: int) -> None:
        if self._is_pooled:
            stream.add(now, size)
        else:
            self.add_chunk_on_loop(stream, now, size)

    @guarded
    def _sent(self) -> None:
        self.leave(NETWORK_SEND)
        self.end_chunk()

    @guarded_end
    def _over(self) -> None:
        self._has_finished = True
        if self.response_streaming:
            self.enter(NETWORK_SEND)  # of the status
        self.response_complete()

    @guarded_end
    def tells(self, code: Any, *, aborts: bool) -> None:
        """Note the status code that a handler in the pool sets."""
        self._told = code
        self._has_aborted = self._has_aborted or aborts

    @guarded_end
    def failed_by(self, error: BaseException) -> None:
        """Note an exception of the handler's, or what stands for an abort or for a caller that has gone."""
        if isinstance(error, asyncio.CancelledError):
            self._is_cancelled = True
            return
        self._has_raised = True
        self.response_complete()
        servicer = self._servicer
        code = self._told if servicer is None else servicer.code()
        if isinstance(error, grpc.aio.AbortError):
            self._aborted(code, None if servicer is None else servicer.details())
        else:
            self._raised(error, code)

    def finish(self, _task: Any) -> None:
        """End: the task is done, and the response sent."""
        if self.closed:  # dropped
            return
        try:
            ended = self.suspended_at
            if ended and time_ns() - ended >= LONG_NS:  # the response was on its way
                note_behind(ended, time_ns(), self)
            if self.status_of_grpc == "UNIMPLEMENTED":
                self.has_no_method()
            code, cancelled = self._outcome()
            self._servicer = None
            self.conclude(code, cancelled=cancelled)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)

    def _outcome(self) -> tuple[Any, bool]:
        """Return the status code, and whether the caller has gone."""
        servicer = self._servicer
        code = self._told if servicer is None else servicer.code()
        if self.status_of_grpc:
            return self.status_of_grpc, False
        if not self._is_served:
            return "RESOURCE_EXHAUSTED", False
        if self._is_broken or self._has_raised:
            return ("UNKNOWN" if code in (None, OK, 0) else code), False
        if self._has_finished:
            return ("OK" if code is None else code), self._is_cancelled  # the word: an enumeration hashes in Python
        if self._has_aborted or (servicer is not None and servicer.done() and code is not None):
            return code, False  # an abort that the handler kept to itself
        return "CANCELLED", True


class PooledAnswers:
    """The responses of a plain function, each made in a thread of the pool."""

    def __init__(self, answers: Any, rpc: AioRpc) -> None:
        self._answers = answers
        self._rpc = rpc

    def __iter__(self) -> PooledAnswers:
        return self

    def __next__(self) -> Any:
        rpc = self._rpc
        try:
            rpc.end_chunk()
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        try:
            return rpc.in_thread(next, self._answers)
        except StopIteration:
            rpc._over()
            del self._rpc, self._answers  # gRPC keeps this in a cycle
            raise


class PooledContext:
    """gRPC's context of a plain function, which cannot tell the status code that was set on it."""

    def __init__(self, context: Any, rpc: AioRpc) -> None:
        self._context = context
        self._rpc = rpc

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._context)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Set the metadata, as it is there."""
        self._context.set_trailing_metadata(metadata)
        if self._rpc.stage_report is not None:
            self._rpc.stage_report.note_trailing(metadata)

    def set_code(self, code: Any) -> None:
        """Set the status code, as it is there."""
        self._rpc.tells(code, aborts=False)
        self._context.set_code(code)

    def abort(self, code: Any, *args: Any, **kwargs: Any) -> None:
        """Abort, as it is there."""
        self._rpc.tells(code, aborts=True)
        self._context.abort(code, *args, **kwargs)
