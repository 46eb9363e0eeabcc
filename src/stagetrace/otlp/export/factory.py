"""From the environment to a processor that sends: the official exporter, watched, and the spool."""

from __future__ import annotations

import functools
import threading
import weakref
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetrace import config, log
from stagetrace.guard import guarded_end
from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
from stagetrace.otlp.export.exporter import CountingExporter
from stagetrace.otlp.export.spool import Spool, supported
from stagetrace.semconv import METRIC_SPANS, METRIC_SPANS_OUTCOME
from stagetrace.setting_problems import whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import Meter, Observation
    from opentelemetry.sdk.trace.export import SpanExporter

_processors: weakref.WeakSet[EncodingSpanProcessor] = weakref.WeakSet()
# Of `counts`, what is a final outcome; `from_spool` and `refused_from_spool` were `spooled` before, maybe elsewhere.
_STATES = ("received", "waiting", "in_hand")


def otlp_processor(make: Callable[[], SpanExporter], target: str) -> EncodingSpanProcessor:
    """Return a processor that sends through the official OTLP exporter that `make` makes, as STAGETRACE_SPOOL says."""
    exporter = CountingExporter(None, target, make)
    exporter.watch()
    processor = EncodingSpanProcessor(exporter, spool=_spool(target))
    _processors.add(processor)
    if not _load_before_threads_end():
        exporter.load()
    return processor


@functools.cache
def _load_before_threads_end() -> bool:
    """Let exporters be loaded at the latest when the interpreter begins to end; return False where that cannot be told.

    Later, in `atexit`, they cannot be: what they import uses a pool of threads.
    """
    import_module("concurrent.futures.thread")  # whose own end comes after what is registered from here on
    register = getattr(threading, "_register_atexit", None)
    if register is None:
        return False
    register(_load)
    return True


@guarded_end
def _load() -> None:
    for processor in processors():
        processor.load()


def _spool(target: str) -> Spool | None:
    folder = config.SPOOL.read()
    if not folder:
        return None
    if not supported():
        log.once("spool", "STAGETRACE_SPOOL needs file locks, which this system has not; spans wait in memory alone.")
        return None
    if len(_processors):
        log.once("spool", f"STAGETRACE_SPOOL is for one exporter alone; what {target} does not take waits in memory.")
        return None
    size = whole_number(config.SPOOL_MAX_BYTES)
    try:
        return Spool(Path(folder).expanduser().absolute(), size)
    except RuntimeError:
        log.once("spool", f"STAGETRACE_SPOOL={folder} is in nobody's home folder here; spans wait in memory alone.")
        return None


def processors() -> list[EncodingSpanProcessor]:
    """Return those of this process."""
    return list(_processors)


def hurry() -> None:
    """Let all processors send without delay from now on."""
    for processor in processors():
        processor.hurry()


def say_lost() -> None:
    """Let all processors say what was lost and not said yet."""
    for processor in processors():
        processor.say_lost()


def offer_counts(meter: Meter) -> None:
    """Offer what became of spans as an observable counter by outcome."""
    from opentelemetry.metrics import Observation

    def observe(_options: Any) -> Iterable[Observation]:
        totals: dict[str, int] = {}
        for processor in processors():
            for outcome, spans in processor.counts().items():
                totals[outcome] = totals.get(outcome, 0) + spans
        return [
            Observation(spans, {METRIC_SPANS_OUTCOME: outcome})
            for outcome, spans in totals.items()
            if outcome not in _STATES
        ]

    meter.create_observable_counter(METRIC_SPANS, [observe], unit="{span}", description="Spans by what became of them.")
