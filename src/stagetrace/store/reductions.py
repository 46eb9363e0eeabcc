"""The two relations that every analysis sees, and named SQL over them, which runs where the data is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from stagetrace import columns, semconv
from stagetrace.columns import ATTRIBUTE, names_of
from stagetrace.store import judged

# --- The two relations that every analysis and `stagetrace query` see, alike over every store, by the one schema.
#
# Absent attributes, and those of another type than their column, are NULL. Entry spans are the spans of kind SERVER.

# Column -> (attribute, DuckDB type); of both relations unless the schema has a narrower choice.
TYPED: Final[Mapping[str, tuple[str, str]]] = {
    one.name: (one.attribute, one.type) for one in columns.SCHEMA if one.attribute is not None and one.relations
}
# Column -> the name of its attribute before OpenTelemetry's semantic conventions 1.23, read where that is absent.
OLDER: Final[Mapping[str, str]] = {one.name: one.older for one in columns.SCHEMA if one.older is not None}

SPANS: Final[Mapping[str, str]] = {one.name: one.type for one in columns.SCHEMA if columns.SPANS in one.relations}
REQUESTS: Final[Mapping[str, str]] = {
    one.in_requests or one.name: one.type for one in columns.SCHEMA if columns.REQUESTS in one.relations
}
# The columns of the view that both are made of; `requests` computes a few more.
LOADED: Final[Mapping[str, str]] = {
    one.name: one.type for one in columns.SCHEMA if one.relations and (one.attribute is not None or one.made is None)
}

# Stage -> column with its total, which the entry span itself carries: `requests` is a filter of `spans`, never a join.
STAGE_COLUMNS: Final[Mapping[str, str]] = {
    stage: next(one.name for one in columns.SCHEMA if one.attribute == semconv.stage_total_ms(stage))
    for stage in semconv.STAGES
}
OTHER_STAGES: Final = "other_ms"
# Those that a store decodes row by row, so that a question that names none of them is cheaper.
DECODED: Final = frozenset({"attributes"})
START_TIME: Final = "start_time"  # what Python makes of the start itself
PLAIN: Final = tuple(column for column in REQUESTS if column not in DECODED and column != START_TIME)


def probability_of(found: float | None) -> float | None:
    """Return the sampling probability of an entry span: 0 for a value that is none, None where it is 1."""
    if found is None or found == 1:
        return None
    return found if columns.LEAST_PROBABILITY <= found < 1 else 0.0


def weight_of(probability: float | None, *, breached: bool | None) -> float:
    """Return how many requests a row of `requests` stands for, as the schema has it for SQL.

    A breach stands for itself, for the head sampler of its process drops none; any other request for as many as its
    probability implies. Where that is not known it counts as one, and `estimates.Sample` records that.
    """
    return 1 / probability if probability and not breached else 1.0


# --- Named SQL that runs where the data is: one text for each engine, the rows of which are all that an analysis reads.
#
# A text stands in `sql/NAME.ENGINE.sql`. In it, `{requests}` is the relation of the requests meant, `{verdicts}` the
# same with a row for each objective that judged one (`sql/each_verdict_ENGINE.sql`), and `{by}` the columns that its
# rows are grouped by, with a comma behind them, `{value}` the first of these alone; `{spans}` is the relation of all
# spans, `{columns}` those of PLAIN; values are bound, as each engine writes that.
# `{attribute:KEY}` is the text form of an attribute of a request, `{resource}` the map of the attributes of the
# resource, in text form.
# `{sampled}` and `{unknown}` are what `estimates` asks of each group: whether it was sampled, and whether some rate is
# not known.
#
# `{each stages, : TEXT end}` is the text once for each stage of the column schema, with `, ` in between: in it,
# `{stage}` is the stage, `{column}` its column, `{part}` the column without its unit. `durations` are the whole request
# and its stages, `parts` the stages and the column of all others, `quantiles` those that are reported, with `{q}` and
# `{name}`.

_FOLDER: Final = Path(__file__).parent / "sql"
_ATTRIBUTE: Final = re.compile(r"\{attribute:([^{}]+)\}")
_EACH: Final = re.compile(r"\{each (\w+)([^:]*): (.*?) end\}", re.DOTALL)
_OWN: Final = re.compile(r"\{(\w+)\}")  # ClickHouse's values have a type behind a colon
_STAGES: Final = tuple(
    {"stage": stage, "column": column, "part": column.removesuffix("_ms")} for stage, column in STAGE_COLUMNS.items()
)
_LISTS: Final = {
    "stages": _STAGES,
    "durations": ({"column": "duration_ms"}, *_STAGES),
    "parts": (*_STAGES, {"stage": "other", "column": OTHER_STAGES, "part": OTHER_STAGES.removesuffix("_ms")}),
    "quantiles": tuple({"q": q, "name": name} for q, name in (("0.5", "p50"), ("0.95", "p95"), ("0.99", "p99"))),
}
STAGE: Final = "stage:"  # in front of a key of groups that is the total of a stage, in ms
PATH: Final = "path"  # the route or, of requests without one, their name


class Engine(NamedTuple):
    """The SQL dialect of one database: the parts that a reduction leaves open."""

    name: str
    source: str  # the requests, with the columns that `attribute` reads
    spans: str  # all spans of the selection
    attribute: Callable[[str], str]  # expression of the text form of an attribute, of the span or else its resource
    stage: Callable[[str], str]  # expression of the total of a stage, NULL where there is none
    resource: str  # expression of the map of the resource's attributes
    any_of: str  # the aggregate function that is true where one row of a group is


def statement(engine: Engine, name: str, by: Sequence[str]) -> str:
    """Return the SQL of a reduction, grouped by columns of `requests`, `path`, stages behind STAGE, or attributes.

    A key behind ATTRIBUTE is an attribute also where a column has its name.
    """
    made = [f"coalesce(route, name) AS {PATH}"]
    for key in by:
        if key.startswith(STAGE):
            made.append(f"{engine.stage(key.removeprefix(STAGE))} AS {_quote(key)}")
        elif key not in REQUESTS and key != PATH:
            made.append(f"{engine.attribute(key.removeprefix(ATTRIBUTE))} AS {_quote(key)}")
    requests = f"(SELECT *, {', '.join(made)} FROM {engine.source})"  # noqa: S608 -- names are quoted
    grouped = "".join(f"{_quote(key)}, " for key in by)
    parts = {
        "requests": requests,
        "verdicts": _text(f"each_verdict_{engine.name}").replace("{requests}", requests),
        "spans": engine.spans,
        "kind": judged.kind(engine.attribute, by),
        "failed": judged.FAILED,
        "is_websocket": judged.is_websocket(engine.attribute),
        "by": grouped,
        "value": _quote(by[0]) if by else "",
        "columns": ", ".join(PLAIN),
        "resource": engine.resource,
        "sampled": f"{engine.any_of}(sampling_probability IS NOT NULL OR coalesce(upgraded, false))",
        "unknown": f"{engine.any_of}(coalesce(sampling_probability = 0, false) AND NOT coalesce(breached, false))",
    }
    text = _EACH.sub(_repeat, _text(f"{name}.{engine.name}"))
    return _fill(_ATTRIBUTE.sub(lambda found: engine.attribute(found[1]), text), parts)


def _repeat(found: re.Match[str]) -> str:
    which, between, text = found.groups()
    return between.join(_fill(text, one) for one in _LISTS[which])


def _fill(text: str, parts: Mapping[str, str]) -> str:
    """Return the text with these parts in it; what is none of them stays."""
    return _OWN.sub(lambda found: parts.get(found[1], found[0]), text)


def of_map(column: str, key: str) -> str:
    """Return ClickHouse's expression of a value of a map, NULL where it is not there."""
    text = key.replace("\\", "\\\\").replace("'", "\\'")
    return f"if(mapContains({column}, '{text}'), {column}['{text}'], NULL)"


def _of_maps(key: str) -> str:
    """Return the expression for ClickHouse, which has maps."""
    places = [("attributes", name) for name in names_of(key)] + [("resource", key)]
    return f"coalesce({', '.join(of_map(place, name) for place, name in places)})"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@cache
def _text(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


CLICKHOUSE: Final = Engine(
    "clickhouse", "requests", "spans", _of_maps, lambda stage: of_map("stages", stage), "resource", "max"
)
