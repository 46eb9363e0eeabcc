"""The times of looks at alerts: how long since the one before, and which windows a clock that was set has spoilt."""

from __future__ import annotations

from typing import Final, NamedTuple

_MOST_STEPS: Final = 100
STEP_S: Final = 5.0  # by which the time of day has to differ from the time that passed, to have been set
_NS: Final = 10**9


class Step(NamedTuple):
    """That the clock was set by so many seconds, forwards or back, and how long ago that was."""

    size_s: float
    ago_s: float = 0


class Times(NamedTuple):
    """The times of one look, as `look` returns them."""

    now_unix_nano: int
    passed_ns: int  # by a clock that nobody can set; its zero means nothing
    elapsed_s: float = 0  # since the look before
    steps: tuple[Step, ...] = ()

    def is_spoilt(self, window_s: float) -> bool:
        """Return whether a window that ends now holds times that were skipped, or that came twice.

        After a step the windows are mixed of requests from before and after it: for as long as the step was wide, and
        at most until the window lies behind it.
        """
        return any(one.ago_s < min(abs(one.size_s), window_s) for one in self.steps)


def look(before: Times | None, now_unix_nano: int, passed_ns: int, most_s: float) -> Times:
    """Return the times of a look. Of the time since the one before, `most_s` count: nobody looked meanwhile."""
    if before is None:
        return Times(now_unix_nano, passed_ns)
    passed_s = max(0, passed_ns - before.passed_ns) / _NS
    size_s = (now_unix_nano - before.now_unix_nano) / _NS - passed_s
    steps = [one._replace(ago_s=one.ago_s + passed_s) for one in before.steps]
    if abs(size_s) > STEP_S:
        steps.append(Step(size_s))
    kept = tuple(one for one in steps if one.ago_s < abs(one.size_s))
    return Times(now_unix_nano, passed_ns, min(passed_s, most_s), kept[-_MOST_STEPS:])
