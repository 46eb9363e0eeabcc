"""Stored columns (`otlp.decode.columns`) as the relation `loaded`, the same for all stores whose spans are decoded.

The attributes beyond its columns are decoded from a row's bytes when a query reads them, and not before.
"""

# ruff: noqa: S608 -- column names are constants, paths are of our own making; every value is bound

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv
from stagetrace.columns import SCHEMA, names_of, older_name
from stagetrace.otlp.decode.columns import (
    ALL,
    BOOL,
    COLUMNS,
    DOUBLE,
    INT,
    OTHER_MS,
    REST,
    SEQUENCE,
    STRING,
    TYPED,
)
from stagetrace.otlp.decode.spans import attribute_of
from stagetrace.otlp.decode.to_otlp import resource_spans
from stagetrace.otlp.decode.wire import varint
from stagetrace.semconv import as_text, named_stages
from stagetrace.store.database import needs
from stagetrace.store.reductions import LOADED, REQUESTS, STAGE_COLUMNS, Engine
from stagetrace.store.rows import value, values

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

KINDS: Final = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
SERVER_KIND: Final = KINDS.index("SERVER")
STATUSES: Final = ("UNSET", "OK", "ERROR")
ROUTE: Final = "coalesce(route, rpc_method)"  # of an entry span, as `store.entries.route`
PATH: Final = "coalesce(url_path, split_part(http_target, '?', 1))"  # as `store.entries.path`
# Client and server of one call share an id in traces that came from Zipkin.
KEY: Final = "trace_id, span_id, service, kind"
OTLP: Final = "otlp"  # one ResourceSpans with one span
MISSED: Final = TYPED[semconv.SLA_BREACH_MISSED].column  # of breaches, and so in neither relation
_ATTRIBUTES: Final = "stagetrace_attributes"
_RESOURCE: Final = "stagetrace_resource"
_OTHERS: Final = "stagetrace_other_stages"
_ATTRIBUTE: Final = "stagetrace_attribute"
_OF_RESOURCE: Final = "stagetrace_of_resource"
_LATER: Final = "stagetrace_later"
_OTLP: Final = "stagetrace_otlp"
_KEPT_UP_TO: Final = 256  # bytes: what a longer attribute means is not remembered
_KINDS: Final = dict(ALL)
DUCKDB: Final = {
    "binary": "BLOB",
    "string": "VARCHAR",
    "bool_": "BOOLEAN",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float64": "DOUBLE",
}
# Columns with the same value in `requests` and in a span; in `requests`, `stage` is that of the breach.
_SAME: Final = frozenset(REQUESTS) - {"stage"}
_WITH_ATTRIBUTES: Final = (*COLUMNS, REST)
_WHOLE: Final = tuple(name for name, _ in ALL if name not in (SEQUENCE, "service", OTHER_MS))


def nothing() -> str:
    """Return a query for all stored columns, and `is_entry`, without a row."""
    columns = ", ".join(f"NULL::{DUCKDB[kind]} AS {name}" for name, kind in ALL)
    return f"SELECT {columns}, NULL::BOOLEAN AS is_entry WHERE false"


def with_later(query: str, generation: int) -> str:
    """Return a query for all stored columns as `query` gives them, those that came since also out of `rest`."""
    columns = {one.name for one in SCHEMA if one.since > generation}
    names = {*columns, *(f"old_{name}" for name in columns)}
    later = []
    for key, (column, kind) in TYPED.items():
        if column in names:
            kinds = (kind, INT) if kind == DOUBLE else (kind,)  # as the decoder takes a whole number for one
            found = ", ".join(f"{_LATER}({REST}, '{key}', '{one}')::{DUCKDB[_KINDS[column]]}" for one in kinds)
            later.append(f"coalesce({column}, {found}) AS {column}")
    return f"SELECT * REPLACE ({', '.join(later)}) FROM ({query})"


def loaded_query(query: str, segments: Mapping[str, str] | None = None) -> str:
    """Return the query that `store.load.select` takes, over a query for stored columns and `is_entry`."""
    own = {
        **{one.name: f"coalesce({one.name}, {older_name(one)})" for one in SCHEMA if one.older is not None},
        "route": f"CASE WHEN is_entry THEN {ROUTE} ELSE route END",
        "url_path": PATH,
    }
    loaded = [column for column in (*COLUMNS, OTHER_MS) if column in LOADED or column == MISSED]
    typed = ", ".join(f"{own.get(column, column)} AS {column}" for column in loaded)
    return (
        "SELECT lower(hex(trace_id)) AS trace_id, lower(hex(span_id)) AS span_id, "
        "lower(hex(parent_span_id)) AS parent_span_id, service, name, "
        f"{_words('kind', KINDS)} AS kind, {_words('coalesce(status, 0)', STATUSES)} AS status, "
        "start_unix_nano, end_unix_nano, (end_unix_nano - start_unix_nano) / 1e6 AS duration_ms, is_entry, "
        f"{typed}, {_stages()} AS stages, "
        f"{_ATTRIBUTES}({_struct(_WITH_ATTRIBUTES)}) AS attributes, {_RESOURCE}(resource) AS resource, "
        f"{REST} AS rest, resource AS of_resource, {_has(segments or {})} AS has_segments, "
        f"{_struct(_WHOLE)} AS stored, {_OTLP}({_struct(_WHOLE)}) AS {OTLP} "
        f"FROM ({query})"
    )


def attribute_text(key: str) -> str:
    """Return the expression, on the view `selected`, of the text form of a span's attribute, else its resource's."""
    found = [expression for name in names_of(key) for expression in _of_span(name)]
    return f"coalesce({', '.join(found)}, {_OF_RESOURCE}(of_resource, {_quote(key)}))"


def _of_span(key: str) -> list[str]:
    """Return the expressions of which the first that is not NULL is the text form of a span's own attribute."""
    found = [f"{_ATTRIBUTE}(rest, {_quote(key)})"]
    if key in TYPED:
        column = TYPED[key].column
        if column in _SAME:  # first: the value of a column needs no decoding
            return [column_text(column, REQUESTS[column]), *found]
        found.append(f"attributes[{_quote(key)}]")
    return found


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def column_text(column: str, kind: str) -> str:
    """Return the expression of a value's text form, as `as_text` has it: of whole numbers without a fraction."""
    return f"regexp_replace({column}::VARCHAR, '\\.0$', '')" if kind == "DOUBLE" else f"{column}::VARCHAR"


def _struct(columns: Iterable[str]) -> str:
    return f"struct_pack({', '.join(f'{column} := {column}' for column in columns)})"


def _stages() -> str:
    """Return the map of all stage totals; only a span with a stage that has no column is decoded for it."""
    pairs = ", ".join(f"struct_pack(k := '{stage}', v := {column})" for stage, column in STAGE_COLUMNS.items())
    others = f"CASE WHEN {OTHER_MS} IS NOT NULL THEN {_OTHERS}({REST}) END"
    return f"map_concat(map_from_entries(list_filter([{pairs}], lambda one: one.v IS NOT NULL)), {others})"


def _words(column: str, words: Sequence[str]) -> str:
    cases = " ".join(f"WHEN {number} THEN '{word}'" for number, word in enumerate(words))
    return f"CASE {column} {cases} ELSE {column}::VARCHAR END"


def _has(segments: Mapping[str, str]) -> str:
    """Return the condition that a row has these attributes, by the variables of `store.load`.

    Of a row's own ones only those asked for are made: from their column, else of its bytes.
    """
    tests = []
    for number, (key, text) in enumerate(segments.items(), 1):
        named, wanted = f"getvariable('segment_keys')[{number}]", f"getvariable('segment_values')[{number}]"
        found = [f"{_ATTRIBUTE}({REST}, {named}) = {wanted}"]
        if key in TYPED:
            found.insert(0, _equals(*TYPED[key], text, wanted))
        found += [f"{_ATTRIBUTE}({REST}, {_quote(name)}) = {wanted}" for name in names_of(key)[1:]]
        found.append(f"{_OF_RESOURCE}(resource, {named}) = {wanted}")
        tests.append(f"coalesce({', '.join(found)}, false)")
    return " AND ".join(tests) or "true"


def _equals(column: str, kind: str, text: str, wanted: str) -> str:
    """Return the condition that the value in a column has this text form; NULL where there is none."""
    if kind == STRING:
        return f"{column} = {wanted}"
    if not (found := values_of(text, kind)):
        return f"CASE WHEN {column} IS NOT NULL THEN false END"
    return f"{column} = '{found[0]}'::{DUCKDB[_KINDS[column]]}"


def values_of(text: str, kind: str) -> list[Any]:
    """Return the value of a type of OTLP's that has this text form, if there is one."""
    if kind == STRING:
        return [text]
    if kind == BOOL:
        return [text == "true"] if text in ("true", "false") else []
    try:
        value = int(text) if kind == INT else float(text)
    except (ValueError, OverflowError):
        return []
    return [value] if (kind == DOUBLE or -(2**63) <= value < 2**63) and as_text(value) == text else []


def add_functions(connection: DuckDBPyConnection) -> None:
    """Give a database the functions that `loaded` calls. Imports PyArrow and NumPy.

    Raise StoreError where the latter is not installed.
    """
    if find_spec("numpy") is None:
        raise needs("this", "numpy")
    text_map = "MAP(VARCHAR, VARCHAR)"
    functions: tuple[tuple[str, Any, list[Any], str], ...] = (
        (_ATTRIBUTES, _attributes, [_type(_WITH_ATTRIBUTES)], text_map),
        (_RESOURCE, _resource, ["BLOB"], text_map),
        (_OTHERS, _others, ["BLOB"], "MAP(VARCHAR, DOUBLE)"),
        (_ATTRIBUTE, _attribute, ["BLOB", "VARCHAR"], "VARCHAR"),
        (_OF_RESOURCE, _of_resource, ["BLOB", "VARCHAR"], "VARCHAR"),
        (_LATER, _later, ["BLOB", "VARCHAR", "VARCHAR"], "VARCHAR"),
        (_OTLP, _otlp, [_type(_WHOLE)], "BLOB"),
    )
    how: Any = {"type": "arrow", "null_handling": "special"}  # the stubs know only enumerations
    for name, function, taken, given in functions:
        connection.create_function(name, function, taken, given, **how)


def _type(columns: Iterable[str]) -> str:
    return f"STRUCT({', '.join(f'{column} {DUCKDB[_KINDS[column]]}' for column in columns)})"


def _columns(rows: Any) -> dict[str, list[Any]]:
    """Return the columns of an array of structures that have a value."""
    import pyarrow as pa

    if isinstance(rows, pa.ChunkedArray):
        rows = rows.combine_chunks()
    fields = zip((field.name for field in rows.type), rows.flatten(), strict=True)
    return {name: column.to_pylist() for name, column in fields if column.null_count < len(rows)}


def _attributes(rows: Any) -> Any:
    """Return all attributes of spans in text form, those with a column first."""
    given = _columns(rows)
    found: list[dict[str, str]] = [{} for _ in range(len(rows))]
    for key, (column, _) in TYPED.items():
        for at, one in enumerate(given.get(column, ())):
            if one is not None:
                found[at][key] = one if isinstance(one, str) else as_text(one)
    for at, rest in enumerate(given.get(REST, ())):
        if rest:
            more = _texts(rest)
            # A value of another type than its column, and a key that came twice, are in the rest as they were.
            found[at] = {key: text for key, text in found[at].items() if key not in more} | more
    return _maps(found)


def _others(blobs: Any) -> Any:
    """Return the totals of the stages that have no column, out of the attributes that are kept beside the columns."""
    import pyarrow as pa
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    found = []
    for blob in blobs.to_pylist():
        totals = (one for one in Span.FromString(blob or b"").attributes if semconv.stage_of_total(one.key))
        stages = named_stages(values(totals))
        found.append([one for one in stages.items() if one[0] not in STAGE_COLUMNS])
    return pa.array(found, pa.map_(pa.string(), pa.float64()))


def _resource(blobs: Any) -> Any:
    """Return the attributes of resources in text form, of which there are few different ones."""
    coded = _encode(blobs)
    return _maps([_resource_texts(blob) for blob in coded.dictionary.to_pylist()]).take(coded.indices)


def _maps(rows: Sequence[Mapping[str, str]]) -> Any:
    """Return an array of maps; an array of each kind is made of its parts, which takes a third of the time."""
    import pyarrow as pa

    offsets = [0]
    keys: list[str] = []
    texts: list[str] = []
    for row in rows:
        keys += row
        texts += row.values()
        offsets.append(len(keys))
    parts = pa.array(offsets, pa.int32()), pa.array(keys, pa.string()), pa.array(texts, pa.string())
    return pa.MapArray.from_arrays(*parts)


def _attribute(rests: Any, keys: Any) -> Any:
    """Return one attribute of each span in text form, out of those without a column; NULL where it is absent."""
    key = keys[0].as_py() if len(keys) else ""
    return _text_of_attribute(rests, key, None)


def _later(rests: Any, keys: Any, kinds: Any) -> Any:
    """Return one attribute of each span, where it is of this kind, that had no column when it was stored."""
    return _text_of_attribute(rests, keys[0].as_py() if len(keys) else "", kinds[0].as_py() if len(kinds) else STRING)


def _text_of_attribute(rests: Any, key: str, kind: str | None) -> Any:
    """Return the text form of one attribute of each span, of any kind or where it is of this kind."""
    named = key.encode()
    field = b"\x0a" + varint(len(named)) + named
    return _texts_of(rests, lambda rest: _text(rest, key, field, kind) if rest and named in rest else None)


def _text(rest: bytes, key: str, field: bytes, kind: str | None) -> str | None:
    """Return the text form of the last attribute of a serialized span that has the key, if it is of this kind."""
    pair = attribute_of(rest, field)
    if pair is not None:
        return (_text_of_pair if len(pair) <= _KEPT_UP_TO else _text_of_pair.__wrapped__)(pair, kind)
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    # The key is elsewhere, or is not written as protobuf writes it.
    found = next((one for one in reversed(Span.FromString(rest).attributes) if one.key == key), None)
    return None if found is None else _text_of_pair(found.SerializeToString(), kind)


@lru_cache(maxsize=4096)
def _text_of_pair(pair: bytes, kind: str | None) -> str | None:
    """Return the text form of the value of a serialized attribute, if it is of this kind."""
    from opentelemetry.proto.common.v1.common_pb2 import KeyValue

    found = KeyValue.FromString(pair).value
    return as_text(value(found)) if kind in (None, found.WhichOneof("value")) else None


def _of_resource(blobs: Any, keys: Any) -> Any:
    """Return one attribute of each resource in text form; NULL where it is not there."""
    key = keys[0].as_py() if len(keys) else ""
    return _texts_of(blobs, lambda blob: _resource_texts(blob).get(key))


def _texts_of(blobs: Any, text: Callable[[bytes | None], str | None]) -> Any:
    """Return a text of each blob; it is made once for those that are alike."""
    import pyarrow as pa

    coded = _encode(blobs)
    return pa.array(map(text, coded.dictionary.to_pylist()), pa.string()).take(coded.indices)


def _encode(blobs: Any) -> Any:
    """Return blobs as numbers into the different ones."""
    import pyarrow as pa

    if isinstance(blobs, pa.ChunkedArray):
        blobs = blobs.combine_chunks()
    return blobs.dictionary_encode(null_encoding="encode")


def _texts(rest: bytes) -> dict[str, str]:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    return {key: as_text(value) for key, value in values(Span.FromString(rest).attributes).items()}


@lru_cache(maxsize=1000)
def _resource_texts(blob: bytes | None) -> dict[str, str]:
    from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

    read = values(ResourceSpans.FromString(blob or b"").resource.attributes)
    return {key: as_text(value) for key, value in read.items()}


def _otlp(rows: Any) -> Any:
    """Return each span whole, as OTLP that every reader takes."""
    import pyarrow as pa

    given = _columns(rows)
    names = list(given)
    spans = [resource_spans(dict(zip(names, cells, strict=True))) for cells in zip(*given.values(), strict=True)]
    return pa.array(spans, pa.binary())


# Attributes are read out of a stored row's bytes.
ENGINE: Final = Engine(
    "duckdb",
    "selected",
    "spans",
    attribute_text,
    lambda stage: f"stages[{_quote(stage)}]",
    f"{_RESOURCE}(of_resource)",
    "bool_or",
)
