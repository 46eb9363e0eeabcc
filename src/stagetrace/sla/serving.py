"""Since when this process serves: a warm-up counts from then on."""

from __future__ import annotations

import os
from time import monotonic_ns
from typing import Final


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
