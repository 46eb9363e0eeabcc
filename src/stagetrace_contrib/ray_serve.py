"""Ray Serve: its proxy, its handles, its replicas and `@serve.batch`.

A call of a handle carries a request reference, as one more entry of the metadata's `__dict__`, which Ray pickles for
each call. The request becomes a text there: a replica without stagetrace ignores it. In one with
it, each HTTP request, and each call of another deployment, is a request of its own. Its parent is the stage that was
open in the proxy, or the calling deployment, at the time of the call; it begins then, with the wait as `queue`.
"""

from __future__ import annotations

import functools
import inspect
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import after, before, patching, then
from stagetrace.instrumentation.batching.served_batches import BATCH_WAIT, leave_request, requests_of, working
from stagetrace.instrumentation.served_call import ServedCall, ending
from stagetrace.instrumentation.servers import flushing, preparing
from stagetrace.protocols.base import request_in
from stagetrace.request.current import SCOPE_KEY, recording
from stagetrace.runtime.runtime import runtime
from stagetrace.semconv import INFERENCE, ML_MODEL_NAME, QUEUE_REASON
from stagetrace.tracing.resource import name_service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType

    from stagetrace.request.worker import Batch


# In the metadata of a call: the request, the boot id of the kernel, the time of the call in ns since the epoch.
REFERENCE = "_stagetrace"


def require(function: Any, *names: str) -> None:
    """Raise TypeError unless a private function of Ray takes just these parameters: other releases stay unpatched."""
    found = tuple(inspect.signature(function).parameters)
    if found != names:
        raise TypeError(f"{function.__qualname__} takes {', '.join(found)}")


@functools.cache
def kernel() -> str:
    """Return the boot id of the kernel: processes with the same id read the same clock. Empty if there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


# --- the proxy


NAME = "ray-serve-proxy"  # the service's name, if the environment gives none


def _note_proxy(*_: Any, **__: Any) -> None:
    """Name the service, and deliver immediately: Ray kills the process at its end."""
    name_service(NAME)
    runtime.deliver_immediately()


def _exclude(_proxy: Any, proxy_request: Any) -> None:
    """Exclude requests for the health or the routes of the proxy."""
    if proxy_request.is_health_request or proxy_request.is_route_request:
        request = request_in(getattr(proxy_request, "scope", {}))  # gRPC has none
        if hasattr(request, "exclude"):
            request.exclude()


def _note_route(found: Any, _proxy: Any, proxy_request: Any) -> None:
    request = request_in(getattr(proxy_request, "scope", {}))
    if found.metadata.route and hasattr(request, "set_route"):
        request.set_route(found.metadata.route)


def _finding(original: Any) -> Any:
    return before(_exclude)(after(_note_route)(original))


patch_proxy = patching({"HTTPProxy.__init__": before(_note_proxy), "GenericProxy._get_response_handler_info": _finding})

# --- handles


@guarded
def _add_reference(_router: Any, request_meta: Any, *_: Any, **__: Any) -> None:
    request = recording()
    if request is not None:
        request_meta.__dict__[REFERENCE] = request, kernel(), time.time_ns()


def _assigning(original: Any) -> Any:
    """Wrap what assigns a call to a replica: it is called in the context of the caller, and awaited in another one."""

    @functools.wraps(original)
    def assign_request(*args: Any, **kwargs: Any) -> Any:
        _add_reference(*args, **kwargs)
        return original(*args, **kwargs)

    return assign_request


patch_router = patching({"AsyncioRouter.assign_request": _assigning})


# --- replicas


REASON = {QUEUE_REASON: "worker"}


def patch_replica(module: ModuleType) -> None:
    """Wrap the coroutines that call the user's code, in the event loop for that code; the replica's start and end."""
    wrapper, replica = module.UserCallableWrapper, getattr(module, "ReplicaBase", None) or module.Replica
    give = vars(wrapper)["_run_user_code"]
    http, method = wrapper._call_http_entrypoint.__wrapped__, wrapper.call_user_method.__wrapped__
    stream = wrapper._call_user_generator.__wrapped__
    begin, end = replica.initialize, replica.perform_graceful_shutdown
    require(http, "self", "user_method_info", "scope", "receive", "send")
    wrapper._call_http_entrypoint = give(_answering(http))
    wrapper.call_user_method = give(_called(method))
    wrapper._call_user_generator = give(_called(stream, to_queue="enqueue"))
    replica.initialize = before(_note_replica)(then(_load)(preparing(begin)))
    replica.perform_graceful_shutdown = flushing(end)  # Ray kills the process next


def _note_replica(replica: Any, *_: Any, **__: Any) -> None:
    """Name the service, and deliver immediately: Ray kills a process that does not end in time."""
    name_service(replica._deployment_id.name)
    runtime.deliver_immediately()


def _load(_replica: Any) -> None:
    _pass_on()  # imports what a request needs


# --- HTTP


class Received:
    """A marked `receive`, in the place of Ray's own: its other attributes are those of Ray's."""

    def __init__(self, marked: Any, original: Any) -> None:
        self._marked = marked
        self._original = original

    def __call__(self) -> Any:
        """Return an awaitable of one message."""
        return self._marked()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _answering(original: Any) -> Any:
    @functools.wraps(original)
    async def _call_http_entrypoint(self: Any, user_method_info: Any, scope: Any, receive: Any, send: Any) -> Any:
        async def call(_: Any, scope: Any, marked: Any, send: Any) -> Any:
            _note_arrival(user_method_info, scope, receive)
            return await original(self, user_method_info, scope, Received(marked, receive), send)

        pass_on = _pass_on()
        if pass_on is None:
            return await original(self, user_method_info, scope, receive, send)
        _name_caller(scope, receive)
        return await pass_on(call, self, scope, receive, send)

    return _call_http_entrypoint


@guarded
def _pass_on() -> Any:
    from stagetrace.protocols.asgi import pass_on

    return pass_on


@guarded
def _name_caller(scope: Any, receive: Any) -> None:
    """Let a pickled scope name the stage that was open at the time of the call, which was later."""
    text, _ = _read(getattr(receive, "_request_metadata", None))
    if text and type(scope.get(SCOPE_KEY)) is str:
        scope[SCOPE_KEY] = text


@guarded
def _note_arrival(method: Any, scope: Any, receive: Any) -> None:
    """Note the wait for this replica, and the route as far as Ray knows it: an ASGI application adds its own."""
    request, metadata = request_in(scope), getattr(receive, "_request_metadata", None)
    if not hasattr(request, "set_route"):
        return
    _, since = _read(metadata)
    if since is not None:
        request.wait_since(since, time.time_ns(), REASON)
    mounted = scope.get("root_path") or ""
    if method.is_asgi_app:
        request.enter_mount(mounted)
    else:
        request.set_route(getattr(metadata, "route", "") or mounted or "/")


def _read(metadata: Any) -> tuple[str, int | None]:
    """Return the request reference of a call, and when the call was made; None if another machine's clock says that."""
    text, where, since = getattr(metadata, REFERENCE, ("", "", 0))
    return text, since if where and where == kernel() else None


# --- calls between deployments, and by gRPC


def _called(original: Any, to_queue: str = "") -> Any:
    """Wrap a coroutine that serves one call; of a stream only the one with an argument named `to_queue`."""

    @functools.wraps(original)
    async def serve(self: Any, *args: Any, **kwargs: Any) -> Any:
        call = _begin(self, *args, **kwargs) if not to_queue or kwargs.get(to_queue) is not None else None
        if call is None:
            return await original(self, *args, **kwargs)
        with ending(call):
            return await original(self, *args, **kwargs)

    return serve


@guarded
def _begin(wrapper: Any, request_metadata: Any, *_: Any, **__: Any) -> ServedCall | None:
    from stagetrace.protocols.scope import below
    from stagetrace.tracing.propagation import NO_CONTEXT

    if not runtime.ready or recording() is not None:
        return None
    text, since = _read(request_metadata)
    method = f"{wrapper._deployment_id.name}/{request_metadata.call_method}"
    attributes = {"rpc.system.name": "ray", "rpc.method": method}
    call = ServedCall(method, attributes, below(text, NO_CONTEXT), since=since, reason=REASON[QUEUE_REASON])
    call.enter()
    return call


# --- batches


KEY = "_stagetrace_key"  # on a waiting request of Ray: the key of the recorded request


def patch_batching(module: ModuleType) -> None:
    """Wrap the put into the queue, the task that collects batches, and the coroutine that runs one."""
    queue = module._BatchQueue
    name = "_process_batch_inner" if hasattr(queue, "_process_batch_inner") else "_process_batch"
    put, collect, run = queue.put, queue._process_batches, getattr(queue, name)
    require(run, "self", "func", "batch")
    queue.put = before(_wait)(put)
    queue._process_batches = before(leave_request)(collect)
    setattr(queue, name, _running(run))


def _wait(_queue: Any, request: Any) -> None:
    served = recording()
    if served is not None:
        from stagetrace.request.remote_stages import hand_on

        setattr(request, KEY, hand_on(served, BATCH_WAIT))


def _running(original: Any) -> Any:
    @functools.wraps(original)
    async def run(self: Any, func: Any, batch: Any) -> None:
        await original(self, _inferring(func, batch) or func, batch)

    return run


@guarded
def _inferring(func: Any, waiting: Any) -> Any:
    """Return the user's function, marked for these requests, of the same kind; None if no request is recorded."""
    if not any(hasattr(one, KEY) for one in waiting):
        return None

    @functools.wraps(func)
    async def whole(*args: Any, **kwargs: Any) -> Any:
        batch = _begin_batch(waiting)
        try:
            with working(batch, ends=False):
                return await func(*args, **kwargs)
        finally:
            _end(batch)

    @functools.wraps(func)
    async def parts(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        batch = _begin_batch(waiting)
        results = func(*args, **kwargs)
        try:
            while True:
                part = await _next(results, batch)
                if part is END:
                    return
                yield part
        finally:
            try:
                await results.aclose()
            finally:
                _end(batch)

    return parts if inspect.isasyncgenfunction(func) else whole


END = object()


async def _next(results: Any, batch: Batch | None) -> Any:
    """Return the next part of a stream, made for the batch; END if there is none."""
    with working(batch, ends=False):
        return await anext(results, END)


@guarded
def _begin_batch(waiting: Any) -> Batch | None:
    """Begin a batch of the waiting requests that were not cancelled."""
    from stagetrace.request.worker import Batch

    now = time.time_ns()
    taken = [one for one in waiting if not one.future.cancelled()]
    requests = requests_of(getattr(one, KEY, "") for one in taken)
    if not requests:
        return None
    batch = Batch(requests, len(taken), BATCH_WAIT, start=now)
    batch.described = _described() or {}
    batch.report_begin(INFERENCE, now)
    batch.enter(INFERENCE, None, now)
    return batch


@guarded
def _described() -> dict[str, str]:
    from ray import serve

    return {ML_MODEL_NAME: serve.get_replica_context().deployment}


@guarded_end
def _end(batch: Batch | None) -> None:
    if batch is not None:
        batch.leave(INFERENCE)
        batch.finish()
