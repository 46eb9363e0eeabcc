"""Bounded flush: the delivery at the end of a process never takes longer than SHUTDOWN_BOUND_S."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

from stagetrace import log
from stagetrace.guard import report
from stagetrace.real_threads import Event

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.runtime.worker import Worker

SHUTDOWN_BOUND_S = 5.0
_LEAST_WAIT_S = 0.1


class BoundedFlush:
    """Runs flushes in the worker, and waits for them no longer than is left of SHUTDOWN_BOUND_S.

    All waits in vain share that bound, since a shutdown is made of several; one that was not in vain renews it.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._left_s = SHUTDOWN_BOUND_S

    def run(self, function: Callable[[], Any]) -> bool:
        """Run `function` and return whether it ended within the bound."""
        done = Event()
        results: list[Any] = []

        def work() -> None:
            try:
                results.append(function())
            except Exception as error:  # noqa: BLE001
                report("stagetrace.runtime.shutdown.BoundedFlush.run", error)
            done.set()

        started = time.monotonic()
        self._worker.put(work)
        ended = done.wait(max(self._left_s, _LEAST_WAIT_S))
        in_vain = not ended or results == [False]
        self._left_s = max(0.0, self._left_s - (time.monotonic() - started)) if in_vain else SHUTDOWN_BOUND_S
        return ended

    def flush_providers(self) -> None:
        """Flush the process's tracer provider and meter provider."""
        from opentelemetry import metrics, trace

        for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
            force_flush = getattr(provider, "force_flush", None)
            if force_flush is not None and not self.run(partial(force_flush, self._timeout_ms())):
                log.once(
                    "flush", f"a flush did not end within {SHUTDOWN_BOUND_S:g} s; what it did not deliver is lost."
                )

    def _timeout_ms(self) -> int:
        # Less than `run` waits: a flush that ends by itself can log what it has not delivered.
        return int(self._left_s * 900)
