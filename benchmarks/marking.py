"""Mark the stages of a measured service, as BENCH_STAGES selects: see `app_staged`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Stage = Callable[[str], AbstractContextManager[Any]]

WEIGHTS = (0.3, -0.1, 0.4, 0.1, -0.5, 0.9, -0.2, 0.6)


def marking(how: str) -> Stage:
    """Return the function that marks a stage."""
    marked: Mapping[str, Stage] = {}
    if how == "stagetrace":
        import stagetrace

        marked = dict.fromkeys(("queue", "inference"), stagetrace.stage)
    elif how == "opentelemetry":
        from opentelemetry.trace import get_tracer

        marked = dict.fromkeys(("preprocess", "inference", "postprocess"), get_tracer("bench").start_as_current_span)
    nothing = nullcontext()
    return lambda name: marked[name](name) if name in marked else nothing
