"""A handful of requests, to the nanosecond, as a file of OTLP JSON lines: what golden outputs are of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stagetrace import semconv

if TYPE_CHECKING:
    from pathlib import Path

MS = 1_000_000
NOON = 1_772_366_400_000_000_000  # 2026-03-01T12:00:00Z


def trace_id(number: int) -> str:
    return f"{number:032x}"


def request(
    number: int, start_ms: float, stages: dict[str, float], *, service: str = "shop", pod: str = "a", **attributes: Any
) -> str:
    """Return a line with one request: its entry span and one span for each stage."""
    start = NOON + round(start_ms * MS)
    ms = attributes.pop("ms", sum(stages.values()))
    totals = {semconv.stage_total_ms(stage): float(took) for stage, took in stages.items()}
    name = attributes.pop("name", "POST /predict")
    spans = [_span(number, 1, None, name, (start, ms), 2, {**attributes, **totals})]
    at = start
    for place, (stage, took) in enumerate(stages.items(), 2):
        spans.append(_span(number, place, 1, stage, (at, took), 1, {semconv.ML_STAGE: stage}))
        at += round(took * MS)
    resource = {"attributes": _attributes({"service.name": service, "pod": pod})}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {}, "spans": spans}]}]})


def _span(
    trace: int,
    number: int,
    parent: int | None,
    name: str,
    time: tuple[int, float],
    kind: int,
    attributes: dict[str, Any],
) -> dict[str, Any]:
    start, ms = time
    return {
        "traceId": trace_id(trace),
        "spanId": f"{(trace * 16 + number) % 2**64:016x}",
        **({} if parent is None else {"parentSpanId": f"{(trace * 16 + parent) % 2**64:016x}"}),
        "name": name,
        "kind": kind,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + round(ms * MS)),
        "attributes": _attributes(attributes),
        "status": {},
    }


def _attributes(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    def value(found: Any) -> dict[str, Any]:
        if isinstance(found, bool):
            return {"boolValue": found}
        if isinstance(found, int):
            return {"intValue": str(found)}
        return {"doubleValue": found} if isinstance(found, float) else {"stringValue": found}

    return [{"key": key, "value": value(found)} for key, found in attributes.items()]


def verdict(*, breached: bool, **more: Any) -> dict[str, Any]:
    """Return the attributes of a judged request to /predict."""
    judged = {
        "http.route": "/predict",
        "http.request.method": "POST",
        "http.response.status_code": 200,
        semconv.SLA_BREACHED: breached,
        semconv.SLA_VERDICT: "breach" if breached else "good",
        semconv.SLA_OBJECTIVE: "POST /predict within 50ms",
        semconv.SLA_THRESHOLD_MS: 50.0,
    }
    if breached:
        judged |= {semconv.SLA_OVERRUN_MS: 30.0, semconv.SLA_SEVERITY: "major", semconv.SLA_BREACH_STAGE: "inference"}
    return {**judged, **more}


def model(name: str) -> dict[str, Any]:
    return {semconv.ML_MODEL_NAME: name}


HEALTH: dict[str, Any] = {"http.route": "/health", "http.response.status_code": 503}
SENT, STARVED = ({semconv.SLA_BREACH_CAUSE: word} for word in ("slow_download", "cpu_wait"))
LINES = (
    request(
        1,
        0,
        {"preprocess": 16, "inference": 60, "network.send": 4},
        **verdict(breached=True, **SENT),
        **model("Ranker"),
    ),
    request(2, 1000, {"preprocess": 8, "inference": 32}, pod="b", **verdict(breached=False), **model("Ranker")),
    request(3, 2000, {"preprocess": 4, "inference": 16}, tenant="it's", **verdict(breached=False), **model("Tagger")),
    request(4, 3000, {}, service="web", ms=1.5, name="GET", **HEALTH),
    request(
        5,
        4000,
        {"inference": 70, "mine": 10},
        tenant="blue",
        **verdict(breached=True, **STARVED),
        **model("Ranker"),
    ),
)


def write(folder: Path) -> Path:
    """Write the file and return its path."""
    path = folder / "spans.jsonl"
    path.write_text("\n".join([*LINES, ""]))
    return path
