"""The process's provider, where nobody else sets one: the official SDK as the OTEL_* variables say.

Prepared when a server is about to serve, not before: a process that serves nothing loads no SDK, and the user's own
start-up code goes first.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from stagetrace import config, log, unrecognised_models
from stagetrace import known_variables as variables
from stagetrace.guard import guarded, report
from stagetrace.real_queue import Empty, SimpleQueue
from stagetrace.real_threads import Event, aside, has_greenlets, in_thread, start
from stagetrace.runtime import judged_counts as judged
from stagetrace.runtime import request_counts as exact_counts
from stagetrace.runtime import sigterm

if TYPE_CHECKING:
    from collections.abc import Callable
    from importlib.metadata import EntryPoint

    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Sampler

    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
    from stagetrace.process_status.publish import Publisher
    from stagetrace.sla.entry_recorder import EntryRecorder

SHUTDOWN_BOUND_S = 5.0
PUBLISH_EVERY_S = 2.0
WITHDRAW_BOUND_S = 0.5
UNSAID = {"opentelemetry"} | (sys.stdlib_module_names - {"wsgiref"})  # of what is hooked: they are in every process

recorder: EntryRecorder | None = None  # of entry spans, where the tracer provider is ours
_lock = threading.Lock()  # guards _ready and _prepared
_ready = False
_prepared = False  # here, or in the process that has forked this one
_jobs: SimpleQueue[Callable[[], None]] | None = None
_jobs_pid = 0
_left_s = SHUTDOWN_BOUND_S
_hurries = False  # what ends is delivered at once
_delivering = 0  # the process that delivers at its end
_publisher: Publisher | None = None
_publishing = False  # a worker is at it: the disk may hang, and with it the worker


def ready() -> bool:
    """Return whether `prepare` has run in this process."""
    return _ready


async def prepare() -> None:
    """Make sure that a tracer provider is set; in a thread, since the exporter takes 0.1 s to load."""
    await _in_thread(prepare_now)


async def flush() -> None:
    """Deliver what has ended, for at most SHUTDOWN_BOUND_S, and say what was judged."""
    await _in_thread(flush_now)


@guarded
def hurry() -> None:
    """Deliver at once what ends from now on: a server that waits for its last requests may be killed meanwhile."""
    global _hurries  # noqa: PLW0603
    _hurries = True
    if _ready:
        from stagetrace.otlp.export.factory import hurry as hurry_processors

        hurry_processors()


@guarded
def hurry_soon() -> None:
    """Do so from a signal handler, which may have interrupted whoever holds a lock that is needed for it."""
    if _jobs is not None and _jobs_pid == os.getpid():
        _jobs.put(hurry)  # which a SimpleQueue allows even within itself


async def _in_thread(function: Callable[[], None]) -> None:
    try:
        await in_thread(function)
    except Exception as error:  # noqa: BLE001
        report(f"stagetrace.runtime.provider.{function.__name__}", error)


@guarded
def prepare_now() -> None:
    """Set a provider if there is none, once in each process."""
    global _ready, _prepared  # noqa: PLW0603
    with _lock:
        if _ready:
            return
        try:
            sigterm.catch()  # first, so that it comes last in `atexit`, after what delivers
            if not _prepared:
                _prepared = True
                _prepare_first()
            deliver_at_end()
        finally:
            _ready = True  # not before: a request that came in meanwhile would go unrecorded
    if _hurries:
        hurry()


def _prepare_first() -> None:
    from opentelemetry import trace

    from stagetrace.instrumentation.registry import install_for_serving
    from stagetrace.sources import gc_pauses as pauses

    install_for_serving()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_begin_again)
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        target = _set_tracer_provider()
    else:
        target = _complete(trace.get_tracer_provider()) or "the tracer provider that this service set"
    _set_meter_provider()
    judged.offer()
    exact_counts.begin()
    pauses.start()
    if has_greenlets():
        _import_now(target)
    _report(target)
    variables.say_misspelt()
    _publish_from_now_on(target)


def _begin_again() -> None:
    """Be ready in a forked child when a server is about to serve there, too."""
    global _lock, _ready
    _lock, _ready = threading.Lock(), False


@guarded
def _import_now(target: str) -> None:
    """Import all that our threads would.

    Where greenlets are, they have the locks of imports: one that wants what a real thread imports just now fails, or
    hangs.
    """
    import netrc  # noqa: F401 -- which `requests` imports late

    from stagetrace.otlp.export.factory import processors
    from stagetrace.process_status.publish import rehearse

    settings = getattr(sys.modules.get("gevent"), "config", None)
    if settings is not None:  # for a thread that looks up a host
        _ = settings.resolver, settings.threadpool
    rehearse(target)
    for processor in processors():
        processor.load(anyway=True)


def _set_tracer_provider() -> str:
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
    made = _sending()
    for processor in made:
        provider.add_span_processor(processor)
    senders = [processor for processor in made if isinstance(processor, EncodingSpanProcessor)]
    _record_entries(provider, senders, others=len(senders) < len(made))
    trace.set_tracer_provider(provider)
    atexit.register(_bounded, provider.shutdown)
    return _names(made)


@guarded
def _complete(provider: Any) -> str | None:
    """Send the spans of the provider that this service has set, as long as it has no exporter; return where they go."""
    from stagetrace.instrumentation.opentelemetry.sdk import joined

    processor = joined(provider)
    if processor is None or processor.sends:
        return None
    made = _sending()
    processor.standby = list(made)
    for one in made:
        atexit.register(_bounded, one.shutdown)
    return f"{_names(made)}, as long as the tracer provider that this service set has no exporter"


def _names(made: dict[SpanProcessor, str]) -> str:
    return ", ".join(made.values()) or "nowhere"


def _sending() -> dict[SpanProcessor, str]:
    """Return what sends spans, as OTEL_TRACES_EXPORTER says, and where each sends them."""
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from stagetrace.otlp.export.exporter import CountingExporter
    from stagetrace.otlp.export.factory import otlp_processor

    made: dict[SpanProcessor, str] = {}
    for name in config.exporters("TRACES", "otlp"):
        group = "opentelemetry_traces_exporter"
        target = f"{name} {config.endpoint()}" if name.startswith("otlp") else name
        if name.startswith("otlp_proto_"):
            point = _entry_point(group, name)
            if point is None:
                continue
            made[otlp_processor(partial(_load, point), target)] = target
        else:
            make = _loaded(group, name)
            if make is None:
                continue
            made[BatchSpanProcessor(CountingExporter(make(), target))] = target
    return made


def _record_entries(provider: TracerProvider, senders: list[EncodingSpanProcessor], *, others: bool) -> None:
    """Record entry spans ourselves; `others`: whether some of the provider's processors want to see spans."""
    from stagetrace.instrumentation.opentelemetry.sdk import joined
    from stagetrace.sla.entry_recorder import EntryRecorder

    global recorder  # noqa: PLW0603
    processor = joined(provider)
    if processor is not None:
        processor.has_others = others
        processor.is_bounded = True
        processor.standby = ()
        recorder = EntryRecorder(provider, processor, senders)


def _set_meter_provider() -> None:
    """Set a meter provider where OTEL_METRICS_EXPORTER asks for one; by default there is none."""
    from opentelemetry import metrics

    makers = [_loaded("opentelemetry_metrics_exporter", name) for name in config.exporters("METRICS", "none")]
    if not any(makers) or type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider":
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader

    made = [make() for make in makers if make is not None]  # `prometheus` is a reader itself
    readers = [one if isinstance(one, MetricReader) else PeriodicExportingMetricReader(_aside(one)) for one in made]
    provider = MeterProvider(readers, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    atexit.register(_bounded, provider.shutdown)


def _aside(exporter: Any) -> Any:
    """Let an exporter of metrics keep no greenlet waiting."""
    with suppress(AttributeError):
        exporter.export = aside(exporter.export)
    return exporter


def _loaded(group: str, name: str) -> Callable[[], Any] | None:
    point = _entry_point(group, name)
    if point is None:
        return None
    from stagetrace.otlp.export.process_limits import require

    try:
        require(point.value)
        loaded: Callable[[], Any] = point.load()
    except Exception as error:  # noqa: BLE001
        log.once(group, f"cannot load the exporter {name!r} ({type(error).__name__}: {error}); nothing is exported.")
        return None
    return loaded


def _load(point: EntryPoint) -> Any:
    from stagetrace.otlp.export.process_limits import require

    require(point.value)
    return point.load()()


def _entry_point(group: str, name: str) -> EntryPoint | None:
    from importlib.metadata import entry_points

    point: EntryPoint | None = next(iter(entry_points(group=group, name=name)), None)
    if point is not None:
        return point
    known = ", ".join(sorted(point.name for point in entry_points(group=group)))
    log.once(group, f"there is no exporter {name!r}; nothing is exported.\nOTEL_TRACES_EXPORTER can be: {known}, none.")
    return None


def _installed_sampler() -> Sampler | None:
    """Return the sampler of OTEL_TRACES_SAMPLER where a package offers it; None where the SDK has it itself."""
    from importlib.metadata import entry_points

    name = os.environ.get("OTEL_TRACES_SAMPLER", "").strip().lower()
    for point in entry_points(group="opentelemetry_traces_sampler", name=name) if name else ():
        if point.module.startswith("opentelemetry.sdk."):
            continue  # which reads its argument for itself
        try:
            made: Sampler = point.load()(os.environ.get("OTEL_TRACES_SAMPLER_ARG"))
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

    name = os.environ.get("OTEL_PYTHON_ID_GENERATOR", "").strip()
    if name in ("", "random"):
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


def _report(target: str) -> None:
    from stagetrace import __version__
    from stagetrace.instrumentation.opentelemetry.sdk import judging
    from stagetrace.instrumentation.registry import state
    from stagetrace.process_status.files import samples_all
    from stagetrace.process_status.publish import sampler

    hooked, failed = state()
    seen = sorted({name.partition(".")[0] for name in hooked} - UNSAID)
    sampled = "" if samples_all(sampler()) else f", head sampler {sampler()}"
    broken = f"; not hooked: {', '.join(failed)} (`stagetrace doctor` says why)" if failed else ""
    log.info(
        f"{__version__} recording in process {os.getpid()} ({', '.join(seen)}), spans to {target}{sampled}, "
        f"judging by: {judging()}{broken}"
    )


@guarded
def flush_now() -> None:
    """Flush the current providers within the bound."""
    from opentelemetry import metrics, trace

    from stagetrace.instrumentation.opentelemetry.sdk import counter, policy

    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        force_flush = getattr(provider, "force_flush", None)
        if force_flush is not None and not _bounded(partial(force_flush, _flush_timeout_ms())):
            log.once("flush", f"a flush did not end within {SHUTDOWN_BOUND_S:g} s; what it did not deliver is lost.")
    exact_counts.finish(_bounded)
    if (promise := policy()) is not None:
        counter().say_unmatched(promise)
    judged.say()
    if (
        build := sys.modules.get("stagetrace.otlp.export.factory")
    ) is not None:  # not to be loaded for this, at the end
        build.say_lost()
    _withdraw()


def deliver_at_end() -> None:
    """Deliver before this process ends, if `multiprocessing` has made it: it then runs no exit handlers."""
    global _delivering  # noqa: PLW0603
    process = sys.modules.get("multiprocessing.process")
    if process is None or process.parent_process() is None or _delivering == os.getpid():
        return
    _delivering = os.getpid()
    from multiprocessing.util import Finalize

    Finalize(None, _deliver_last, exitpriority=1)


def _deliver_last() -> None:
    flush_now()
    sigterm.end_if_asked()


def _flush_timeout_ms() -> int:
    return int(_left_s * 900)  # less than `_bounded` waits: a flush that ends by itself can say what it has not done


def _bounded(function: Callable[[], Any]) -> bool:
    """Run `function`, wait for it as long as is left of SHUTDOWN_BOUND_S, and return whether it ended.

    All waits in vain share that bound, since a shutdown is made of several; one that was not in vain renews it.
    """
    global _left_s  # noqa: PLW0603
    done = Event()
    results: list[Any] = []

    def work() -> None:
        try:
            results.append(function())
        except Exception as error:  # noqa: BLE001
            report("stagetrace.runtime.provider.flush", error)
        done.set()

    started = time.monotonic()
    _worker().put(work)
    ended = done.wait(max(_left_s, 0.1))
    in_vain = not ended or results == [False]
    _left_s = max(0.0, _left_s - (time.monotonic() - started)) if in_vain else SHUTDOWN_BOUND_S
    return ended


def _worker() -> SimpleQueue[Callable[[], None]]:
    """Return the queue of a thread that runs what it is given, made anew in a forked process.

    It is there before the interpreter ends: from 3.12 on no thread can be started then. Where it hangs on a disk, to
    which it publishes meanwhile, another takes its place.
    """
    global _jobs, _jobs_pid, _publishing  # noqa: PLW0603
    forked = _jobs_pid != os.getpid()
    if _jobs is None or forked or _publishing:
        before, _publishing = _jobs, False
        _jobs, _jobs_pid = SimpleQueue(), os.getpid()
        try:
            start(partial(_work, _jobs), "stagetrace-flush")
        except RuntimeError:
            if before is None or forked:
                raise
            _jobs = before
        except BaseException:  # of a signal's handler: perhaps there is no thread at that queue
            _jobs = None if forked else before
            raise
    return _jobs


def _work(jobs: SimpleQueue[Callable[[], None]]) -> None:
    while jobs is _jobs or not jobs.empty():
        try:
            job = jobs.get(timeout=PUBLISH_EVERY_S)
        except Empty:
            job = _publish
        job()


def _publish_from_now_on(target: str) -> None:
    """Let `stagetrace doctor` see this process; `target` is where its spans go."""
    from stagetrace.process_status.publish import Publisher

    global _publisher  # noqa: PLW0603
    _publisher = Publisher(target)
    _worker().put(_publish)
    atexit.register(_withdraw)


def _publish() -> None:
    unrecognised_models.say_new()
    exact_counts.tick()
    if _publisher is not None:
        _on_disk(_publisher.publish)


def _on_disk(method: Callable[[], None]) -> None:
    global _publishing  # noqa: PLW0603
    _publishing = True
    method()
    _publishing = False


@guarded
def _withdraw() -> None:
    """Take back what was published; do not wait for a disk that hangs."""
    if _publisher is not None and _jobs is not None and _jobs_pid == os.getpid():
        done = Event()
        _jobs.put(partial(_on_disk, _publisher.withdraw))
        _jobs.put(done.set)
        done.wait(WITHDRAW_BOUND_S)
