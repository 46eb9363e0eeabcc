"""What this process records with, where it has no tracer provider of its own: as the OTEL_* variables configure it.

The argument `bounded` of these functions runs a function within the time that a shutdown may take.
"""

from __future__ import annotations

import atexit
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeAlias

from stagetrace import log, settings
from stagetrace.guard import guarded
from stagetrace.request.context import here, meet_otel
from stagetrace.sla.process import counter, follow, is_given, policy
from stagetrace.tracing import sampler as samplers
from stagetrace.tracing.propagation import BY_PROPAGATOR, FIELDS
from stagetrace.tracing.resource import resource

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.sla.entry_recorder import EntryRecorder
    from stagetrace.sla.metrics_sender import MetricsSender
    from stagetrace.tracing.sampler import Sampler

Bounded: TypeAlias = "Callable[[Callable[[], Any]], bool]"

W3C = (*BY_PROPAGATOR, "none")


def set_up(bounded: Bounded) -> str:
    """Have entry spans recorded from now on, by a provider of the service or by us; return where they go."""
    if settings.TRACER_PROVIDER.read() or not set(settings.PROPAGATORS.read()).issubset(W3C):
        _load("opentelemetry.propagate")
    if wants_sdk():
        _load("opentelemetry.sdk.trace")
    if not meet_otel():
        if names := settings.PROPAGATORS.read():
            fields = frozenset(field for name in names for field in BY_PROPAGATOR.get(name, ()))
            here.fields = FIELDS if fields == FIELDS else fields
        target, here.recorder = own_recorder(bounded)
        return target
    from stagetrace.bridge import provider

    current = provider.own_provider()
    if current is not None:
        here.has_provider = True
        return provider.complete(current, bounded) or "the tracer provider that this service set"
    if "opentelemetry.sdk.trace" in sys.modules:
        target, here.recorder = provider.set_sdk_provider(bounded)
        here.has_provider = here.recorder is None
        return target
    target, here.recorder = own_recorder(bounded)
    provider.meet(here.recorder)
    return target


def _load(module: str) -> None:
    """Import a part of OpenTelemetry that a setting asks for.

    Raises:
        ValueError: if OpenTelemetry cannot use the setting.
    """
    try:
        import_module(module)
    except ValueError:
        raise
    except Exception as error:  # noqa: BLE001 -- it is not there, or broken
        why = f"{type(error).__name__}: {error}"
        log.once(f"load {module}", f"{module} cannot be imported ({why}): what OTEL_* ask of it is not done.")


def wants_sdk() -> bool:
    """Return whether entry spans are to go through an SDK: the service has it, or settings name what only it has."""
    if "opentelemetry.sdk.trace" in sys.modules:
        return True
    others = not all(map(_is_otlp, settings.exporters("TRACES", "otlp")))
    if others or settings.ID_GENERATOR.read() != "random" or settings.RESOURCE_DETECTORS.read() or _has_sampler():
        return True
    # An instrumentation's own entry spans are adopted, for which they have to be an SDK's.
    return "opentelemetry.instrumentation" in sys.modules and _is_there("opentelemetry.sdk.trace")


def _is_otlp(name: str) -> bool:
    """Return whether an exporter of this name is one whose work is ours."""
    return name in settings.OTLP_EXPORTERS.values()


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def _has_sampler() -> bool:
    """Return whether a package offers the sampler that OTEL_TRACES_SAMPLER names."""
    name = settings.SAMPLER.read().lower()
    if not name or name in samplers.NAMES:
        return False
    from importlib.metadata import entry_points

    return bool(entry_points(group="opentelemetry_traces_sampler", name=name))


def own_sampler() -> Sampler:
    """Return the head sampler that OTEL_TRACES_SAMPLER names; the default, logged once, where it names none."""
    name, argument = settings.SAMPLER.read().lower() or samplers.DEFAULT, settings.SAMPLER_ARG.read().strip()
    if name not in samplers.NAMES:
        known = ", ".join(samplers.NAMES)
        log.once("sampler", f"OTEL_TRACES_SAMPLER={name[:40]} is none of: {known}; using {samplers.DEFAULT}.")
        name = samplers.DEFAULT
    try:
        return samplers.named(name, argument)
    except ValueError:
        log.once("sampler", f"OTEL_TRACES_SAMPLER_ARG={argument[:40]} is no share from 0 to 1; using 1.")
        return samplers.named(name, "1")


def own_recorder(bounded: Bounded) -> tuple[str, EntryRecorder]:
    """Return where spans go, and what records entry spans and sends them."""
    from stagetrace.otlp.export.batch_processor import otlp_processor
    from stagetrace.sla.entry_recorder import EntryRecorder
    from stagetrace.sla.processor import Judge
    from stagetrace.sla.provider import OwnProvider

    targets = {name: f"{name} {settings.endpoint()}" for name in settings.exporters("TRACES", "otlp")}
    usable = {name: target for name, target in targets.items() if _is_otlp(name)}
    senders = [otlp_processor(name, target) for name, target in usable.items()]
    judge = Judge(policy(), senders, counter=counter())
    follow(judge)
    recorder = EntryRecorder(OwnProvider(own_sampler(), resource), judge, senders)
    atexit.register(bounded, recorder.shutdown)
    return ", ".join(usable.values()) or "nowhere", recorder


def set_meter_provider(bounded: Bounded) -> None:
    """Set a meter provider where OTEL_METRICS_EXPORTER asks for one; by default there is none."""
    wanted = settings.exporters("METRICS", "none")
    # Without an SDK, our own metrics go by OTLP all the same: `metrics_sender`.
    if not wanted or (all(map(_is_otlp, wanted)) and not _is_there("opentelemetry.sdk.metrics")):
        return
    _load("opentelemetry.sdk.metrics")
    if meet_otel() and "opentelemetry.sdk.metrics" in sys.modules:
        from stagetrace.bridge import provider

        provider.set_meter_provider(bounded)


@guarded
def metrics_sender() -> MetricsSender | None:
    """Return what sends the metrics of verdicts, in forked children too; None where they are not wanted."""
    from stagetrace.otlp.export.batch_processor import open_transport
    from stagetrace.otlp.export.client import ExportClient

    name = next((one for one in settings.exporters("METRICS", "otlp") if one.startswith("otlp")), None)
    name = name or settings.resolved("METRICS", "otlp")
    is_switched_off = settings.METRICS_EXPORTER.read() == "none"
    if not is_given() or is_switched_off or not _is_otlp(name) or not _goes_with_spans():
        return None
    from stagetrace.sla.metrics_sender import MetricsSender

    client = ExportClient(partial(open_transport, name, "METRICS"), name)
    return MetricsSender(counter(), client, here.resource)


def _goes_with_spans() -> bool:
    """Return whether spans go by OTLP to a receiver that may take metrics, too."""
    from stagetrace.otlp.export.batch_processor import processors
    from stagetrace.process_status.files import samples_all
    from stagetrace.process_status.publish import sampler

    # Of a tracer provider that the service has set it is not known where it sends spans; but if its head sampler drops
    # some, only the counts can be exact.
    by_otlp = processors() or (not samples_all(sampler()) and settings.exporters("TRACES", "otlp"))
    only_spans = settings.TRACES_ENDPOINT.text() and not (settings.METRICS_ENDPOINT.text() or settings.ENDPOINT.text())
    return bool(by_otlp) and not only_spans
