"""The SQL of `requests` and `spans` in ClickHouse, out of `otel_traces` or of the table of requests.

Each is nested SELECTs: spans, each once, with the names of the schema (`columns.py`); their typed columns; what a
selection means. ClickHouse reads of the table what the outermost one names, so that a question about durations reads no
attribute.
"""

# ruff: noqa: S608 -- names are quoted, columns are constants; every value is bound

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.columns import LEAST_PROBABILITY, NUMBER, REQUESTS, SCHEMA, SPANS, TRUTH, WHOLE, Column, names_of
from stagetrace.store import entries, judged
from stagetrace.store.base import Selection
from stagetrace.store.clickhouse.client import TABLE
from stagetrace.store.reductions import CLICKHOUSE, OTHER_STAGES, STAGE_COLUMNS, START_TIME, of_map
from stagetrace.store.reductions import REQUESTS as REQUEST_COLUMNS

LOOKUP: Final = "_trace_id_ts"  # behind the table's name: the exporter's table of when each trace began and ended
COUNTS: Final = "otel_metrics_sum"  # the exporter's table of counters
STAGES: Final = "stages"
OWN_STAGES: Final = "own_stages"  # of the table of requests: the totals of stages that have no column
FILLED: Final = "stagetrace"  # how the comment of that table begins where readers may use it
MADE: Final = "stagetrace_requests"  # the table that `stagetrace clickhouse init` makes beside `otel_traces`
_ATTRIBUTES: Final = "attributes"
_RESOURCE: Final = "resource"
# The columns of `requests` as users have them.
REQUESTS_OF_USERS: Final = tuple(
    f"fromUnixTimestamp64Micro(intDiv(start_unix_nano, 1000), 'UTC') AS {name}" if name == START_TIME else name
    for name in REQUEST_COLUMNS
)
MISSED: Final = "missed"  # of neither relation; that of breaches is read
# Client and server of one call share an id in traces that came from Zipkin.
KEY: Final = "TraceId, SpanId, ServiceName, SpanKind"
_JUDGED: Final = f"mapContains({{}}, '{semconv.SLA_BREACHED}')"
_PREFIX, _SUFFIX = semconv.stage_total_ms("|").split("|")


_DIALECT: Final = judged.Dialect(
    bound=lambda name, kind: f"{{of_judged_{name}:Array({kind})}}",
    place=lambda found, text: f"indexOf({found}, {text})",
    without="EXCEPT",
    stage="stage",
)


class Table(NamedTuple):
    """A table of spans: what there is of it."""

    database: str
    name: str
    types: Mapping[str, str]  # column -> its type, as DESCRIBE says
    has_lookup: bool = False
    has_counts: bool = False
    has_prewhere: bool = False  # it is no view
    has_requests: bool = False  # the table of requests beside it, filled

    @property
    def requests(self) -> str:
        """Return the name of the table of its requests."""
        return MADE if self.name == TABLE else f"{MADE}_{self.name}"

    def quoted(self, name: str | None = None) -> str:
        """Return the name of the table, or of another one beside it, as SQL has it."""
        return f"{quote(self.database)}.{quote(self.name if name is None else name)}"

    def map_of(self, column: str) -> str:
        """Return the expression of a map of attributes in text form."""
        return f"mapFromArrays(JSONAllPaths({column}), JSONAllValues({column}))" if self.is_json(column) else column

    def is_json(self, column: str) -> bool:
        """Return whether a column of attributes is of the exporter's JSON variant."""
        return self.types.get(column, "").startswith("JSON")


def quote(name: str) -> str:
    """Return a name as ClickHouse takes any."""
    return "`" + name.replace("\\", "\\\\").replace("`", "\\`") + "`"


def text(value: str) -> str:
    """Return a text of ours as SQL has it."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


class Question(NamedTuple):
    """A relation as SQL, and the values that it is bound to."""

    sql: str
    values: Mapping[str, Any]


# --- The columns of the schema.


def columns(*, of_entries: bool) -> dict[str, str]:
    """Return column -> expression of all that the relations have, over `_spans`."""
    found: dict[str, str] = {
        "trace_id": "TraceId",
        "span_id": "SpanId",
        "parent_span_id": "if(match(ParentSpanId, '^0*$'), NULL, ParentSpanId)",
        "service": "ServiceName",
        "name": "SpanName",
        "kind": "upper(SpanKind)",
        "status": "upper(StatusCode)",
        "start_unix_nano": "toUnixTimestamp64Nano(Timestamp)",
        "end_unix_nano": "toUnixTimestamp64Nano(Timestamp) + reinterpretAsInt64(Duration)",
        "duration_ms": "reinterpretAsInt64(Duration) / 1e6",
        "is_entry": "CAST(SpanKind = 'Server' AS Bool)",
        _ATTRIBUTES: _ATTRIBUTES,
        _RESOURCE: _RESOURCE,
    }
    for one in SCHEMA:
        if one.attribute is not None:
            found[one.name] = _typed(one)
    if of_entries:
        found["route"] = f"coalesce({found['route']}, {found['rpc_method']})"
    target = found["http_target"]
    before_query = f"if(isNull({target}), NULL, splitByChar('?', assumeNotNull({target}))[1])"
    found["url_path"] = f"coalesce({found['url_path']}, {before_query})"
    probability = found["sampling_probability"]
    known = f"{probability} BETWEEN {LEAST_PROBABILITY!r} AND 1"
    found["sampling_probability"] = (
        f"multiIf({probability} = 1, NULL, {known}, {probability}, isNotNull({probability}), 0., NULL)"
    )
    found["weight"] = (
        f"if(coalesce({known}, false) AND NOT coalesce({found['breached']}, false), 1 / {probability}, 1.)"
    )
    found[STAGES] = _stages()
    others = own_stages(found[STAGES])
    found[OTHER_STAGES] = f"if(empty({others}), NULL, arraySum(one -> one.2, {others}))"
    return found


def own_stages(stages: str) -> str:
    """Return the expression of the totals that have no column, as pairs, out of that of the map of all."""
    names = ", ".join(map(text, semconv.STAGES))
    return f"arrayFilter(one -> one.1 NOT IN ({names}), CAST({stages} AS Array(Tuple(String, Float64))))"


def _stages_of_columns() -> str:
    """Return the map of stage totals out of their columns and OWN_STAGES, so that no attribute is read for it."""
    pairs = ", ".join(f"({text(stage)}, {column})" for stage, column in STAGE_COLUMNS.items())
    known = f"arrayMap(one -> (one.1, assumeNotNull(one.2)), arrayFilter(one -> isNotNull(one.2), [{pairs}]))"
    return f"CAST(arrayConcat({known}, CAST({OWN_STAGES} AS Array(Tuple(String, Float64)))) AS Map(String, Float64))"


def _typed(column: Column) -> str:
    """Return the expression of a column's value; NULL where the attribute's text is none of its type."""
    names = [name for name in (column.attribute, column.older) if name is not None]
    return f"coalesce({', '.join(_as(column.type, of_map(_ATTRIBUTES, name)) for name in names)})"


def _as(kind: str, found: str) -> str:
    if kind == WHOLE:
        return f"toInt64OrNull({found})"
    if kind == NUMBER:
        return f"if(isFinite(toFloat64OrNull({found})), toFloat64OrNull({found}), NULL)"
    if kind == TRUTH:
        return f"CAST(multiIf({found} = 'true', true, {found} = 'false', false, NULL) AS Nullable(Bool))"
    return found


def _stages() -> str:
    """Return the map of stage totals, in the order of stages, then by name."""
    named = f"substring(key, {len(_PREFIX) + 1}, length(key) - {len(_PREFIX) + len(_SUFFIX)})"
    is_total = (
        f"startsWith(key, {text(_PREFIX)}) AND endsWith(key, {text(_SUFFIX)}) "
        f"AND length(key) > {len(_PREFIX) + len(_SUFFIX)} AND isFinite(coalesce(toFloat64OrNull(value), nan))"
    )
    totals = (
        f"mapApply((key, value) -> ({named}, toFloat64(value)), mapFilter((key, value) -> {is_total}, {_ATTRIBUTES}))"
    )
    order = ", ".join(map(text, semconv.STAGES))
    place = f"if(indexOf([{order}], one.1) = 0, {len(semconv.STAGES) + 1}, indexOf([{order}], one.1))"
    pairs = f"CAST({totals} AS Array(Tuple(String, Float64)))"
    return f"CAST(arraySort(one -> ({place}, one.1), {pairs}) AS Map(String, Float64))"


def request_columns() -> dict[str, str]:
    """Return the columns of `requests` and what reductions read beside them -> expression."""
    found = columns(of_entries=True)
    wanted = {
        one.in_requests or one.name: found[one.name]
        for one in SCHEMA
        if REQUESTS in one.relations and one.name != START_TIME
    }
    return {**wanted, MISSED: found[MISSED], _RESOURCE: found[_RESOURCE]}


# --- The relations.


def spans_once(table: Table, where: Sequence[str], *, once: bool = True) -> str:
    """Return the spans that meet these conditions, by the exporter's names, with `attributes` and `resource`.

    Each is there once: the copy with a verdict, else the one with more attributes, as `sql/once.sql`.
    """
    attributes = table.map_of("SpanAttributes")
    found = (
        f"SELECT TraceId, SpanId, ParentSpanId, SpanName, SpanKind, ServiceName, StatusCode, Timestamp, Duration, "
        f"{attributes} AS {_ATTRIBUTES}, {table.map_of('ResourceAttributes')} AS {_RESOURCE} FROM {table.quoted()}"
    )
    if not once:
        return f"{found}{_where(where)}"
    # Only spans that are there twice, which are few, are sorted: sorting all takes all of their attributes to memory.
    # Two spans of one hash are sorted as well, which changes nothing.
    copies = (
        f"(SELECT cityHash64({KEY}) FROM {table.quoted()}{_where(where)} GROUP BY cityHash64({KEY}) HAVING count() > 1)"
    )
    single = _where([*where, f"cityHash64({KEY}) GLOBAL NOT IN {copies}"])
    several = _where([*where, f"cityHash64({KEY}) GLOBAL IN {copies}"])
    if table.has_prewhere:  # their ids alone are read of the others, which ClickHouse does not see by itself
        several = several.replace(" WHERE ", " PREWHERE ", 1)
    order = f"ORDER BY {_JUDGED.format(attributes)} DESC, length({attributes}) DESC LIMIT 1 BY {KEY}"
    return f"{found}{single} UNION ALL {found}{several} {order}"


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def select(expressions: Mapping[str, str], source: str) -> str:
    """Return the query for expressions by their names."""
    return f"SELECT {', '.join(f'{how} AS {name}' for name, how in expressions.items())} FROM ({source})"


def requests(table: Table, selection: Selection, *, once: bool = True) -> Question:
    """Return the requests of a selection."""
    values: dict[str, Any] = {"of_since_ns": selection.since_ns, "of_until_ns": selection.until_ns}
    if table.has_requests:
        where = [
            "minute >= toDateTime(intDiv({of_since_ns:Int64}, 60000000000) * 60, 'UTC')",
            "minute <= toDateTime(least(intDiv({of_until_ns:Int64}, 60000000000), 71582788) * 60, 'UTC')",
            "start_unix_nano >= {of_since_ns:Int64}",
            "start_unix_nano < {of_until_ns:Int64}",
        ]
        if selection.service is not None:
            where.append("service = {of_service:String}")
        final = " FINAL" if once else ""
        # A map of stages is made on reading: it holds nothing that the columns do not.
        source = f"{table.quoted(table.requests)}{final}{_where(where)}"
        found = f"SELECT * EXCEPT (minute, copy, {OWN_STAGES}), {_stages_of_columns()} AS {STAGES} FROM {source}"
    else:
        where = ["SpanKind = 'Server'", *_in_time()]
        if selection.service is not None:
            where.append("ServiceName = {of_service:String}")
        found = select(request_columns(), spans_once(table, where, once=once))
    if selection.service is not None:
        values["of_service"] = selection.service
    if selection.judging is not None:
        kind = judged.kind(CLICKHOUSE.attribute, selection.judging.keys)
        found = judged.overlaid(found, _DIALECT, kind, "true", STAGE_COLUMNS)
        values |= judged.values(selection.judging, "of_judged_")
    tests = _tests(selection, values)
    sql = f"SELECT * FROM ({found}){_where(tests)}" if tests else found
    if selection.limit is not None:
        sql += f" ORDER BY start_unix_nano DESC, trace_id, span_id LIMIT {int(selection.limit)}"
    return Question(f"({sql})", values)


def _in_time() -> list[str]:
    return [
        "Timestamp >= fromUnixTimestamp64Nano({of_since_ns:Int64}, 'UTC')",
        "Timestamp < fromUnixTimestamp64Nano({of_until_ns:Int64}, 'UTC')",
    ]


def _tests(selection: Selection, values: dict[str, Any]) -> list[str]:
    """Return the conditions of a selection besides service, time and limit; `values` gets what they are bound to."""
    tests = []
    if selection.route is not None:
        shown = (
            "if(coalesce(position(name, coalesce(route, url_path)) > 0, true), name, "
            "concat(name, ' ', coalesce(route, url_path)))"
        )
        tests.append(f"(coalesce(route = {{of_route:String}}, false) OR {shown} = {{of_route:String}})")
        values["of_route"] = selection.route
    if selection.model is not None:
        tests.append("model = {of_model:String}")
        values["of_model"] = selection.model
    if selection.breached is not None:
        tests.append("coalesce(breached, false) = {of_is_breached:Bool}")
        values["of_is_breached"] = selection.breached
    if selection.judged_by is not None:
        tests.append(
            "(coalesce(objective = {of_judged_by:String}, false) "
            "OR coalesce(match(verdicts, {of_its_verdict:String}), false))"
        )
        values["of_judged_by"] = selection.judged_by
        values["of_its_verdict"] = entries.verdict_pattern(selection.judged_by, breached=bool(selection.breached))
    if selection.causes:
        tests.append("coalesce(has({of_causes:Array(String)}, cause), false)")
        values["of_causes"] = list(selection.causes)
    if selection.codes:
        tests.append("coalesce(match(code, {of_code:String}), false)")
        values["of_code"] = f"^{entries.code_pattern(selection.codes)}$"
    for number, (key, value) in enumerate(selection.segments.items()):
        places = [(_ATTRIBUTES, name) for name in names_of(key)] + [(_RESOURCE, key)]
        tests.append(f"coalesce({', '.join(of_map(*place) for place in places)}) = {{of_segment_{number}:String}}")
        values[f"of_segment_{number}"] = value
    return tests


def spans(table: Table, selection: Selection) -> Question:
    """Return the spans of a selection: those of its time, or all of the traces of its requests."""
    where, values = whole(table, selection)
    found = columns(of_entries=False)
    route = f"if(SpanKind = 'Server', coalesce({found['route']}, {found['rpc_method']}), {found['route']})"
    found["route"] = route
    wanted = {one.name: found[one.name] for one in SCHEMA if SPANS in one.relations}
    return Question(f"({select(wanted, spans_once(table, where))})", values)


def whole(table: Table, selection: Selection) -> tuple[list[str], Mapping[str, Any]]:
    """Return the conditions of the spans of a selection, and the values that these are bound to."""
    if not selection.is_filtered:
        return _in_time(), {"of_since_ns": selection.since_ns, "of_until_ns": selection.until_ns}
    found = requests(table, selection)
    return [f"TraceId GLOBAL IN (SELECT trace_id FROM {found.sql})"], found.values


# A user's statement, behind comments: the words of DESCRIBE or EXPLAIN if it begins with one, and a WITH clause's.
_BEGIN: Final = re.compile(
    r"(?is)(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:(?P<describe>DESC(?:RIBE)?)\s+(?:TABLE\s+)?(?=\w+\s*;?\s*$)|(?P<explain>EXPLAIN\b))?"
    r"\s*(?P<with>WITH\b)?"
)


def with_relations(requests: str, spans: str, sql: str) -> str:
    """Return a user's SELECT, or DESCRIBE or EXPLAIN of one, in which `requests` and `spans` are these relations."""
    columns = ", ".join(REQUESTS_OF_USERS)
    ours = f"WITH requests AS (SELECT {columns} FROM {requests}), spans AS {spans}"
    found = _BEGIN.match(sql)
    if found is None:
        return f"{ours} {sql}"
    rest = sql[found.end() :]
    if found["describe"]:
        return f"DESCRIBE TABLE ({ours} SELECT * FROM {rest.rstrip('; ')})"
    return f"{'EXPLAIN ' if found['explain'] else ''}{ours}{',' if found['with'] else ''} {rest}"
