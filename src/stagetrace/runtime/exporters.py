"""The exporters that OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER name: OTLP is ours, the others are the SDK's.

That of OTLP is imported in the sending thread, with the first batch: gRPC and protobuf take 70 ms, for which a server
would wait with its first request.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from stagetrace import config, log
from stagetrace.real_threads import aside

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.trace import SpanProcessor

_TRACES = "opentelemetry_traces_exporter"
_METRICS = "opentelemetry_metrics_exporter"


def span_processors() -> dict[SpanProcessor, str]:
    """Return a processor for each exporter that OTEL_TRACES_EXPORTER names, and where it sends spans."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from stagetrace.otlp.export.exporter import CountingExporter
    from stagetrace.otlp.export.factory import OTLP_EXPORTERS, otlp_processor

    made: dict[SpanProcessor, str] = {}
    for name in config.exporters("TRACES", "otlp"):
        target = f"{name} {config.endpoint()}" if name.startswith("otlp") else name
        if name in OTLP_EXPORTERS:
            made[otlp_processor(name, target)] = target
        elif (make := _loaded(_TRACES, name)) is not None:
            made[BatchSpanProcessor(CountingExporter(make(), target))] = target
    return made


def targets(processors: dict[SpanProcessor, str]) -> str:
    """Return in words where these processors send spans."""
    return ", ".join(processors.values()) or "nowhere"


def metric_exporters() -> list[Callable[[], Any]]:
    """Return what makes each exporter that OTEL_METRICS_EXPORTER names; by default there is none."""
    loaded = [_loaded(_METRICS, name) for name in config.exporters("METRICS", "none")]
    return [make for make in loaded if make is not None]


def metric_readers(exporters: list[Callable[[], Any]]) -> list[MetricReader]:
    """Make each of these exporters and return its reader."""
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    made = [make() for make in exporters]  # `prometheus` is a reader itself
    return [one if isinstance(one, MetricReader) else PeriodicExportingMetricReader(_aside(one)) for one in made]


def _aside(exporter: Any) -> Any:
    """Run an exporter of metrics so that no greenlet waits for it."""
    with suppress(AttributeError):
        exporter.export = aside(exporter.export)
    return exporter


def _loaded(group: str, name: str) -> Callable[[], Any] | None:
    point = _entry_point(group, name)
    if point is None:
        return None
    from stagetrace.otlp.export.process_limits import require

    try:
        require(grpc=".grpc" in point.value)
        loaded: Callable[[], Any] = point.load()
    except Exception as error:  # noqa: BLE001
        log.once(group, f"cannot load the exporter {name!r} ({type(error).__name__}: {error}); nothing is exported.")
        return None
    return loaded


def _entry_point(group: str, name: str) -> EntryPoint | None:
    from importlib.metadata import entry_points

    point: EntryPoint | None = next(iter(entry_points(group=group, name=name)), None)
    if point is not None:
        return point
    known = ", ".join(sorted(point.name for point in entry_points(group=group)))
    log.once(group, f"there is no exporter {name!r}; nothing is exported.\nOTEL_TRACES_EXPORTER can be: {known}, none.")
    return None
