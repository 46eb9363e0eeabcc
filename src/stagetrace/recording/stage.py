"""Mark a stage by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.recording.context import recording
from stagetrace.recording.timeline import Mark, Timeline

if TYPE_CHECKING:
    from types import TracebackType

MAX_NAME = 64


class stage:  # noqa: N801 -- reads as a statement: `with stagetrace.stage("preprocess"):`
    """Make the block a stage of the current request; outside a recorded request it does nothing.

    `name` is one of the stages of `stagetrace.semconv.STAGES` or a name of your own, at most 64 characters;
    `attributes` (str, bool, int, float; anything else as its text) go on the stage span. What is marked by hand wins
    over what is inferred, and the innermost mark wins. Works in threads and tasks that carry the request's context.
    Never raises.
    """

    __slots__ = ("_attributes", "_name", "_open")

    def __init__(self, name: str, **attributes: Any) -> None:
        self._name = name
        self._attributes = attributes
        self._open: tuple[Timeline, Mark] | None = None

    def __enter__(self) -> None:
        self._open = _begin(self._name, self._attributes)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open is not None:
            timeline, mark = self._open
            timeline.end_mark(mark)


@guarded
def _begin(name: str, attributes: dict[str, Any]) -> tuple[Timeline, Mark] | None:
    timeline = recording()
    if timeline is None:
        return None
    plain = {
        key: value if isinstance(value, str | bool | int | float) else str(value) for key, value in attributes.items()
    }
    mark = Mark(str(name)[:MAX_NAME] or "stage", plain)
    timeline.begin_mark(mark)
    return timeline, mark
