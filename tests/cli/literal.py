"""A handful of requests, to the nanosecond, as a file of OTLP JSON lines: what golden outputs are of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from answers.made import MS, NOON, Made, as_json, messages
from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def trace_id(number: int) -> str:
    return f"{number:032x}"


def request(number: int, start_ms: float, stages: dict[str, float], *, pod: str = "a", **rest: Any) -> str:
    """Return a line with one request: its entry span and one span for each stage. What `Made` lacks is an attribute."""
    bare: dict[str, Any] = {"http.route": None, "http.request.method": None, "http.response.status_code": None}
    fields = {name: rest.pop(name) for name in ("service", "name", "duration_ms", "model") if name in rest}
    made = Made(
        number,
        NOON + round(start_ms * MS),
        stages,
        with_stage_spans=True,
        attributes=bare | rest,
        resource={"pod": pod},
        **fields,
    )
    (message,) = messages([made])
    return json.dumps(as_json(message))


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


HEALTH: dict[str, Any] = {"http.route": "/health", "http.response.status_code": 503}
GOOD = verdict(breached=False)
SENT, STARVED = (verdict(breached=True, **{semconv.SLA_BREACH_CAUSE: word}) for word in ("slow_download", "cpu_wait"))
LINES = (
    request(1, 0, {"preprocess": 16, "inference": 60, "network.send": 4}, model="Ranker", **SENT),
    request(2, 1000, {"preprocess": 8, "inference": 32}, pod="b", model="Ranker", **GOOD),
    request(3, 2000, {"preprocess": 4, "inference": 16}, tenant="it's", model="Tagger", **GOOD),
    request(4, 3000, {}, service="web", duration_ms=1.5, name="GET", **HEALTH),
    request(5, 4000, {"inference": 70, "mine": 10}, tenant="blue", model="Ranker", **STARVED),
)


def write(folder: Path, lines: Iterable[str] = LINES) -> Path:
    """Write a file of lines and return its path."""
    path = folder / "spans.jsonl"
    path.write_text("\n".join([*lines, ""]))
    return path
