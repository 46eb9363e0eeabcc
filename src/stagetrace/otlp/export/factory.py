"""Make the processor that sends spans by OTLP, with its transport and its spool, as the environment says."""

from __future__ import annotations

import functools
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagetrace import config, log
from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
from stagetrace.otlp.export.client import ExportClient
from stagetrace.otlp.export.process_limits import require
from stagetrace.otlp.export.spool import Spool, supported
from stagetrace.semconv import METRIC_SPANS, METRIC_SPANS_OUTCOME
from stagetrace.setting_problems import whole_number

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import Meter, Observation

    from stagetrace.otlp.export.transport import Transport

OTLP_EXPORTERS = ("otlp_proto_grpc", "otlp_proto_http")  # the official ones, whose work transports of our own do
_processors: weakref.WeakSet[EncodingSpanProcessor] = weakref.WeakSet()
# The counts that are no final outcome; `from_spool` and `refused_from_spool` were `spooled` before, maybe elsewhere.
_STATES = ("received", "waiting", "in_hand")


def otlp_processor(name: str, target: str) -> EncodingSpanProcessor:
    """Return a processor that sends as that one of OTLP_EXPORTERS would, with a spool if STAGETRACE_SPOOL is set.

    `target` is how messages name the receiver.
    """
    client = ExportClient(functools.partial(open_transport, name), target)
    processor = EncodingSpanProcessor(client, spool=_spool(target))
    _processors.add(processor)
    return processor


def open_transport(name: str, signal: str = "TRACES") -> Transport:
    """Open the transport in place of one of OTLP_EXPORTERS; raise where a setting, a package or room is missing.

    `signal`: what it sends, TRACES or METRICS.
    """
    require(grpc=name == "otlp_proto_grpc")
    from stagetrace.otlp.export.transport import TRANSPORTS

    return TRANSPORTS[name](signal)


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


def deliver_immediately() -> None:
    """Let all processors send without delay from now on."""
    for processor in processors():
        processor.deliver_immediately()


def report_lost() -> None:
    """Let all processors log what was lost and not logged yet."""
    for processor in processors():
        processor.report_lost()


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
