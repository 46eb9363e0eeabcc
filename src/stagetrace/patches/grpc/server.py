"""gRPC servers, of threads and of asyncio: each is made with an interceptor of ours, and delivers before it stops.

Every program that imports grpc comes by here, exporters included, so all else is imported when a server is made.
"""

from __future__ import annotations

import functools
import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report
from stagetrace.instrumentation.base import after, before, patching
from stagetrace.instrumentation.servers import delivering, hurry
from stagetrace.system.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

OURS = "_stagetrace_server"  # on a server of theirs: what we know of it
OTEL_PACKAGE = "opentelemetry.instrumentation.grpc"


def _with_interceptor(ours: Callable[[Any, Any], tuple[Any, ...] | None], original: Any) -> Any:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        given = _bound(signature, ours, self, args, kwargs)
        if given is None:
            original(self, *args, **kwargs)
        else:
            original(*given.args, **given.kwargs)
            _shorten(self)

    return __init__


@guarded
def _shorten(server: Any) -> None:
    """Let a server of threads call our interceptor itself where it has no other: five calls less for each RPC."""
    state = getattr(server, "_state", None)
    interceptors: Any = getattr(getattr(state, "interceptor_pipeline", None), "interceptors", ())
    if state is not None and len(interceptors) == 1 and hasattr(interceptors[0], "execute"):
        state.interceptor_pipeline = interceptors[0]


@guarded
def _bound(signature: Any, ours: Any, server: Any, args: Any, kwargs: Any) -> inspect.BoundArguments | None:
    given: inspect.BoundArguments = signature.bind(server, *args, **kwargs)
    interceptors = given.arguments["interceptors"]
    if not isinstance(interceptors, list | tuple):  # what can be gone through once only stays as it is
        interceptors = () if interceptors is None else tuple(interceptors)
    interceptors = given.arguments["interceptors"] = ours(given.arguments.get("thread_pool"), interceptors)
    recorder = getattr(interceptors[0], "server", None)
    if recorder is not None:
        setattr(server, OURS, recorder)
    return given


def _adopts(interceptors: Any) -> bool:
    """Return whether the entry spans are those of OpenTelemetry's own instrumentation, and are sent."""
    theirs = [one for one in interceptors if type(one).__module__.startswith(OTEL_PACKAGE)]
    if not theirs:
        return False
    from stagetrace.bridge.provider import is_silent

    return any(not is_silent(getattr(one, "_tracer", None)) for one in theirs)


def _thread_interceptors(pool: Any, given: Any) -> tuple[Any, ...]:
    if _adopts(given):
        from stagetrace.protocols.grpc_threads import Adopter

        return (*given, Adopter())
    from stagetrace.protocols.grpc_threads import Interceptor

    return (Interceptor(pool), *given)


def _aio_interceptors(pool: Any, given: Any) -> tuple[Any, ...]:
    if _adopts(given):
        from stagetrace.protocols.grpc_threads import AioAdopter

        return (*given, AioAdopter())
    from stagetrace.protocols.grpc_aio import Interceptor

    return (Interceptor(pool), *given)


def _note_port(port: int, server: Any, address: str, *_: Any, **__: Any) -> None:
    recorder = getattr(server, OURS, None)
    if recorder is not None:
        recorder.listen(address, port)


@guarded
def _prepare(*_: Any, **__: Any) -> None:
    from stagetrace.runtime.runtime import runtime

    runtime.prepare_now()


def _start_aio(original: Any) -> Any:
    @functools.wraps(original)
    async def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        await _in_thread(_prepare)
        return await original(self, *args, **kwargs)

    return start


def _deliver_first(original: Any) -> Any:
    """Deliver when the last RPC has ended, before anybody who waits for the server's end hears of it.

    He may end the process without running exit handlers, as multiprocessing does.
    """

    @functools.wraps(original)
    def stop_serving(state: Any, *args: Any, **kwargs: Any) -> Any:  # gRPC asks after each event
        try:
            if not state.due and not state.rpc_states:
                _deliver()
        except Exception as error:  # noqa: BLE001
            report(f"{__name__}._deliver_first", error)
        return original(state, *args, **kwargs)

    return stop_serving


@guarded
def _deliver() -> None:
    """Deliver what has ended, and those RPCs whose response is out."""
    from stagetrace.protocols.grpc_request import wait_for_those_on_their_way
    from stagetrace.runtime.runtime import runtime

    if runtime.ready:
        wait_for_those_on_their_way()
        runtime.flush_now()


def _then_deliver(original: Any, *, hurrying: bool) -> Any:
    from stagetrace.runtime.sigterm_python import delivering_first

    @functools.wraps(original)
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if hurrying:
            hurry()
            result = await original(self, *args, **kwargs)
        else:
            with delivering_first():
                result = await original(self, *args, **kwargs)
        if not result:  # of a wait: it was not given up
            await _in_thread(_deliver)
        return result

    return method


async def _in_thread(function: Callable[[], Any]) -> None:
    try:
        await in_thread(function)
    except Exception as error:  # noqa: BLE001
        report(f"{__name__}._in_thread", error)


_PORTS = dict.fromkeys(("add_insecure_port", "add_secure_port"), after(_note_port))


def patch_server(module: ModuleType) -> None:
    """Wrap the server's class of `grpc._server`: so it does not matter by what name a server is made."""
    from stagetrace.protocols.grpc_threads import patch_pool

    patch_pool(module)  # which does nothing for RPCs that our interceptor has not seen
    patching(
        {
            "_Server.__init__": partial(_with_interceptor, _thread_interceptors),
            "_Server.start": before(_prepare),
            "_Server.stop": before(hurry),
            "_Server.wait_for_termination": delivering,
            "_stop_serving": _deliver_first,
            **{f"_Server.{name}": wrap for name, wrap in _PORTS.items()},
        }
    )(module)


patch_aio_server = patching(
    {
        "Server.__init__": partial(_with_interceptor, _aio_interceptors),
        "Server.start": _start_aio,
        "Server.stop": partial(_then_deliver, hurrying=True),
        "Server.wait_for_termination": partial(_then_deliver, hurrying=False),
        **{f"Server.{name}": wrap for name, wrap in _PORTS.items()},
    }
)
