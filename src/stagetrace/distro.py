"""The process's provider, where nobody else sets one: the official SDK as the OTEL_* variables say.

Prepared when a server is about to serve, not before: a process that serves nothing loads no SDK, and the user's own
start-up code goes first.
"""

from __future__ import annotations

import atexit
import os
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from stagetrace import config, log
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

SHUTDOWN_BOUND_S = 5.0

_lock = threading.Lock()  # guards _ready
_ready = False
_jobs: SimpleQueue[Callable[[], None]] | None = None
_jobs_pid = 0
_said_counts: dict[tuple[str, str], int] = {}


def ready() -> bool:
    """Return whether `prepare` has run in this process."""
    return _ready


async def prepare() -> None:
    """Make sure that a tracer provider is set; in a thread, since the exporter takes 0.1 s to load."""
    await _in_thread(prepare_now)


async def flush() -> None:
    """Deliver what has ended, for at most SHUTDOWN_BOUND_S, and say what was judged."""
    await _in_thread(flush_now)


async def _in_thread(function: Callable[[], None]) -> None:
    try:
        from anyio import CapacityLimiter, to_thread

        # A limiter of its own: handlers that hang in all threads of the pool must not hold back the shutdown.
        await to_thread.run_sync(function, limiter=CapacityLimiter(1))
    except Exception as error:  # noqa: BLE001
        from stagetrace.guard import report

        report(f"stagetrace.distro.{function.__name__}", error)


@guarded
def prepare_now() -> None:
    """Set a provider if there is none, once in each process."""
    global _ready  # noqa: PLW0603
    with _lock:
        if _ready:
            return
        try:
            from opentelemetry import trace

            if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
                target = _set_tracer_provider()
            else:
                target = "the tracer provider that this service set"
            _set_meter_provider()
            _observe()
            _worker()
            _report(target)
        finally:
            _ready = True  # not before: a request that came in meanwhile would go unrecorded


def _set_tracer_provider() -> str:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from stagetrace.otlp.exporter import CountingExporter
    from stagetrace.otlp.processor import EncodingSpanProcessor

    # Its own exit handler may wait half a minute for a Collector that is down: ours is bounded.
    provider = TracerProvider(shutdown_on_exit=False)
    targets = []
    for name in config.exporters("TRACES", "otlp"):
        make = _entry_point("opentelemetry_traces_exporter", name)
        if make is not None:
            targets.append(f"{name} {config.endpoint()}" if name.startswith("otlp") else name)
            exporter = CountingExporter(make(), targets[-1])
            encodes = name.startswith("otlp_proto_")
            provider.add_span_processor((EncodingSpanProcessor if encodes else BatchSpanProcessor)(exporter))
    trace.set_tracer_provider(provider)
    atexit.register(_bounded, provider.shutdown)
    return ", ".join(targets) or "nowhere"


def _set_meter_provider() -> None:
    """Set a meter provider where OTEL_METRICS_EXPORTER asks for one; by default there is none."""
    from opentelemetry import metrics

    makers = [_entry_point("opentelemetry_metrics_exporter", name) for name in config.exporters("METRICS", "none")]
    if not any(makers) or type(metrics.get_meter_provider()).__name__ != "_ProxyMeterProvider":
        return
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    readers = [PeriodicExportingMetricReader(make()) for make in makers if make is not None]
    provider = MeterProvider(readers, shutdown_on_exit=False)
    metrics.set_meter_provider(provider)
    atexit.register(_bounded, provider.shutdown)


def _entry_point(group: str, name: str) -> Callable[[], Any] | None:
    from importlib.metadata import entry_points

    for point in entry_points(group=group, name=name):
        try:
            loaded: Callable[[], Any] = point.load()
        except Exception as error:  # noqa: BLE001
            log.once(
                group, f"cannot load the exporter {name!r} ({type(error).__name__}: {error}); nothing is exported."
            )
            return None
        return loaded
    known = ", ".join(sorted(point.name for point in entry_points(group=group)))
    log.once(group, f"there is no exporter {name!r}; nothing is exported.\nOTEL_TRACES_EXPORTER can be: {known}, none.")
    return None


def _observe() -> None:
    """Offer the count of judged requests as a metric to whatever meter provider there is or will be."""
    from opentelemetry import metrics

    from stagetrace.instrumentation.otel_sdk import counter
    from stagetrace.semconv import METRIC_REQUESTS, SLA_OBJECTIVE, SLA_VERDICT

    def observe(_options: Any) -> list[metrics.Observation]:
        return [
            metrics.Observation(count, {SLA_OBJECTIVE: objective, SLA_VERDICT: verdict})
            for (objective, verdict), count in counter().counts().items()
        ]

    metrics.get_meter("stagetrace").create_observable_counter(
        METRIC_REQUESTS, [observe], unit="{request}", description="Judged requests by objective and verdict."
    )


def _report(target: str) -> None:
    from stagetrace import __version__
    from stagetrace.instrumentation.otel_sdk import policy

    rules = policy()
    promise = "; ".join(rule.name for rule in rules.objectives) if rules else "no promise given (STAGETRACE_SLA)"
    log.info(f"{__version__} recording in process {os.getpid()}, spans to {target}, judging by: {promise}")


@guarded
def flush_now() -> None:
    """Flush the current providers within the bound."""
    from opentelemetry import metrics, trace

    from stagetrace.instrumentation.otel_sdk import counter, policy

    for provider in (trace.get_tracer_provider(), metrics.get_meter_provider()):
        force_flush = getattr(provider, "force_flush", None)
        if force_flush is not None and not _bounded(force_flush):
            log.warning(f"not all spans were delivered within {SHUTDOWN_BOUND_S:g} s; the rest is lost.")
    promise = policy()
    if promise is not None:
        counter().say_unmatched(promise)
    _say_counts(counter().counts())


def _say_counts(counts: dict[tuple[str, str], int]) -> None:
    global _said_counts  # noqa: PLW0603
    if counts and counts != _said_counts:
        _said_counts = counts
        breaches = sum(count for (_, verdict), count in counts.items() if verdict == "breach")
        log.info(f"judged {sum(counts.values())} requests, {breaches} broke their promise")


def _bounded(function: Callable[[], Any]) -> bool:
    """Run `function` for at most SHUTDOWN_BOUND_S; return whether it ended. It goes on alone if it did not."""
    done = threading.Event()

    def work() -> None:
        guarded(function)()
        done.set()

    _worker().put(work)
    return done.wait(SHUTDOWN_BOUND_S)


def _worker() -> SimpleQueue[Callable[[], None]]:
    """Return the queue of a thread that runs what it is given, made anew in a forked process.

    It is there before the interpreter ends: from 3.12 on no thread can be started then.
    """
    global _jobs, _jobs_pid
    if _jobs is None or _jobs_pid != os.getpid():
        _jobs, _jobs_pid = SimpleQueue(), os.getpid()
        threading.Thread(target=_work, args=(_jobs,), name="stagetrace-flush", daemon=True).start()
    return _jobs


def _work(jobs: SimpleQueue[Callable[[], None]]) -> None:
    while True:
        jobs.get()()
