"""Answer the questions of `stagetrace doctor` to the recording side, in a process of its own.

Prints one JSON object: `patches` (modules of libraries), `native`, `sources` (for each
why it is not read, None if it is), and `targets`: for each exporter that OTEL_* asks for its `exporter`,
`endpoint` (None where it is no OTLP), `delivered`, `reason`, `seconds` of an export that is real and holds no span, or
one of the trace whose id is given as an argument.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from typing import Any, Final

from stagetrace import settings

TIMEOUT_S: Final = 3
_USER: Final = re.compile(r"[^\s/@]+@")


def main() -> None:
    """Print the object, and end at once: there is nothing to wait for."""
    logging.disable(logging.CRITICAL)  # what exporters log is in the result
    _bound()
    from stagetrace.otlp import encode
    from stagetrace.patches.registry import wanted
    from stagetrace.sources.registry import states

    targets = [_target(name) for name in settings.exporters("TRACES", "otlp")]
    found = {
        "patches": sorted(wanted()),
        "native": bool(getattr(encode, "NATIVE", False)),
        "sources": states(),
        "targets": targets,
    }
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


def _bound() -> None:
    """Let no export take longer than TIMEOUT_S."""
    asked = settings.TRACES_TIMEOUT.read() or settings.TIMEOUT.read()
    try:
        timeout = min(float(asked), TIMEOUT_S)
    except ValueError:
        timeout = TIMEOUT_S
    settings.otel()[settings.TRACES_TIMEOUT.name] = f"{timeout:g}"


def _target(name: str) -> dict[str, Any]:
    is_otlp = name in settings.OTLP_EXPORTERS.values()
    endpoint = _USER.sub("", settings.endpoint()) if is_otlp else None
    started = time.monotonic()
    try:
        delivered, reason = _export(name, _request()) if is_otlp else _loaded(name)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is the result
        delivered, reason = False, f"{type(error).__name__}: {error}"
    seconds = round(time.monotonic() - started, 3)
    reason = _USER.sub("", reason)
    return {"exporter": name, "endpoint": endpoint, "delivered": delivered, "reason": reason, "seconds": seconds}


def _loaded(name: str) -> tuple[bool, str]:
    """Load an exporter that is not OTLP's; raise where it cannot be loaded."""
    from importlib.metadata import entry_points

    group = "opentelemetry_traces_exporter"
    for point in entry_points(group=group, name=name):
        point.load()
        return True, ""
    raise LookupError("; ".join(settings.no_exporter(name, (one.name for one in entry_points(group=group)))))


def _request() -> bytes:
    """Return the request to send."""
    if len(sys.argv) == 1:
        return b""
    from random import getrandbits

    from stagetrace.otlp.encode import encode_span, resource_spans
    from stagetrace.request.spans import SCOPE
    from stagetrace.tracing.resource import resource
    from stagetrace.tracing.span import Span
    from stagetrace.tracing.span_context import SAMPLED, SpanContext

    context = SpanContext(int(sys.argv[1], 16), getrandbits(64) or 1, is_remote=False, trace_flags=SAMPLED)
    now = time.time_ns()
    span = Span("stagetrace doctor", context, resource=resource(), start_time=now, end_time=now)
    return resource_spans(span.resource, {SCOPE: [encode_span(span)]})


def _export(name: str, request: bytes) -> tuple[bool, str]:
    """Send a request by the transport that spans take."""
    from functools import partial

    from stagetrace.otlp.export.batch_processor import open_transport
    from stagetrace.otlp.export.client import ExportClient

    outcome = ExportClient(partial(open_transport, name), name).send(request)
    return outcome.delivered, outcome.reason or ("" if outcome.delivered else "no reason given")


if __name__ == "__main__":
    main()
