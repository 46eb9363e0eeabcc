"""The process's providers, where the service sets none: the official SDK as the OTEL_* variables configure it.

The argument `bounded` of these functions runs a function within the time that a shutdown may take.
"""

from __future__ import annotations

import atexit
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from stagetrace import config, log
from stagetrace.guard import guarded
from stagetrace.runtime.exporters import metric_exporters, metric_readers, span_processors, targets

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Sampler

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
    from stagetrace.sla.entry_recorder import EntryRecorder
    from stagetrace.sla.metrics_sender import MetricsSender

Bounded: TypeAlias = "Callable[[Callable[[], Any]], bool]"


def set_tracer_provider(bounded: Bounded) -> tuple[str, EntryRecorder | None]:
    """Set a tracer provider; return where its spans go, and what records entry spans (None: the SDK)."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
    from stagetrace.recording.limits import span_limits
    from stagetrace.service_name import resource

    # Its own exit handler may wait half a minute for a Collector that is down: ours is bounded.
    provider = TracerProvider(
        _installed_sampler(),
        resource(),
        shutdown_on_exit=False,
        span_limits=span_limits(),
        id_generator=_id_generator(),
    )
    made = span_processors()
    for processor in made:
        provider.add_span_processor(processor)
    senders = [processor for processor in made if isinstance(processor, EncodingSpanProcessor)]
    recorder = _entry_recorder(provider, senders, others=len(senders) < len(made))
    trace.set_tracer_provider(provider)
    atexit.register(bounded, provider.shutdown)
    return targets(made), recorder


def _entry_recorder(
    provider: TracerProvider, senders: list[EncodingSpanProcessor], *, others: bool
) -> EntryRecorder | None:
    """Return what records entry spans; `others`: whether some of the provider's processors want to see spans."""
    from stagetrace.sla.entry_recorder import EntryRecorder
    from stagetrace.sla.providers import joined

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
    from stagetrace.sla.providers import joined

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

    from stagetrace.service_name import resource

    provider = MeterProvider(metric_readers(exporters), resource(), shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    atexit.register(bounded, provider.shutdown)


@guarded
def metrics_sender() -> MetricsSender | None:
    """Return what sends the metrics of verdicts, in forked children too; None where they are not wanted."""
    from opentelemetry import trace

    from stagetrace.otlp.export.client import ExportClient
    from stagetrace.otlp.export.factory import OTLP_EXPORTERS, open_transport
    from stagetrace.sla.process import counter, is_given

    name = next((one for one in config.exporters("METRICS", "otlp") if one.startswith("otlp")), None)
    name = name or config.resolved("METRICS", "otlp")
    is_switched_off = config.METRICS_EXPORTER.read() == "none"
    has_resource = hasattr(trace.get_tracer_provider(), "resource")
    if not is_given() or is_switched_off or name not in OTLP_EXPORTERS or not has_resource or not _goes_with_spans():
        return None
    from stagetrace.sla.metrics_sender import MetricsSender

    def resource() -> Any:
        return trace.get_tracer_provider().resource  # type: ignore[attr-defined]

    return MetricsSender(counter(), ExportClient(partial(open_transport, name, "METRICS"), name), resource)


def _goes_with_spans() -> bool:
    """Return whether spans go by OTLP to a receiver that may take metrics, too."""
    from stagetrace.otlp.export.factory import processors
    from stagetrace.process_status.files import samples_all
    from stagetrace.process_status.publish import sampler

    # Of a tracer provider that the service has set it is not known where it sends spans; but if its head sampler drops
    # some, only the counts can be exact.
    by_otlp = processors() or (not samples_all(sampler()) and config.exporters("TRACES", "otlp"))
    only_spans = config.TRACES_ENDPOINT.text() and not (config.METRICS_ENDPOINT.text() or config.ENDPOINT.text())
    return bool(by_otlp) and not only_spans


def _installed_sampler() -> Sampler | None:
    """Return the sampler of OTEL_TRACES_SAMPLER where a package offers it; None where the SDK has it itself."""
    from importlib.metadata import entry_points

    name = config.SAMPLER.read().lower()
    for point in entry_points(group="opentelemetry_traces_sampler", name=name) if name else ():
        if point.module.startswith("opentelemetry.sdk."):
            continue  # which reads its argument for itself
        try:
            made: Sampler = point.load()(config.SAMPLER_ARG.raw())
        except Exception as error:  # noqa: BLE001
            log.once(
                "sampler", f"cannot use the sampler {name!r} ({type(error).__name__}: {error}); the default is used."
            )
            return None
        return made
    return None


def _id_generator() -> IdGenerator | None:
    """Return the generator of ids that OTEL_PYTHON_ID_GENERATOR names; None for the SDK's own."""
    from importlib.metadata import entry_points

    name = config.ID_GENERATOR.read()
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
