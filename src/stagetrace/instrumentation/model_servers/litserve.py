"""LitServe's server: a request in the queue of the inference workers carries a request reference, in its id.

The id is LitServe's own, and opaque to all: a worker without stagetrace returns it as it is, and the reference is
removed here.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from uuid import UUID

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.model_servers.litserve_ids import MARK, REASON, split
from stagetrace.recording.current_record import recording

if TYPE_CHECKING:
    from types import ModuleType

WRAPPED = "_stagetrace_wrapped"


def patch_server(module: ModuleType) -> None:
    """Wrap the method that returns the queue of requests, in each process that serves HTTP."""
    server = module.LitServer
    original = server._get_request_queue

    @functools.wraps(original)
    def _get_request_queue(self: Any, *args: Any, **kwargs: Any) -> Any:
        queue = original(self, *args, **kwargs)
        _deliver_soon()
        _wrap(queue, getattr(self, "_transport", None))
        return queue

    server._get_request_queue = _get_request_queue


@guarded
def _deliver_soon() -> None:
    """Deliver without delay: the main process ends at once on SIGTERM, and where it is a container's first, all do."""
    from stagetrace.runtime.runtime import runtime

    runtime.deliver_immediately()


@guarded
def _wrap(queue: Any, transport: Any) -> None:
    """Wrap methods on two objects: they are pickled without the attributes that are set here."""
    if transport is None:
        return
    if WRAPPED not in vars(transport):
        setattr(transport, WRAPPED, True)
        transport.areceive = _receiving(transport.areceive)
    if WRAPPED not in vars(queue):
        setattr(queue, WRAPPED, True)
        queue.put = _putting(queue.put)
        queue.put_nowait = _putting(queue.put_nowait)


def _putting(original: Any) -> Any:
    @functools.wraps(original)
    def put(item: Any, *args: Any, **kwargs: Any) -> Any:
        return original(_with_reference(item) or item, *args, **kwargs)

    return put


@guarded
def _with_reference(item: Any) -> Any:
    record = recording()
    if record is None or type(item) is not tuple:
        return None
    from stagetrace.recording.request_ref import hand_on_reference

    consumer, uid, *rest = item
    named = hand_on_reference(record, REASON) if type(uid) in (str, UUID) else None
    if named is None:
        return None
    return consumer, f"{uid}{MARK}{type(uid).__name__} {named}", *rest


def _receiving(original: Any) -> Any:
    @functools.wraps(original)
    async def areceive(*args: Any, **kwargs: Any) -> Any:
        response = await original(*args, **kwargs)
        return _without_reference(response) or response

    return areceive


@guarded_end
def _without_reference(response: Any) -> Any:
    """Return the response of a worker without stagetrace with LitServe's own id; its waits are unknown."""
    if type(response) is not tuple or type(response[0]) is not str or MARK not in response[0]:
        return None
    uid, named = split(response[0])
    _note_response(named.partition(" ")[0])
    return uid, *response[1:]


@guarded
def _note_response(key: str) -> None:
    from stagetrace.recording.remote_stages import find

    record = find(key)
    if record is not None and record.remote_stages is not None:
        record.remote_stages.response_arrived(key)
