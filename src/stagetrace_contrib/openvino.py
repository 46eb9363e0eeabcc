"""OpenVINO: compiled models, infer requests that are waited for, and queues of them that call back on other threads."""

from __future__ import annotations

import functools
from functools import partial
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.base import before, wrap_all
from stagetrace.instrumentation.models.base import Calls, Library, Shape, first_argument
from stagetrace.instrumentation.models.marked import Begun, asking
from stagetrace.system.threads import allocate_lock

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

KNOWN = "_stagetrace_known"  # on a model, request or queue: the model's name, and its device
BEGUN = "_stagetrace_begun"  # on a request or queue: the inferences that it has begun, by key
MAX_BEGUN = 64  # keys of one queue
_lock = allocate_lock()  # guards what BEGUN names: callbacks run on other threads


def _known(runs: Any) -> tuple[str, str | None]:
    known = vars(runs).get(KNOWN)
    if known is None:
        one = runs[0] if hasattr(runs, "wait_all") else runs
        model = one.get_compiled_model() if hasattr(one, "get_compiled_model") else one
        devices = model.get_property("EXECUTION_DEVICES")
        device = str(devices[0]).lower() if len(devices) == 1 else None
        known = vars(runs)[KNOWN] = str(model.get_property("NETWORK_NAME")) or "CompiledModel", device
    return known  # type: ignore[no-any-return]


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    rows = first_argument(args, kwargs)
    if isinstance(rows, dict):
        rows = next(iter(rows.values()), None)
    elif isinstance(rows, list | tuple) and rows and hasattr(rows[0], "shape"):  # several inputs
        rows = rows[0]
    shape = getattr(rows, "shape", None)  # of a tensor it is no tuple
    return rows if shape is None else Shape(tuple(shape))


OPENVINO = Library(
    __name__,
    "openvino",
    name=lambda runs: _known(runs)[0],
    device=lambda runs: _known(runs)[1],
    rows=_rows,
    recognised="`InferRequest.start_async` and `AsyncInferQueue.start_async`, until the callback, `wait` or `wait_all`",
    not_recognised="a job of a queue whose user data a job of another request has, too",
)
_patch_calls = OPENVINO.patch(
    Calls("CompiledModel", ("__call__", "infer_new_request")), Calls("InferRequest", ("infer",))
)


def patch_api(module: ModuleType) -> None:
    """Wrap what runs a model, what starts it, and what ends that which was started."""
    request, queue = module.InferRequest, module.AsyncInferQueue
    keys: dict[Any, Callable[[Any], int]] = {request: _only, queue: id}
    waits = [(request, "wait"), (request, "wait_for"), (queue, "wait_all")]
    starts = [(owner, "start_async", partial(_starting, key_of=key)) for owner, key in keys.items()]
    callbacks = [(owner, "set_callback", before(_calling_back(key))) for owner, key in keys.items()]
    wrap_all([*starts, *callbacks, *((*one, _waiting) for one in waits)])
    _patch_calls(module)


def _only(_data: Any) -> int:
    """Return the key of what an infer request has begun: it runs one inference at a time."""
    return 0


def _starting(original: Callable[..., Any], key_of: Callable[[Any], int]) -> Callable[..., Any]:
    @functools.wraps(original)
    def start_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        key = _begin(self, args, kwargs, key_of)
        try:
            return original(self, *args, **kwargs)
        except BaseException:
            if key is not None:
                _end(vars(self)[BEGUN], key)
            raise

    return start_async


@guarded
def _begin(runs: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key_of: Callable[[Any], int]) -> int | None:
    """Begin an inference; return its key. None if it is none, or if its end would not be known from that of others."""
    request = asking()
    if request is None:
        return None
    key = key_of(args[1] if len(args) > 1 else kwargs.get("userdata"))
    attributes = OPENVINO.describe(runs, args, kwargs)
    with _lock:
        begun: dict[int, list[Begun]] = vars(runs).setdefault(BEGUN, {})
        if key in begun or len(begun) >= MAX_BEGUN:
            for one in [one for one, some in begun.items() if some[0].request.closed]:  # whose end nobody waited for
                del begun[one]
        if len(begun) >= MAX_BEGUN or (key in begun and begun[key][0].request is not request):
            return None
        begun.setdefault(key, []).append(Begun(request, attributes))
    return key


@guarded_end
def _end(begun: dict[int, list[Begun]], key: int | None = None) -> None:
    """End one inference of this key, if there is one; all of them without a key."""
    with _lock:
        if key is None:
            ended = [one for some in begun.values() for one in some]
            begun.clear()
        else:
            some = begun.pop(key, [])
            ended = some[:1]
            if some[1:]:
                begun[key] = some[1:]
    for one in ended:
        one.end()


@guarded_end
def _end_all(runs: Any) -> None:
    _end(vars(runs).get(BEGUN, {}))


def _calling_back(key_of: Callable[[Any], int]) -> Callable[..., Any]:
    """Return what makes a callback end the inference first; what it gets last is the user data of a job."""

    def ending(runs: Any, callback: Any, *args: Any, **kwargs: Any) -> Any:
        if not callable(callback):
            return None
        begun = vars(runs).setdefault(BEGUN, {})  # not `runs`, which would never be freed

        def done(*given: Any) -> Any:
            _end(begun, key_of(given[-1]))
            return callback(*given)

        return (runs, done, *args), kwargs

    return ending


def _waiting(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        ended: Any = True
        try:
            ended = original(self, *args, **kwargs)
            return ended
        finally:
            if ended is not False:
                _end_all(self)

    return wait


__all__ = ["OPENVINO", "patch_api"]
