"""gRPC clients, of threads and of asyncio: each RPC of a channel, beneath all interceptors of the service."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import after, patching, with_argument, wrap_all
from stagetrace.instrumentation.clients import kserve
from stagetrace.instrumentation.clients.base import Begun, Call, begin, calling, carries_other
from stagetrace.protocols.base import EXCLUDED_SERVICES
from stagetrace.request.current import recording

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from types import ModuleType

    from stagetrace.instrumentation.base import Wrap

OTEL_PACKAGE = "opentelemetry.instrumentation."
METADATA = 3  # its position among the arguments: the method, request, timeout, metadata
TARGET = "_stagetrace_target"  # on an asyncio channel
_waiting: ContextVar[Call | None] = ContextVar("stagetrace.waiting", default=None)  # the call that blocks here


def patch_aio_channel(module: ModuleType) -> None:
    """Wrap, on their classes, the objects that an asyncio channel returns for its methods."""
    kinds = ("UnaryUnary", "UnaryStream", "StreamUnary", "StreamStream")
    calls = {f"{kind}MultiCallable.__call__": _calling(_end_with_aio) for kind in kinds}
    patching({**calls, "Channel.__init__": after(_note_target)})(module)


def patch_channel(module: ModuleType) -> None:
    """Wrap, on their classes, the objects that a channel returns for its methods."""
    wraps = {"_blocking": after(_note_state), "future": _calling(_end_with)}
    wraps |= dict.fromkeys(("__call__", "with_call"), _calling(_end_at_once))
    one = [getattr(module, f"_{kind}MultiCallable") for kind in ("UnaryUnary", "StreamUnary")]
    kinds = ("UnaryStream", "SingleThreadedUnaryStream", "StreamStream")
    several = [getattr(module, f"_{kind}MultiCallable") for kind in kinds]
    rows = [(multi, name, wrap) for multi in one for name, wrap in wraps.items() if hasattr(multi, name)]
    wrap_all([*rows, *((multi, "__call__", _calling(_end_with)) for multi in several)])


def _note_target(_: None, channel: Any, target: Any, *_args: Any, **_kwargs: Any) -> None:
    channel.__dict__[TARGET] = target


def _calling(end_with: Callable[..., None]) -> Wrap:
    """Return how to wrap a method that makes an RPC; `end_with(call, result)` ends our call."""
    return calling(_begin_blocking if end_with is _end_at_once else _begin, end_with, _fail)


def _begin_blocking(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Begun | None:
    begun = _begin(args, kwargs)
    if begun is None:
        return None
    token = _waiting.set(begun.call)
    return begun._replace(restore=lambda: _waiting.reset(token))


def _note_state(result: Any, *_: Any, **__: Any) -> None:
    """Note what the part of a blocking call has returned: the state of the RPC, which has ended."""
    call = _waiting.get()
    if call is not None:
        _note_trailing(call, lambda: result[0].trailing_metadata)


def _begin(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Begun | None:
    """Return the call, and the arguments with its headers in `metadata`."""
    multi, *given = args
    metadata = args[METADATA] if len(args) > METADATA else kwargs.get("metadata")
    name = multi._method.decode().lstrip("/")
    call = _call(multi, name, metadata, _attributes_of_model(name, given, kwargs) or {})
    if call is None:
        return None
    ours = {key.lower(): value for key, value in call.headers().items()}
    metadata = (*(one for one in metadata or () if one[0] not in ours), *ours.items())
    args, kwargs = with_argument(args, kwargs, METADATA, "metadata", metadata)
    return Begun(call, *(_noting_models(call, args, kwargs) if name == kserve.STREAM else (args, kwargs)))


def _call(multi: Any, name: str, metadata: Any, model: Mapping[str, Any]) -> Call | None:
    request = recording()
    if request is None or name.startswith(EXCLUDED_SERVICES):
        return None
    if carries_other({key: _text(value) for key, value in metadata or ()}, request):
        return None
    if any(type(one).__module__.startswith(OTEL_PACKAGE) for one in getattr(multi, "_interceptors", None) or ()):
        return None
    channel = getattr(multi, "_python_channel", None)
    target = getattr(multi, "_target", b"").decode() if channel is None else channel.__dict__.get(TARGET, "")
    return begin(name, {"rpc.system.name": "grpc", "rpc.method": name, **server_of(target), **model})


@guarded
def _attributes_of_model(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Mapping[str, Any] | None:
    if name != kserve.UNARY:
        return None
    return kserve.attributes_of_message(args[0] if args else kwargs["request"])


def _noting_models(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with an iterator that notes the requests of a stream as they are sent."""
    models = call.read = kserve.StreamedModel()
    requests = args[1] if len(args) > 1 else kwargs.get("request_iterator")
    if requests is None:
        return args, kwargs
    return with_argument(args, kwargs, 1, "request_iterator", kserve.noting(requests, models.note))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


@functools.lru_cache(maxsize=1024)
def server_of(target: str) -> Mapping[str, Any]:
    """Return the attributes of a channel's target: `host:port`, `dns:///host:port`, `unix:path` and the like."""
    if target.startswith("unix"):
        return {"server.address": target.partition(":")[2]}
    host, colon, port = target.rpartition("/")[2].rpartition(":")
    if not colon or not port.isdigit():
        return {"server.address": target} if target else {}
    return {"server.address": host.strip("[]"), "server.port": int(port)}


@functools.lru_cache(maxsize=32)
def status(code: str) -> Mapping[str, Any]:
    """Return the attributes of a status code; for a client each but OK is an error."""
    attributes: dict[str, Any] = {"rpc.response.status_code": code}
    if code != "OK":
        attributes["error.type"] = code
    return attributes


@guarded
def _fail(call: Call, error: BaseException) -> None:
    code = getattr(error, "code", None)
    if callable(code):  # the RpcError of a call
        _note(call, code().name)
    else:
        call.fail(error)


def _end_at_once(call: Call, *_: Any) -> None:
    """End the call: a method that blocks returns when the RPC has ended with OK."""
    _note(call, "OK")


def _end_with(call: Call, rpc: Any, *_: Any) -> None:
    """End the call with the RPC, in the thread in which gRPC runs callbacks."""

    def end() -> None:
        _note(call, rpc.code().name, rpc)

    if not rpc.add_callback(end):
        end()


def _end_with_aio(call: Call, rpc: Any, *_: Any) -> None:
    def end(ended: Any) -> None:
        _note_aio(call, ended)

    rpc.add_done_callback(end)


@guarded
def _note(call: Call, code: str, rpc: Any = None) -> None:
    """Note how an RPC has ended; `rpc` knows its trailing metadata, which a blocking call's state has told."""
    call.note_response(status(code))
    if rpc is not None:
        _note_trailing(call, rpc.trailing_metadata)
    call.end()


@guarded
def _note_trailing(call: Call, tell: Callable[[], Any]) -> None:
    call.note_headers(tell() or (), is_whole=True)


@guarded
def _note_aio(call: Call, rpc: Any) -> None:
    code = _result(rpc.code())
    if code is not None:
        call.note_response(status(code.name))
        _note_trailing(call, lambda: _result(rpc.trailing_metadata()))
    call.end()


def _result(work: Any) -> Any:
    """Return what a coroutine returns that waits for nothing, since its RPC has ended; None if it waits."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    work.close()
    return None
