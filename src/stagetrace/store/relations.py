"""The two relations that every analysis and `stagetrace query` see, alike over every store: their columns and types.

Absent attributes, and those of another type than their column, are NULL. Entry spans are the spans of kind SERVER.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace import semconv
from stagetrace.store.entries import HTTP_ROUTE

if TYPE_CHECKING:
    from collections.abc import Mapping

# Column -> (attribute, DuckDB type); of both relations unless said otherwise. `breached` is NULL where unjudged.
TYPED: Final[Mapping[str, tuple[str, str]]] = {
    "route": (HTTP_ROUTE, "VARCHAR"),  # of an entry span: as `entries.route`
    "method": ("http.request.method", "VARCHAR"),
    "http_status": ("http.response.status_code", "BIGINT"),
    "model": (semconv.ML_MODEL_NAME, "VARCHAR"),
    "model_version": (semconv.ML_MODEL_VERSION, "VARCHAR"),
    "framework": (semconv.ML_FRAMEWORK, "VARCHAR"),
    "batch_size": (semconv.ML_BATCH_SIZE, "BIGINT"),
    "breached": (semconv.SLA_BREACHED, "BOOLEAN"),
    "verdict": (semconv.SLA_VERDICT, "VARCHAR"),
    "objective": (semconv.SLA_OBJECTIVE, "VARCHAR"),
    "target": (semconv.SLA_TARGET, "VARCHAR"),  # NULL: 99 % over 28 days
    "threshold_ms": (semconv.SLA_THRESHOLD_MS, "DOUBLE"),
    "overrun_ms": (semconv.SLA_OVERRUN_MS, "DOUBLE"),
    "severity": (semconv.SLA_SEVERITY, "VARCHAR"),
    "breach_stage": (semconv.SLA_BREACH_STAGE, "VARCHAR"),  # in `requests`: `stage`
    "cause": (semconv.SLA_BREACH_CAUSE, "VARCHAR"),
    "evidence": (semconv.SLA_BREACH_EVIDENCE, "VARCHAR"),  # in `requests` alone
    "upgraded": (semconv.SLA_UPGRADED, "BOOLEAN"),
    "sampling_probability": (semconv.SLA_SAMPLING_PROBABILITY, "DOUBLE"),
    "stage": (semconv.ML_STAGE, "VARCHAR"),  # in `spans` alone
}

# Column -> the name of its attribute before OpenTelemetry's semantic conventions 1.23, read where that is absent.
OLDER: Final[Mapping[str, str]] = {"method": "http.method", "http_status": "http.status_code"}

SPANS: Final[Mapping[str, str]] = {
    "trace_id": "VARCHAR",
    "span_id": "VARCHAR",
    "parent_span_id": "VARCHAR",
    "service": "VARCHAR",
    "name": "VARCHAR",
    "kind": "VARCHAR",
    "status": "VARCHAR",
    "start_unix_nano": "BIGINT",
    "end_unix_nano": "BIGINT",
    "duration_ms": "DOUBLE",
    "is_entry": "BOOLEAN",
    "stage": "VARCHAR",
    "route": "VARCHAR",
    "method": "VARCHAR",
    "http_status": "BIGINT",
    "model": "VARCHAR",
    "model_version": "VARCHAR",
    "framework": "VARCHAR",
    "batch_size": "BIGINT",
    "breached": "BOOLEAN",
    "verdict": "VARCHAR",
    "objective": "VARCHAR",
    "target": "VARCHAR",
    "breach_stage": "VARCHAR",
    "severity": "VARCHAR",
    "cause": "VARCHAR",
    "threshold_ms": "DOUBLE",
    "overrun_ms": "DOUBLE",
    "upgraded": "BOOLEAN",
    "sampling_probability": "DOUBLE",
    "attributes": "MAP(VARCHAR, VARCHAR)",  # all of them, in text form (`rows.as_text`)
    "resource": "MAP(VARCHAR, VARCHAR)",
}

# Stage -> column with its total, which the entry span itself carries: `requests` is a filter of `spans`, never a join.
STAGE_COLUMNS: Final[Mapping[str, str]] = {stage: f"{stage.replace('.', '_')}_ms" for stage in semconv.STAGES}
OTHER_STAGES: Final = "other_ms"

REQUESTS: Final[Mapping[str, str]] = {
    "trace_id": "VARCHAR",
    "span_id": "VARCHAR",
    "service": "VARCHAR",
    "name": "VARCHAR",
    "route": "VARCHAR",
    "method": "VARCHAR",
    "http_status": "BIGINT",
    "model": "VARCHAR",
    "model_version": "VARCHAR",
    "framework": "VARCHAR",
    "batch_size": "BIGINT",
    "status": "VARCHAR",
    "start_unix_nano": "BIGINT",
    "end_unix_nano": "BIGINT",
    "duration_ms": "DOUBLE",
    "breached": "BOOLEAN",
    "verdict": "VARCHAR",
    "objective": "VARCHAR",
    "target": "VARCHAR",
    "threshold_ms": "DOUBLE",
    "overrun_ms": "DOUBLE",
    "severity": "VARCHAR",
    "stage": "VARCHAR",
    "cause": "VARCHAR",
    "evidence": "VARCHAR",
    "upgraded": "BOOLEAN",
    "sampling_probability": "DOUBLE",
    "weight": "DOUBLE",  # how many requests it stands for (`weight_of`); never NULL
    "network_receive_ms": "DOUBLE",
    "queue_ms": "DOUBLE",
    "preprocess_ms": "DOUBLE",
    "handler_ms": "DOUBLE",
    "inference_ms": "DOUBLE",
    "postprocess_ms": "DOUBLE",
    "network_send_ms": "DOUBLE",
    OTHER_STAGES: "DOUBLE",
    "start_time": "TIMESTAMP",  # of start_unix_nano, in UTC, microseconds
    "url_path": "VARCHAR",  # of an HTTP request, as it was asked for, without query
    "stages": "MAP(VARCHAR, DOUBLE)",  # stage -> total ms, as `entries.named_stages`
    "attributes": "MAP(VARCHAR, VARCHAR)",
}
# Those that a store decodes row by row, so that a question that names none of them is cheaper.
DECODED: Final = frozenset({"attributes"})


LEAST_PROBABILITY: Final = 2.0**-56  # the least that a sampling threshold can say


def probability_of(found: float | None) -> float | None:
    """Return what an entry span says of its sampling: 0 where that is no probability, None where it is certainty."""
    if found is None or found == 1:
        return None
    return found if LEAST_PROBABILITY <= found < 1 else 0.0


def weight_of(probability: float | None, *, breached: bool | None) -> float:
    """Return how many requests a row of `requests` stands for, as `sql/selected.sql` has it.

    A breach stands for itself, for the head sampler of its process drops none; any other request for as many as its
    probability says. Where that is not known it counts as one, which `estimates.Sample` tells.
    """
    return 1 / probability if probability and not breached else 1.0
