"""Send the exact counts of judged requests to where spans go, of a process whose head sampler drops some of these.

As OTLP metrics, each 10 s, in a thread of its own. It is an extra: nobody is told where a receiver takes none (Jaeger
does not), and counts that did not arrive come with the next.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from stagetrace import config
from stagetrace.guard import guarded
from stagetrace.real_threads import allocate_lock, start
from stagetrace.runtime.judged_counts import attributes
from stagetrace.semconv import METRIC_REQUESTS

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

    from opentelemetry.sdk.resources import Resource

    from stagetrace.sla.processor import VerdictCounter

EVERY_S = 10.0
_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.exporter.otlp.proto.http.metric_exporter",
)


sent: ExactCounts | None = None  # of this process, where they are sent


@guarded
def begin() -> None:
    """Send counts from now on, if they are wanted, in forked children too."""
    from opentelemetry import trace

    from stagetrace.instrumentation.opentelemetry.sdk import counter, policy
    from stagetrace.process_status.publish import sampler

    global sent  # noqa: PLW0603
    resource = getattr(trace.get_tracer_provider(), "resource", None)
    if policy() is not None and resource is not None and wanted(sampler()):
        sent = ExactCounts(counter(), resource)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=sent.begin_again)


def tick() -> None:
    """Send the counts in a thread, if there are any and it is time."""
    if sent is not None:
        sent.tick()


def finish(bounded: Callable[[Callable[[], None]], object]) -> None:
    """Send the last counts, by way of `bounded`."""
    if sent is not None:
        bounded(sent.send)


def wanted(sampler: str | None) -> bool:
    """Return whether counts are to be sent: there is a head sampler, and nobody else says where metrics go."""
    from stagetrace.process_status.files import samples_all

    told = {name: os.environ.get(f"OTEL_EXPORTER_OTLP_{name}_ENDPOINT", "").strip() for name in ("TRACES", "METRICS")}
    return (
        not samples_all(sampler)
        and not os.environ.get("OTEL_METRICS_EXPORTER", "").strip()
        and any(name.startswith("otlp") for name in config.exporters("TRACES", "otlp"))
        and (not told["TRACES"] or bool(told["METRICS"]))
    )


class ExactCounts:
    """The counts of this process on their way. `_sending` is held while one export is under way."""

    def __init__(self, counter: VerdictCounter, resource: Resource) -> None:
        self._counter = counter
        self._resource = resource
        self._sending = allocate_lock()
        self._exporter: Any = None
        self._begin(counter.since_ns, {})

    def _begin(self, since_ns: int, before: dict[tuple[str, str, str], int]) -> None:
        self._since_ns = since_ns
        self._before = before  # what the process that has forked this one had counted
        self._due = time.monotonic() + EVERY_S

    def begin_again(self) -> None:
        """Count from here on, in a forked child: without the counter's lock, which somebody may have had."""
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
        counts = self._counter.by_route()
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

    def _message(self, counts: dict[tuple[str, str, str], int]) -> Any:
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
            NumberDataPoint(attributes(*key), self._since_ns, now, count - self._before.get(key, 0))
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
    """Return the exporters' loggers, each with a filter that leaves out what this thread logs."""
    import logging
    import threading

    mine = threading.get_ident()
    return dict.fromkeys(map(logging.getLogger, _LOGGERS), lambda record: record.thread != mine)


def _exporter() -> Any:
    """Return the official exporter of metrics, as OTEL_* says."""
    from importlib.metadata import entry_points

    (name,) = config.exporters("METRICS", "otlp")
    (point,) = entry_points(group="opentelemetry_metrics_exporter", name=name)
    return point.load()()
