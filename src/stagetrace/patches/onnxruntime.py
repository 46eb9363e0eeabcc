"""onnxruntime: each method by which a session runs a model."""

from __future__ import annotations

import functools
import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

from stagetrace.guard import guarded
from stagetrace.instrumentation.base import after, before, with_argument, wrap_all
from stagetrace.instrumentation.models.base import Library, Shape
from stagetrace.instrumentation.models.marked import Begun, asking, marked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from stagetrace.instrumentation.base import Wrap

SYNCHRONOUS = ("run", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector")
# By which an input is bound; the position of what has its shape, after the binding and the name of the input.
BINDS = {"bind_cpu_input": 0, "bind_ortvalue_input": 0, "bind_input": 3}
GIVEN = ("arr_on_cpu", "ortvalue", "shape")  # the names of these parameters
# `run_async(output_names, input_feed, callback, ...)`: it ends in the callback, on a thread of onnxruntime.
CALLBACK = 2
UNVERSIONED = {0, 2**63 - 1}  # models without a version
RANDOM = re.compile("[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # an id, as converters name graphs
DEVICES = {"CPU": "cpu", "CUDA": "cuda", "Tensorrt": "cuda", "NvTensorRTRTX": "cuda", "Dml": "dml"}
BOUND = "_stagetrace_bound"  # on a binding: the shape of its first input


def _name(session: Any) -> str:
    path = getattr(session, "_model_path", None)
    if isinstance(path, str):
        return PurePath(path).name
    meta = session.get_modelmeta()
    graph = str(meta.graph_name)
    return str(meta.producer_name) or type(session).__name__ if not graph or RANDOM.fullmatch(graph) else graph


def _version(session: Any) -> str | None:
    version = session.get_modelmeta().version
    return None if version in UNVERSIONED else str(version)


def _device(session: Any) -> str | None:
    providers = session.get_providers()
    if not providers:
        return None
    kind = str(providers[0]).removesuffix("ExecutionProvider")
    device = DEVICES.get(kind, kind.lower())
    number = session.get_provider_options().get(providers[0], {}).get("device_id")
    return device if device == "cpu" or number is None else f"{device}:{number}"


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what has the batch: the first input that is fed, as an array or value, or that was bound."""
    if args and not isinstance(args[0], list | tuple | None):  # a binding, which comes first
        return getattr(args[0], BOUND, None)
    if "iobinding" in kwargs:
        return getattr(kwargs["iobinding"], BOUND, None)
    feed = args[1] if len(args) > 1 else kwargs.get("input_feed", kwargs.get("input_dict_ort_values"))
    return _shaped(next(iter(feed.values()), None)) if isinstance(feed, dict) else None


def _shaped(value: Any) -> Any:
    """Return an array or list as it is; the shape of a value of onnxruntime's, of a size or a shape."""
    shape = getattr(value, "shape", None)
    return Shape(tuple(shape())) if callable(shape) else value


ONNXRUNTIME = Library(
    __name__,
    "onnxruntime",
    name=_name,
    version=_version,
    device=_device,
    rows=_rows,
    recognised=", ".join(f"`InferenceSession.{name}`" for name in (*SYNCHRONOUS, "run_async")),
)


def patch_sessions(module: ModuleType) -> None:
    """Wrap the methods where they are defined: on InferenceSession, on its base Session, or on both."""
    binding: Any = module.IOBinding
    runs: dict[str, Wrap] = {**dict.fromkeys(SYNCHRONOUS, _running), "run_async": _wrap_async}
    sessions = [
        (owner, name, wrap) for owner in (module.InferenceSession, module.Session) for name, wrap in runs.items()
    ]
    binds = [(binding, name, after(_noting(at))) for name, at in BINDS.items()]
    binds.append((binding, "clear_binding_inputs", before(_forget)))
    wrap_all(one for one in (*sessions, *binds) if one[1] in vars(one[0]))


def _running(original: Callable[..., Any]) -> Callable[..., Any]:
    return marked(original, _describe)


def _noting(at: int) -> Callable[..., None]:
    def note(_: None, binding: Any, name: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the shape of the input that was bound first; it may be bound anew."""
        first = vars(binding).get(BOUND)
        if first is None or first.name == name:
            given: Any = args[at] if len(args) > at else next(kwargs[one] for one in GIVEN if one in kwargs)
            vars(binding)[BOUND] = _Bound(name, tuple(getattr(_shaped(given), "shape", given)))

    return note


class _Bound(NamedTuple):
    """The shape of an input that was bound."""

    name: Any
    shape: tuple[Any, ...]


def _forget(binding: Any) -> None:
    vars(binding).pop(BOUND, None)


def _wrap_async(original: Any) -> Any:
    @functools.wraps(original)
    def run_async(self: Any, *args: Any, **kwargs: Any) -> Any:
        timed = _timed_callback(self, args, kwargs)
        if timed is None:
            return original(self, *args, **kwargs)
        args, kwargs, give_up = timed
        try:
            return original(self, *args, **kwargs)
        except BaseException:
            give_up()
            raise

    return run_async


@guarded
def _timed_callback(session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, Any] | None:
    request = asking()
    callback = args[CALLBACK] if len(args) > CALLBACK else kwargs.get("callback")
    if request is None or not callable(callback):
        return None
    begun = Begun(request, _describe(session, args, kwargs))

    def done(*results: Any) -> Any:
        begun.end()
        return callback(*results)

    return *with_argument(args, kwargs, CALLBACK, "callback", done), begun.end


def _describe(session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    return ONNXRUNTIME.describe(session, args, kwargs)
