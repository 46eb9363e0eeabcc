"""A model that computes for BENCH_SERVICE_MS of CPU time, 0 by default."""

from __future__ import annotations

import os
import time

from sklearn.base import BaseEstimator

SERVICE_S = float(os.environ.get("BENCH_SERVICE_MS", "0")) / 1e3


class Busy(BaseEstimator):  # type: ignore[misc]  # untyped
    """Computes for SERVICE_S of CPU time."""

    def predict(self, rows: list[list[float]]) -> list[float]:
        """Return a number for each row."""
        until = time.thread_time() + SERVICE_S
        while time.thread_time() < until:
            pass
        return [0.5] * len(rows)
