"""Send the metrics of verdicts to where spans go, by OTLP: regularly, in a thread of its own, and as a process ends.

Failures are not logged, since the metrics are an extra: a receiver that takes no metrics (Jaeger does not) is asked
again ever less often, and what did not arrive is in the next message. Where the service has a meter provider, that has
the counters and gauges, and the histograms alone are sent, which an asynchronous instrument cannot be.
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from stagetrace import settings
from stagetrace.guard import guarded
from stagetrace.otlp.encode import resource_spans, span_prefix
from stagetrace.otlp.metrics import encode_numbers, encode_times
from stagetrace.request.spans import SCOPE
from stagetrace.sla.metric_points import LOOP_LAG, NUMBERS, TIMES
from stagetrace.system.setting_problems import whole_number
from stagetrace.system.threads import allocate_lock, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stagetrace.otlp.export.client import ExportClient
    from stagetrace.sla.metric_points import Numbers, Times
    from stagetrace.sla.verdict_counter import VerdictCounter

REFUSED_S: Final = (60.0, 600.0)  # until a receiver that takes no metrics is asked again, at first and at last
UNREACHABLE_S: Final = 60.0  # until one that could not be reached is, at last
_LONGEST_S: Final = 86_400.0  # a number that means "never" may be too large for a clock


class MetricsSender:
    """Sends the metrics of this process. `_sending` is held during an export."""

    def __init__(self, counter: VerdictCounter, client: ExportClient, resource: Callable[[], Any]) -> None:
        self.every_s = min(whole_number(settings.METRIC_INTERVAL) / 1000, _LONGEST_S)
        self._counter = counter
        self._client = client
        self._resource = resource  # another one after a fork
        self._begin()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=guarded(client.before_fork),
                after_in_parent=guarded(client.after_fork),
                after_in_child=guarded(self._begin_again),
            )

    def _begin(self) -> None:
        self._sending = allocate_lock()
        self._refused = False
        self._failures = 0
        self._due = time.monotonic() + self.every_s

    def _begin_again(self) -> None:
        """Begin anew in a forked child, where the counter does, too."""
        self._client.begin_again()
        self._begin()

    def load(self) -> None:
        """Import and open all that sending needs: under gevent, threads of ours must not import anything."""
        self._client.load()

    @guarded
    def tick(self) -> None:
        """Send in a thread, if it is time."""
        if time.monotonic() >= self._due and self._sending.acquire(blocking=False):
            self._due = time.monotonic() + self.every_s
            try:
                start(self._send_and_release, "stagetrace-metrics")
            except BaseException:
                self._sending.release()
                raise

    def _send_and_release(self) -> None:
        try:
            self.send()
        finally:
            self._sending.release()

    @guarded
    def send_last(self) -> None:
        """Send what has been counted, as the process ends; not to a receiver that has taken none before."""
        if not self._refused:
            self.send()

    @guarded
    def send(self) -> None:
        """Send what there is now."""
        numbers, times = ((), TIMES) if _has_provider() else (NUMBERS, (*TIMES, LOOP_LAG))
        request = message(self._resource(), numbers, times, self._counter.since_ns, time.time_ns())
        if request is None:
            return
        outcome = self._client.send(request)
        self._refused = not outcome.delivered and not outcome.retryable
        self._failures = 0 if outcome.delivered else self._failures + 1
        if not self._failures:
            self._due = min(self._due, time.monotonic() + self.every_s)
        else:
            first, last = REFUSED_S if self._refused else (self.every_s, UNREACHABLE_S)
            pause_s = min(first * 2.0 ** min(self._failures - 1, 16), last)
            self._due = time.monotonic() + max(pause_s, outcome.wait_s, self.every_s)


def _has_provider() -> bool:
    """Return whether the service has a meter provider."""
    if "opentelemetry.metrics" not in sys.modules:
        return False
    has_provider: bool = import_module("stagetrace.bridge.metrics").has_provider()
    return has_provider


# --- Metrics as an OTLP request.


def message(
    resource: Any, numbers: Iterable[Numbers], times: Iterable[Times], since_ns: int, now_ns: int
) -> bytes | None:
    """Return a serialized ExportMetricsServiceRequest; None where there is no point to send."""
    at = since_ns, now_ns
    made = [
        *(
            encode_numbers(one.name, one.unit, one.description, one.read(), at, is_counter=one.is_counter)
            for one in numbers
        ),
        *(encode_times(one.name, one.description, one.read(), at) for one in times),
    ]
    encoded = [one for one in made if one is not None]
    # Resource, scope and what they hold have the same numbers of fields as in a request of spans.
    return resource_spans(resource, {SCOPE: [span_prefix(len(one)) + one for one in encoded]}) if encoded else None
