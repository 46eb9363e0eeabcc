"""Since when this process serves, and what it counts beside its requests."""

from __future__ import annotations

import os
from collections import deque
from time import monotonic_ns, time_ns
from typing import Final

from stagetrace import log
from stagetrace.system.threads import allocate_lock


class Serving:
    """When this process began to serve, by time.monotonic_ns, a clock that is never set."""

    def __init__(self) -> None:
        self._since: int | None = None

    def begin(self) -> None:
        """Note that it begins to serve, unless it did before."""
        if self._since is None:
            self._since = monotonic_ns()

    def age_s(self, took_ns: int) -> float:
        """Return for how many seconds the process had served when a request began that took `took_ns` and ends now.

        If no begin was noted, the process began to serve with this request.
        """
        began = monotonic_ns() - took_ns
        if self._since is None:
            self._since = began
        return max(began - self._since, 0) / 1e9

    def begin_anew(self) -> None:
        """Forget the parent's begin, in a forked child."""
        self._since = None


serving: Final = Serving()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=serving.begin_anew)


# --- Calls of models that were in no request although requests are recorded here: they are counted and named.
#
# Such a call may be a refresh, or the work of a batcher that is not recognised: then its requests show no `inference`.

MOST_KEPT: Final = 1_000  # of the latest calls

calls: dict[str, int] = {}  # by framework
_latest: deque[tuple[int, str]] = deque(maxlen=MOST_KEPT)  # when, in nanoseconds since the epoch, and the framework
_lock = allocate_lock()  # guards the counts
_logged: dict[str, int] = {}


def note(framework: str) -> None:
    """Count a call."""
    with _lock:
        calls[framework] = calls.get(framework, 0) + 1
    _latest.append((time_ns(), framework))


def evidence_of(start: int, end: int) -> str:
    """Return what to append to the evidence of a request without a model, from start to end (ns); often nothing."""
    counts: dict[str, int] = {}
    for at, framework in list(_latest):
        if start <= at < end:
            counts[framework] = counts.get(framework, 0) + 1
    return f"; meanwhile {text(counts)}" if counts else ""


def text(counts: dict[str, int]) -> str:
    """Return the sentence about these counts."""
    named = ", ".join(f"{count} call{'s' * (count > 1)} of {framework}" for framework, count in counts.items())
    return f"{named} {'was' if sum(counts.values()) == 1 else 'were'} in no request"


def log_counts() -> None:
    """Log the counts as the process ends; equal ones only once."""
    global _logged  # noqa: PLW0603
    if calls and calls != _logged:
        _logged = calls.copy()
        log.info(f"{text(_logged)}: where they served requests, see docs/servers.md#batches-and-worker-processes")


def _begin_again() -> None:
    global _lock  # noqa: PLW0603
    _lock = allocate_lock()
    calls.clear()
    _latest.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)


crowded_waits: dict[str, int] = {}  # by reason: how many waits began while others waited
ignored_headers: dict[str, int] = {}  # by reason: `X-Request-Start` and the like without a plausible time
