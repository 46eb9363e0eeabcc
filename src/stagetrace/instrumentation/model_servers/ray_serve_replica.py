"""Ray Serve's replicas: each HTTP request, and each call of another deployment, is a request of its own there.

Its parent is the stage that was open in the proxy, or the calling deployment, at the time of the call. It begins at
that time, with the wait for this replica as `queue`.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import SCOPE_KEY, request_in
from stagetrace.instrumentation.model_servers.ray_serve_metadata import REFERENCE, kernel, require
from stagetrace.recording.current_record import recording
from stagetrace.runtime.runtime import runtime
from stagetrace.semconv import QUEUE_REASON
from stagetrace.service_name import name_service

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.instrumentation.model_servers.served_call import ServedCall

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
    replica.initialize = _preparing(begin)
    replica.perform_graceful_shutdown = _delivering(end)


def _preparing(original: Any) -> Any:
    """Prepare after the deployment was made: it may have set a provider."""

    @functools.wraps(original)
    async def initialize(self: Any, *args: Any, **kwargs: Any) -> Any:
        _note_process(self)
        result = await original(self, *args, **kwargs)
        if not runtime.ready:
            await runtime.prepare()
        _pass_on()  # imports what a request needs
        return result

    return initialize


@guarded
def _note_process(replica: Any) -> None:
    """Name the service, and deliver immediately: Ray kills a process that does not end in time."""
    name_service(replica._deployment_id.name)
    runtime.deliver_immediately()


def _delivering(original: Any) -> Any:
    """Deliver when the last request has ended: Ray kills the process next."""

    @functools.wraps(original)
    async def perform_graceful_shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, *args, **kwargs)
        finally:
            if runtime.ready:
                await runtime.flush()

    return perform_graceful_shutdown


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
    from stagetrace.instrumentation.asgi.application import pass_on

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
        request.record.wait_since(since, time.time_ns(), REASON)
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
        try:
            return await original(self, *args, **kwargs)
        except Exception as error:
            call.fail(error)
            raise
        except BaseException:
            call.cancel()
            raise
        finally:
            call.end()

    return serve


@guarded
def _begin(wrapper: Any, request_metadata: Any, *_: Any, **__: Any) -> ServedCall | None:
    from stagetrace.instrumentation.http.pickled_scope import below
    from stagetrace.instrumentation.model_servers.served_call import ServedCall
    from stagetrace.recording.context import NO_CONTEXT

    if not runtime.ready or recording() is not None:
        return None
    text, since = _read(request_metadata)
    method = f"{wrapper._deployment_id.name}/{request_metadata.call_method}"
    attributes = {"rpc.system.name": "ray", "rpc.method": method}
    call = ServedCall(method, attributes, below(text, NO_CONTEXT), since=since, reason=REASON[QUEUE_REASON])
    call.enter()
    return call
