"""The columns of a stored span, and which attributes have one of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.errors import StoreError
from stagetrace.origin import requirement

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

# The oneof fields of an OTLP AnyValue.
STRING: Final = "string_value"
BOOL: Final = "bool_value"
INT: Final = "int_value"
DOUBLE: Final = "double_value"
_ARROW: Final = {STRING: "string", BOOL: "bool_", INT: "int64", DOUBLE: "float64"}


class Typed(NamedTuple):
    """A column that holds one attribute, where that has exactly the type `kind`."""

    column: str
    kind: str


# Attribute -> its column. Every other attribute, and every value of another type, is kept in `rest`.
TYPED: Final[dict[str, Typed]] = {
    semconv.ML_STAGE: Typed("stage", STRING),
    "http.route": Typed("route", STRING),
    "rpc.method": Typed("rpc_method", STRING),
    "http.request.method": Typed("method", STRING),
    "http.response.status_code": Typed("http_status", INT),
    # The names before OpenTelemetry's semantic conventions 1.23.
    "http.method": Typed("old_method", STRING),
    "http.status_code": Typed("old_http_status", INT),
    "url.path": Typed("url_path", STRING),
    "http.target": Typed("http_target", STRING),
    semconv.ML_MODEL_NAME: Typed("model", STRING),
    semconv.ML_MODEL_VERSION: Typed("model_version", STRING),
    semconv.ML_FRAMEWORK: Typed("framework", STRING),
    semconv.ML_BATCH_SIZE: Typed("batch_size", INT),
    semconv.SLA_BREACHED: Typed("breached", BOOL),
    semconv.SLA_VERDICT: Typed("verdict", STRING),
    semconv.SLA_OBJECTIVE: Typed("objective", STRING),
    semconv.SLA_TARGET: Typed("target", STRING),
    semconv.SLA_THRESHOLD_MS: Typed("threshold_ms", DOUBLE),
    semconv.SLA_OVERRUN_MS: Typed("overrun_ms", DOUBLE),
    semconv.SLA_SEVERITY: Typed("severity", STRING),
    semconv.SLA_BREACH_STAGE: Typed("breach_stage", STRING),
    semconv.SLA_BREACH_CAUSE: Typed("cause", STRING),
    semconv.SLA_BREACH_EVIDENCE: Typed("evidence", STRING),
    semconv.SLA_BREACH_MISSED: Typed("missed", STRING),
    semconv.SLA_UPGRADED: Typed("upgraded", BOOL),
    semconv.SLA_SAMPLING_PROBABILITY: Typed("sampling_probability", DOUBLE),
    **{semconv.stage_total_ms(stage): Typed(f"{stage.replace('.', '_')}_ms", DOUBLE) for stage in semconv.STAGES},
}
# The attributes that got their column later, and whose values are in the `rest` of what was stored before.
LATER: Final = (semconv.ML_MODEL_VERSION,)
GENERATION: Final = 1  # grows with each addition to LATER
COLUMNS: Final = tuple(typed.column for typed in TYPED.values())
OTHER_MS: Final = "other_ms"  # sum of the totals of stages without a column; these are in `rest`
REST: Final = "rest"

# What each span has, in the order of `Lists.fixed`.
FIXED: Final[tuple[tuple[str, str], ...]] = (
    ("trace_id", "binary"),
    ("span_id", "binary"),
    ("parent_span_id", "binary"),
    ("name", "string"),
    ("kind", "int32"),
    ("status", "int32"),  # NULL where the span has no status at all
    ("start_unix_nano", "int64"),
    ("end_unix_nano", "int64"),
    ("flags", "int64"),
)
# Alike for runs of spans, so kept as numbers into a dictionary.
SHARED: Final[tuple[tuple[str, str], ...]] = (("service", "string"), ("resource", "binary"), ("scope", "binary"))
SPARSE: Final[tuple[tuple[str, str], ...]] = (
    *((typed.column, _ARROW[typed.kind]) for typed in TYPED.values()),
    (OTHER_MS, "float64"),
    (REST, "binary"),
)
SEQUENCE: Final = "seq"  # number of the request that brought the span: order of arrival
ALL: Final[tuple[tuple[str, str], ...]] = (*FIXED, *SHARED, *SPARSE, (SEQUENCE, "int64"))


def arrow() -> Any:
    """Return the module pyarrow, or raise StoreError that says how to get it."""
    try:
        import pyarrow as pa
    except ImportError:
        message = f"stored spans need pyarrow and duckdb\npip install {requirement('backend')}"
        raise StoreError(message) from None
    return pa


def schema() -> pa.Schema:
    """Return all columns and their types, dictionaries decoded."""
    pa = arrow()
    return pa.schema([pa.field(name, getattr(pa, kind)()) for name, kind in ALL])


def joined(parts: Sequence[pa.Table]) -> pa.Table:
    """Return some tables as one, the shared columns dictionary-coded alike: they repeat long values.

    Columns that none of them has are not there, and stand for nothing but NULL.
    """
    shared = {name for name, _ in SHARED}
    coded = []
    for part in parts:
        fields = [field for field in schema() if field.name in set(part.column_names)]
        columns = [
            part[field.name].dictionary_encode() if field.name in shared else part[field.name].cast(field.type)
            for field in fields
        ]
        coded.append(arrow().table(columns, names=[field.name for field in fields]))
    return arrow().concat_tables(coded, promote_options="default").unify_dictionaries()
