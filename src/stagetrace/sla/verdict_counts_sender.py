"""Send the exact counts of judged requests to where spans go, for a process whose head sampler drops some of these.

As OTLP metrics, each 10 s, in a thread of its own. It is an extra: nothing is logged where a receiver takes none
(Jaeger does not), and the next export includes counts that did not arrive.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from stagetrace import config
from stagetrace.guard import guarded
from stagetrace.real_threads import allocate_lock, start
from stagetrace.semconv import METRIC_REQUESTS
from stagetrace.sla.verdict_counts import attributes

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from opentelemetry.sdk.resources import Resource

    from stagetrace.sla.verdict_counter import Counted, VerdictCounter

EVERY_S = 10.0
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
)


class VerdictCountsSender:
    """Sends the counts of this process. `_sending` is held during an export."""

    def __init__(self, counter: VerdictCounter, resource: Resource) -> None:
        self._counter = counter
        self._resource = resource
        self._sending = allocate_lock()
        self._exporter: Any = None
        self._begin(counter.since_ns, {})

    def _begin(self, since_ns: int, before: dict[Counted, int]) -> None:
        self._since_ns = since_ns
        self._before = before  # what the parent of a forked process had counted
        self._due = time.monotonic() + EVERY_S

    def begin_again(self) -> None:
        """Count from here on, in a forked child: without the counter's lock, which a thread may have held."""
        self._sending = allocate_lock()
        self._exporter = None
        self._begin(time.time_ns(), dict(self._counter._counts))  # noqa: SLF001

    @guarded
    def tick(self) -> None:
        """Send the counts in a thread, if it is time."""
        if time.monotonic() >= self._due and self._sending.acquire(blocking=False):
            self._due = time.monotonic() + EVERY_S
            try:
                start(self._send_and_release, "stagetrace-counts")
            except BaseException:
                self._sending.release()
                raise

    def _send_and_release(self) -> None:
        try:
            self.send()
        finally:
            self._sending.release()

    @guarded
    def send(self) -> None:
        """Send the counts now, unless there are none."""
        counts = self._counter.points()
        if not counts:
            return
        from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY, attach, detach, set_value

        token = attach(set_value(_SUPPRESS_INSTRUMENTATION_KEY, True))  # noqa: FBT003 -- takes no name
        quiet = _quiet()
        for logger in quiet:
            logger.addFilter(quiet[logger])
        try:
            if self._exporter is None:
                self._exporter = _exporter()
            self._exporter.export(self._message(counts))
        finally:
            for logger in quiet:
                logger.removeFilter(quiet[logger])
            detach(token)

    def _message(self, counts: dict[Counted, int]) -> Any:
        from opentelemetry.sdk.metrics.export import (
            AggregationTemporality,
            Metric,
            MetricsData,
            NumberDataPoint,
            ResourceMetrics,
            ScopeMetrics,
            Sum,
        )

        from stagetrace.recording.spans import SCOPE

        now = time.time_ns()
        points = [
            NumberDataPoint(attributes(key), self._since_ns, now, count - self._before.get(key, 0))
            for key, count in counts.items()
        ]
        metric = Metric(
            METRIC_REQUESTS,
            "Judged requests by objective, verdict and route.",
            "{request}",
            Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True),
        )
        return MetricsData([ResourceMetrics(self._resource, [ScopeMetrics(SCOPE, [metric], "")], "")])


def _quiet() -> dict[logging.Logger, Callable[[logging.LogRecord], bool]]:
    """Return the exporters' loggers, each with a filter that drops what this thread logs."""
    import logging
    import threading

    mine = threading.get_ident()
    return dict.fromkeys(map(logging.getLogger, _LOGGERS), lambda record: record.thread != mine)


def _exporter() -> Any:
    """Return the official exporter of metrics, that OTEL_* selects."""
    from importlib.metadata import entry_points

    (name,) = config.exporters("METRICS", "otlp")
    (point,) = entry_points(group="opentelemetry_metrics_exporter", name=name)
    return point.load()()
