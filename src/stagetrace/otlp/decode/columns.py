"""The columns of a stored span, and which attributes have one of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.columns import NUMBER, SCHEMA, TEXT, TRUTH, WHOLE, older_name
from stagetrace.errors import StoreError
from stagetrace.system.packages import requirement

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


_KINDS: Final = {TEXT: STRING, TRUTH: BOOL, WHOLE: INT, NUMBER: DOUBLE}


def _typed_columns() -> Iterator[tuple[str, Typed]]:
    for column in SCHEMA:
        if column.attribute is not None:
            yield column.attribute, Typed(column.name, _KINDS[column.type])
        if column.older is not None:
            yield column.older, Typed(older_name(column), _KINDS[column.type])


# Attribute -> its column. Every other attribute, and every value of another type, is kept in `rest`.
TYPED: Final = dict(_typed_columns())
COLUMNS: Final = tuple(typed.column for typed in TYPED.values())
OTHER_MS: Final = "other_ms"  # sum of the totals of stages without a column; these are in `rest`
REST: Final = "rest"

# What each span has.
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
    """Return the module pyarrow, or raise StoreError, which names the command that installs it."""
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


def join_tables(parts: Sequence[pa.Table]) -> pa.Table:
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
