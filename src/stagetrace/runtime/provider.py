"""The process's providers, where the service sets none: the official SDK as the OTEL_* variables configure it.

The argument `bounded` of these functions runs a function within the time that a shutdown may take.
"""

from __future__ import annotations

import atexit
import re
import socket
import sys
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from stagetrace import log, settings
from stagetrace.guard import guarded
from stagetrace.system.threads import aside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.metadata import EntryPoint

    from opentelemetry.sdk.metrics.export import MetricReader
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
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
    from stagetrace.request.limits import span_limits

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
    from stagetrace.sla.process import joined

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
    from stagetrace.sla.process import joined

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


@guarded
def metrics_sender() -> MetricsSender | None:
    """Return what sends the metrics of verdicts, in forked children too; None where they are not wanted."""
    from opentelemetry import trace

    from stagetrace.otlp.export.batch_processor import OTLP_EXPORTERS, open_transport
    from stagetrace.otlp.export.client import ExportClient
    from stagetrace.sla.process import counter, is_given

    name = next((one for one in settings.exporters("METRICS", "otlp") if one.startswith("otlp")), None)
    name = name or settings.resolved("METRICS", "otlp")
    is_switched_off = settings.METRICS_EXPORTER.read() == "none"
    has_resource = hasattr(trace.get_tracer_provider(), "resource")
    if not is_given() or is_switched_off or name not in OTLP_EXPORTERS or not has_resource or not _goes_with_spans():
        return None
    from stagetrace.sla.metrics_sender import MetricsSender

    def resource() -> Any:
        return trace.get_tracer_provider().resource  # type: ignore[attr-defined]

    return MetricsSender(counter(), ExportClient(partial(open_transport, name, "METRICS"), name), resource)


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
#
# That of OTLP is imported in the sending thread, with the first batch: gRPC and protobuf take 70 ms, for which a server
# would wait with its first request.

_TRACES = "opentelemetry_traces_exporter"
_METRICS = "opentelemetry_metrics_exporter"


def span_processors() -> dict[SpanProcessor, str]:
    """Return a processor for each exporter that OTEL_TRACES_EXPORTER names, and where it sends spans."""
    from stagetrace.otlp.export.batch_processor import OTLP_EXPORTERS, otlp_processor

    made: dict[SpanProcessor, str] = {}
    for name in settings.exporters("TRACES", "otlp"):
        target = f"{name} {settings.endpoint()}" if name.startswith("otlp") else name
        if name in OTLP_EXPORTERS:
            made[otlp_processor(name, target)] = target
        elif (make := _loaded(_TRACES, name)) is not None:
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            from stagetrace.otlp.export.counting_exporter import CountingExporter

            made[BatchSpanProcessor(CountingExporter(make(), target))] = target
    return made


def targets(processors: dict[SpanProcessor, str]) -> str:
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
    known = ", ".join(sorted(point.name for point in entry_points(group=group)))
    log.once(group, f"there is no exporter {name!r}; nothing is exported.\nOTEL_TRACES_EXPORTER can be: {known}, none.")
    return None


# --- The resource of this process's spans: the name of its service, and its host.
#
# Where no name is given, it is what the process serves, not `unknown_service:python3.11`: taken from the command line,
# which workers, reloaders and forks share.

# Programs that serve an application of others: by the name of their script, or of the package that `python -m` runs.
LAUNCHERS: Final = {
    *("uvicorn", "gunicorn", "hypercorn", "granian", "daphne", "waitress", "waitress-serve", "cheroot", "gevent"),
    *("fastapi", "flask", "quart", "litestar", "django-admin", "manage", "blacksheep", "falcon", "bottle"),
    *("celery", "mlserver", "bentoml", "_bentoml_impl", "_bentoml_sdk", "ray", "litserve"),
    *("ddtrace-run", "opentelemetry-instrument", "torchrun", "accelerate", "ipykernel_launcher"),
}
# `module:attribute`, maybe of a path; `localhost:8000` is none.
_TARGET: Final = re.compile(r"([A-Za-z_][\w.]*(?:/[\w.-]+)*):[A-Za-z_][\w.]*(?:\(.*\))?")
# How frameworks get the name of the application: by an option, or a variable.
_OPTIONS: Final = ("--app", "-A")
_VARIABLES: Final = (settings.FLASK_APP, settings.QUART_APP, settings.LITESTAR_APP)
_NO_PROGRAM: Final = ("", "-", "-c")
_UNKNOWN: Final = "unknown_service"

_given = ""


def name_service(name: str) -> None:
    """Set the name of this process's service for where the environment gives none."""
    global _given  # noqa: PLW0603
    _given = name


def resource() -> Resource:
    """Return the resource that OTEL_* give, its service and host named."""
    from opentelemetry.sdk.resources import HOST_NAME, SERVICE_NAME, Resource

    found = Resource.create()
    added: dict[str, str] = {}
    if str(found.attributes.get(SERVICE_NAME, "")).partition(":")[0] == _UNKNOWN:
        added[SERVICE_NAME] = _given or guessed(sys.argv) or ""
    if HOST_NAME not in found.attributes:
        added[HOST_NAME] = _host() or ""
    return found.merge(Resource({key: value for key, value in added.items() if value}))


@guarded
def _host() -> str:
    """Return the name that the system has for itself, in a container that of the container: nothing is looked up."""
    return socket.gethostname()


@guarded
def guessed(argv: Sequence[str]) -> str | None:
    """Return what a command line serves: a module, a script's name, or that of the folder; None if nothing shows it."""
    if not argv or argv[0] in _NO_PROGRAM:
        return None
    with suppress(FileNotFoundError):  # the folder in which it was started is gone
        program = _program(argv[0])
        if program is None or program.partition(".")[0] not in LAUNCHERS:
            return program
        return _served(argv[1:]) or Path.cwd().name or program
    return None


def _program(path: str) -> str | None:
    """Return the dotted name of the module that runs, or the script's name."""
    file = Path(path)
    name = file.name.removesuffix(".exe").removesuffix(".py").removesuffix("-script")
    parts = [] if name == "__main__" else [name]
    folder = file.absolute().parent
    if not parts or file.suffix == ".py":
        is_package = not parts  # `python -m pkg`, or a folder or zip file that is run
        while is_package or (folder / "__init__.py").is_file():
            parts.insert(0, folder.name.removesuffix(".pyz").removesuffix(".zip"))
            folder, is_package = folder.parent, False
    return ".".join(part for part in parts if part) or None


def _served(arguments: Sequence[str]) -> str | None:
    """Return the application that a launcher's arguments or variables name."""
    for argument in arguments:
        target = _TARGET.fullmatch(argument.partition("=")[2] if argument.startswith("--") else argument)
        if target and _is_module(target[1]):
            return _dotted(target[1])
    named = [value for option in _OPTIONS if (value := _value(arguments, option))]
    named += [value for variable in _VARIABLES if (value := variable.read())]
    named += [
        file for before, file in pairwise(["", *arguments]) if file.endswith(".py") and not before.startswith("-")
    ]
    if named:
        return _dotted(named[0].partition(":")[0])
    return settings.DJANGO_SETTINGS.read().partition(".")[0] or None


def _is_module(name: str) -> bool:
    return _dotted(name) in sys.modules or "/" in name


def _value(arguments: Sequence[str], option: str) -> str | None:
    for at, argument in enumerate(arguments):
        if argument == option:
            return arguments[at + 1] if at + 1 < len(arguments) else None
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _dotted(path: str) -> str:
    return path.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
