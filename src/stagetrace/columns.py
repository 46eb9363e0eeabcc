"""The one column schema: each column of a stored span and of the two relations, and the attribute that it holds.

The decoder's columns, both relations with their SQL, filters by column and the pages that list columns are made of it:
to give an attribute a column is to add a row here; its type is that of its line in `semconv`. Whatever has no row stays
in a span's `rest`, where filters, groups and the column `attributes` find it all the same.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from stagetrace import semconv

TEXT: Final = "VARCHAR"
WHOLE: Final = "BIGINT"
NUMBER: Final = "DOUBLE"
TRUTH: Final = "BOOLEAN"
SPANS: Final = "spans"
REQUESTS: Final = "requests"
ATTRIBUTE: Final = "attribute:"  # in front of a key of groups that is an attribute, also where a column has its name
_BOTH: Final = (SPANS, REQUESTS)
_NEITHER: Final = ()


class Column(NamedTuple):
    """One column. One that holds an attribute is NULL where that is absent, or of another type than the column."""

    name: str
    type: str  # of the relations, in DuckDB's words
    relations: tuple[str, ...]  # that have it; a stored column of neither is read as a part of another one
    attribute: str | None = None  # which it holds
    older: str | None = None  # its name before OpenTelemetry's semantic conventions 1.23, read where it is absent
    in_requests: str | None = None  # its name there, where that is another one
    since: int = 0  # GENERATION that it came with: what was stored before has the attribute in its `rest`
    made: str | None = None  # what it is in `requests`, as an expression over the columns that are loaded
    holds: str = ""  # what it is, where it is no attribute


_TYPES: Final = {semconv.STRING: TEXT, semconv.INT: WHOLE, semconv.DOUBLE: NUMBER, semconv.BOOLEAN: TRUTH}


def _column(name: str, relations: tuple[str, ...], attribute: str, **more: Any) -> Column:
    """Return the column of one of our own attributes."""
    return Column(name, _TYPES[semconv.ATTRIBUTES[attribute].kind], relations, attribute, **more)


# The least probability that a sampling threshold can express. Bounds are written out: SQL takes no other form.
LEAST_PROBABILITY: Final = 2.0**-56
_KNOWN: Final = f"BETWEEN {LEAST_PROBABILITY!r} AND 1"

SCHEMA: Final[tuple[Column, ...]] = (
    Column("trace_id", TEXT, _BOTH, holds="lower-case hex, 32 digits"),
    Column("span_id", TEXT, _BOTH, holds="lower-case hex, 16 digits"),
    Column("parent_span_id", TEXT, (SPANS,), holds="NULL at a root"),
    Column("service", TEXT, _BOTH, holds="the resource's `service.name`"),
    Column("name", TEXT, _BOTH, holds="as recorded"),
    Column("kind", TEXT, (SPANS,), holds="`SERVER`, `CLIENT`, `INTERNAL`, `PRODUCER`, `CONSUMER` or `UNSPECIFIED`"),
    _column("stage", (SPANS,), semconv.ML_STAGE),
    Column("route", TEXT, _BOTH, "http.route", holds="of a request without it: `rpc.method`"),
    Column("rpc_method", TEXT, _NEITHER, "rpc.method"),
    Column("method", TEXT, _BOTH, "http.request.method", older="http.method"),
    Column("http_status", WHOLE, _BOTH, "http.response.status_code", older="http.status_code"),
    _column("model", _BOTH, semconv.ML_MODEL_NAME),
    _column("model_version", _BOTH, semconv.ML_MODEL_VERSION, since=1),
    _column("framework", _BOTH, semconv.ML_FRAMEWORK),
    _column("batch_size", _BOTH, semconv.ML_BATCH_SIZE),
    _column("request_bytes", _BOTH, semconv.HTTP_REQUEST_BODY_SIZE, since=2),
    Column("status", TEXT, _BOTH, holds="`UNSET`, `OK` or `ERROR`"),
    Column("start_unix_nano", WHOLE, _BOTH, holds="nanoseconds since 1970 UTC"),
    Column("end_unix_nano", WHOLE, _BOTH, holds="likewise"),
    Column("duration_ms", NUMBER, _BOTH, holds="computed from the integer times"),
    Column("is_entry", TRUTH, (SPANS,), holds="whether it is a request: its kind is `SERVER`"),
    _column("breached", _BOTH, semconv.SLA_BREACHED),
    _column("verdict", _BOTH, semconv.SLA_VERDICT),
    _column("objective", _BOTH, semconv.SLA_OBJECTIVE),
    _column("target", _BOTH, semconv.SLA_TARGET, since=1),  # NULL: 99 % over 28 days
    _column("verdicts", _BOTH, semconv.SLA_VERDICTS, since=4),  # NULL: at most one objective judged it
    _column("segment", _BOTH, semconv.SLA_SEGMENT, since=4),
    _column("excluded_reason", _BOTH, semconv.SLA_EXCLUDED_REASON, since=4),
    _column("over_budget", _BOTH, semconv.SLA_OVER_BUDGET, since=4),
    _column("deadline_source", _BOTH, semconv.SLA_DEADLINE_SOURCE, since=4),
    _column("threshold_ms", _BOTH, semconv.SLA_THRESHOLD_MS),
    _column("overrun_ms", _BOTH, semconv.SLA_OVERRUN_MS),
    _column("severity", _BOTH, semconv.SLA_SEVERITY),
    _column("breach_stage", _BOTH, semconv.SLA_BREACH_STAGE, in_requests="stage"),
    _column("cause", _BOTH, semconv.SLA_BREACH_CAUSE),
    _column("code", _BOTH, semconv.SLA_BREACH_CODE, since=3),
    _column("process_cpu_ms", _BOTH, semconv.STAGETRACE_PROCESS_CPU_MS, since=5),
    _column("evidence", (REQUESTS,), semconv.SLA_BREACH_EVIDENCE),
    _column("missed", _NEITHER, semconv.SLA_BREACH_MISSED),
    _column("upgraded", _BOTH, semconv.SLA_UPGRADED),
    _column(
        "sampling_probability",
        _BOTH,
        semconv.SLA_SAMPLING_PROBABILITY,
        # A value that is no probability counts as unknown (0), and 1 as none. As `relations.probability_of`.
        made="CASE WHEN loaded.sampling_probability = 1 THEN NULL "
        f"WHEN loaded.sampling_probability {_KNOWN} THEN loaded.sampling_probability "
        "WHEN loaded.sampling_probability IS NOT NULL THEN 0.0::DOUBLE END",
    ),
    Column(
        "weight",
        NUMBER,
        (REQUESTS,),
        # A breach counts once: none is dropped. As `relations.weight_of`.
        made=f"CASE WHEN loaded.sampling_probability {_KNOWN} AND NOT coalesce(breached, false) "
        "THEN 1 / loaded.sampling_probability ELSE 1.0::DOUBLE END",
        holds="requests it stands for: 1, or 1 / `sampling_probability` where that is known and it is no breach",
    ),
    *(
        Column(f"{stage.replace('.', '_')}_ms", NUMBER, (REQUESTS,), semconv.stage_total_ms(stage))
        for stage in semconv.STAGES
    ),
    Column("other_ms", NUMBER, (REQUESTS,), holds="sum of all other `ml.stage.<name>.ms`"),
    Column(
        "start_time",
        "TIMESTAMP",
        (REQUESTS,),
        made="make_timestamp(start_unix_nano // 1000)",
        holds="`start_unix_nano` in UTC, to the microsecond",
    ),
    Column("url_path", TEXT, (REQUESTS,), "url.path", holds="else `http.target` without its query"),
    Column("http_target", TEXT, _NEITHER, "http.target"),
    Column(
        "stages",
        "MAP(VARCHAR, DOUBLE)",
        (REQUESTS,),
        holds="stage to its total in ms, of every `ml.stage.<name>.ms`: `stages['tokenize']`",
    ),
    Column("attributes", "MAP(VARCHAR, VARCHAR)", _BOTH, holds="all of them, in text form: `attributes['tenant']`"),
    Column("resource", "MAP(VARCHAR, VARCHAR)", (SPANS,), holds="the resource's attributes likewise"),
)
GENERATION: Final = max(column.since for column in SCHEMA)


_OLDER: Final = {one.name: one.older for one in semconv.ATTRIBUTES.values() if one.older is not None}
_SAME: Final = _OLDER | {older: name for name, older in _OLDER.items()}


def names_of(attribute: str) -> tuple[str, ...]:
    """Return an attribute's name and, if it was renamed, its other one: a span keeps the name that it was sent with."""
    return (attribute, _SAME[attribute]) if attribute in _SAME else (attribute,)


def older_name(column: Column) -> str:
    """Return the stored column of the attribute's older name."""
    return f"old_{column.name}"
