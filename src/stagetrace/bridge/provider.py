"""The service's own providers, and an SDK's where the service has one and has set none: as the OTEL_* variables say.

The argument `bounded` of these functions runs a function within the time that a shutdown may take.
"""

from __future__ import annotations

import atexit
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

from opentelemetry import trace

from stagetrace import log, settings
from stagetrace.guard import guarded
from stagetrace.request.limits import span_limits
from stagetrace.system.threads import aside
from stagetrace.tracing import sampler as samplers
from stagetrace.tracing.resource import named
from stagetrace.tracing.resource import resource as own_resource

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanLimits
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Sampler

    from stagetrace.bridge.processor import SLASpanProcessor
    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
    from stagetrace.request.own_span import Recorder
    from stagetrace.sla.entry_recorder import EntryRecorder

Bounded: TypeAlias = "Callable[[Callable[[], Any]], bool]"


def own_provider() -> Any:
    """Return the tracer provider that the service has set; None where it has set none."""
    current = trace.get_tracer_provider()
    return None if isinstance(current, trace.ProxyTracerProvider) else current


def meet(recorder: Recorder) -> None:
    """Let spans that the service starts be ours, where it has no SDK and has set no provider."""
    from stagetrace.bridge.tracer import OwnTracerProvider

    if own_provider() is None:
        trace.set_tracer_provider(OwnTracerProvider(recorder))


def joined(provider: Any) -> SLASpanProcessor | None:
    """Return our processor of a provider; None if it could not be joined, or OTEL_SDK_DISABLED silences it."""
    from stagetrace.bridge.processor import SLASpanProcessor

    processor = getattr(provider, "_active_span_processor", None)
    is_disabled = getattr(provider, "_disabled", False)
    return processor if isinstance(processor, SLASpanProcessor) and not is_disabled else None


def is_silent(tracer: Any) -> bool:
    """Return whether the spans of a tracer are exported nowhere, as far as that can be found out.

    Spans of the global provider are exported: by the service, or by stagetrace once a server starts.
    """
    from stagetrace.bridge.tracer import OwnTracer

    is_global = isinstance(tracer, trace.ProxyTracer)
    if is_global:
        tracer = tracer._tracer  # noqa: SLF001 -- one that does nothing until there is a provider
    if isinstance(tracer, OwnTracer):
        return True  # our own entry span is sent; an instrumentation's would be another one
    if isinstance(tracer, trace.NoOpTracer):
        return not is_global
    processor = getattr(tracer, "span_processor", None)  # of an SDK tracer
    if processor is None:
        return False
    from stagetrace.bridge.processor import SLASpanProcessor, exports

    if processor is getattr(trace.get_tracer_provider(), "_active_span_processor", None):
        return False
    return not processor.sends if isinstance(processor, SLASpanProcessor) else not exports(processor)


def set_sdk_provider(bounded: Bounded) -> tuple[str, EntryRecorder | None]:
    """Set a tracer provider of the SDK; return where its spans go, and what records entry spans (None: the SDK)."""
    from opentelemetry.sdk.trace import SpanLimits, TracerProvider

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor

    # Its own exit handler may wait half a minute for a Collector that is down: ours is bounded.
    provider = TracerProvider(
        _installed_sampler() or _sampler_of_file(),
        resource(),
        shutdown_on_exit=False,
        span_limits=_limits(SpanLimits),
        id_generator=_id_generator(),
    )
    made = span_processors()
    for processor in made:
        provider.add_span_processor(processor)
    senders: list[Any] = [processor for processor in made if isinstance(processor, EncodingSpanProcessor)]
    recorder = _entry_recorder(provider, senders, others=len(senders) < len(made))
    trace.set_tracer_provider(provider)
    atexit.register(bounded, provider.shutdown)
    return targets(made), recorder


def _entry_recorder(provider: Any, senders: list[EncodingSpanProcessor], *, others: bool) -> EntryRecorder | None:
    """Return what records entry spans; `others`: whether some of the provider's processors want to see spans."""
    from stagetrace.sla.entry_recorder import EntryRecorder

    processor = joined(provider)
    if processor is None:
        return None
    processor.has_others = others
    processor.is_bounded = True
    processor.standby = ()
    return EntryRecorder(provider, processor, senders)


@guarded
def complete(provider: Any, bounded: Bounded) -> str | None:
    """Send the spans of the provider that this service has set, as long as it has no exporter; return where they go."""
    processor = joined(provider)
    if processor is None or processor.sends:
        return None
    made = span_processors()
    processor.standby = list(made)
    for one in made:
        atexit.register(bounded, one.shutdown)
    return f"{targets(made)}, as long as the tracer provider that this service set has no exporter"


def set_meter_provider(bounded: Bounded) -> None:
    """Set a meter provider where OTEL_METRICS_EXPORTER asks for one; by default there is none."""
    from opentelemetry import metrics

    exporters = metric_exporters()
    if not exporters or type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider":
        return
    from opentelemetry.sdk.metrics import MeterProvider

    provider = MeterProvider(metric_readers(exporters), resource(), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    atexit.register(bounded, provider.shutdown)


def _installed_sampler() -> Sampler | None:
    """Return the sampler of OTEL_TRACES_SAMPLER where a package offers it; None where the SDK has it itself."""
    from importlib.metadata import entry_points

    name = settings.SAMPLER.read().lower()
    for point in entry_points(group="opentelemetry_traces_sampler", name=name) if name else ():
        if point.module.startswith("opentelemetry.sdk."):
            continue  # which reads its argument for itself
        try:
            made: Sampler = point.load()(settings.SAMPLER_ARG.raw())
        except Exception as error:  # noqa: BLE001
            log.once(
                "sampler", f"cannot use the sampler {name!r} ({type(error).__name__}: {error}); the default is used."
            )
            return None
        return made
    return None


def _sampler_of_file() -> Sampler | None:
    """Return the sampler that the file of OTEL_CONFIG_FILE names, which the SDK does not read; None without a file."""
    if not settings.CONFIG_FILE.read():
        return None
    from opentelemetry.sdk.trace import sampling

    name = settings.SAMPLER.read() or samplers.DEFAULT
    kept = samplers.named(name, settings.SAMPLER_ARG.read())
    plain = sampling.ALWAYS_ON if kept.rate else sampling.ALWAYS_OFF
    root = sampling.TraceIdRatioBased(kept.rate) if kept.is_ratio else plain
    return sampling.ParentBased(root) if kept.by_parent else root


def _limits(kind: type[SpanLimits]) -> SpanLimits:
    """Return the limits of spans as OTEL_* set them: the SDK reads them itself, and refuses what it cannot use."""
    ours = span_limits()
    attributes, of_event, of_link, events, links, length = (kind.UNSET if one is None else one for one in ours)
    return kind(
        max_attributes=attributes,
        max_events=events,
        max_links=links,
        max_span_attributes=attributes,
        max_event_attributes=of_event,
        max_link_attributes=of_link,
        max_attribute_length=length,
        max_span_attribute_length=length,
    )


def _id_generator() -> IdGenerator | None:
    """Return the generator of ids that OTEL_PYTHON_ID_GENERATOR names; None for the SDK's own."""
    from importlib.metadata import entry_points

    name = settings.ID_GENERATOR.read()
    if name == "random":
        return None
    try:
        (point,) = entry_points(group="opentelemetry_id_generator", name=name)
        made: IdGenerator = point.load()()
    except Exception as error:  # noqa: BLE001
        log.once(
            "id generator",
            f"cannot use OTEL_PYTHON_ID_GENERATOR={name} ({type(error).__name__}: {error}); ids are random.",
        )
        return None
    return made


# --- The exporters that OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER name: OTLP is ours, the others are the SDK's.

_TRACES = "opentelemetry_traces_exporter"
_METRICS = "opentelemetry_metrics_exporter"


def span_processors() -> dict[Any, str]:
    """Return a processor for each exporter that OTEL_TRACES_EXPORTER names, and where it sends spans."""
    from stagetrace.otlp.export.batch_processor import otlp_processor

    made: dict[Any, str] = {}
    for name in settings.exporters("TRACES", "otlp"):
        target = f"{name} {settings.endpoint()}" if name.startswith("otlp") else name
        if name in settings.OTLP_EXPORTERS.values():
            made[otlp_processor(name, target)] = target
        elif (make := _loaded(_TRACES, name)) is not None:
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            from stagetrace.bridge.counting_exporter import CountingExporter

            made[BatchSpanProcessor(CountingExporter(make(), target))] = target
    return made


def targets(processors: dict[Any, str]) -> str:
    """Return in words where these processors send spans."""
    return ", ".join(processors.values()) or "nowhere"


def metric_exporters() -> list[Callable[[], Any]]:
    """Return what makes each exporter that OTEL_METRICS_EXPORTER names; by default there is none."""
    loaded = [_loaded(_METRICS, name) for name in settings.exporters("METRICS", "none")]
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
    from stagetrace.otlp.export.client import require

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
    wrong, fix = settings.no_exporter(name, (one.name for one in entry_points(group=group)))
    log.once(group, f"{wrong}; nothing is exported.\n{fix}.")
    return None


def resource() -> Resource:
    """Return the resource that OTEL_* give, its service and host named."""
    from opentelemetry.sdk.resources import Resource

    if settings.CONFIG_FILE.read():  # of which the SDK knows nothing
        return Resource(own_resource().attributes)
    found = Resource.create()
    return found.merge(Resource(named(found.attributes)))
