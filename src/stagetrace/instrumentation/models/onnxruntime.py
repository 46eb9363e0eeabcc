"""onnxruntime: each method by which a session runs a model."""

from __future__ import annotations

import functools
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.batching.consumer import current_work
from stagetrace.instrumentation.models.base import Library, description
from stagetrace.instrumentation.models.marked import marked
from stagetrace.semconv import INFERENCE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

SYNCHRONOUS = ("run", "run_with_iobinding", "run_with_ort_values", "run_with_ortvaluevector")
ONNXRUNTIME = Library(
    __name__, "onnxruntime", recognised=", ".join(f"`InferenceSession.{name}`" for name in (*SYNCHRONOUS, "run_async"))
)
# `run_async(output_names, input_feed, callback, ...)`: it ends in the callback, on a thread of onnxruntime.
CALLBACK = 2


def patch_sessions(module: ModuleType) -> None:
    """Wrap the methods where they are defined: on InferenceSession, on its base Session, or on both."""
    for owner in (module.InferenceSession, module.Session):
        for name in SYNCHRONOUS:
            if name in vars(owner):
                setattr(owner, name, marked(vars(owner)[name], _describe))
        if "run_async" in vars(owner):
            owner.run_async = _wrap_async(owner.run_async)


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
    record = current_work()
    by_position = len(args) > CALLBACK
    callback = args[CALLBACK] if by_position else kwargs.get("callback")
    if record is None or not callable(callback):
        return None

    @guarded_end
    def leave() -> None:
        record.leave(INFERENCE)

    def done(*results: Any) -> Any:
        leave()
        return callback(*results)

    record.enter(INFERENCE, _describe(session, args, kwargs))
    if by_position:
        args = (*args[:CALLBACK], done, *args[CALLBACK + 1 :])
    else:
        kwargs = {**kwargs, "callback": done}
    return args, kwargs, leave


def _describe(session: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    path = getattr(session, "_model_path", None)
    name = PurePath(path).name if isinstance(path, str) else session.get_modelmeta().graph_name
    feed = args[1] if len(args) > 1 else kwargs.get("input_feed")
    rows = next(iter(feed.values()), None) if isinstance(feed, dict) else None
    return description(str(name), "onnxruntime", rows)
