"""What models of TensorFlow and Keras share: a call that only builds a graph is no inference."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stagetrace.guard import report, switch
from stagetrace.instrumentation.models.base import Shape
from stagetrace.instrumentation.models.marked import is_outermost, marked

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.instrumentation.models.marked import Describe


def eagerly(original: Callable[..., Any], describe: Describe, where: str) -> Callable[..., Any]:
    """Return a method that is the inference where it is the outermost call, unless TensorFlow builds a graph of it.

    `where` is the patch that faults are counted for.
    """
    here = switch(where)
    call = marked(original, describe, where=where)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = original
        try:
            if is_outermost(self) and not here.off and not _is_tracing():
                chosen = call
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(here.name, error)
        return chosen(self, *args, **kwargs)

    return method


def _is_tracing() -> bool:
    """Return whether TensorFlow builds a graph, of a function that is called for the first time."""
    is_eager = getattr(sys.modules.get("tensorflow"), "executing_eagerly", None)  # not yet, while it is being imported
    return is_eager is not None and not is_eager()


def first_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the first input of a call, or its shape if that is known without computing anything."""
    rows: Any = args[0] if args else next(iter(kwargs.values()), None)
    if isinstance(rows, Mapping):
        rows = next(iter(rows.values()), None)
    elif isinstance(rows, list | tuple) and rows and hasattr(rows[0], "shape"):  # several inputs
        rows = rows[0]
    dims = getattr(getattr(rows, "shape", None), "dims", None)  # of a TensorShape, which is no tuple
    return Shape(tuple(rows.shape)) if dims else rows
