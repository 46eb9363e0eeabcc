"""Named SQL that runs where the data is: one text for each engine, the rows of which are all that an analysis reads.

A text stands in `sql/NAME.ENGINE.sql`. In it, `{requests}` is the relation of the requests meant, `{verdicts}` the same
with a row for each objective that judged one (`sql/each_verdict_ENGINE.sql`), and `{by}` the columns that its rows are
grouped by, with a comma behind them; values are bound, as each engine writes that. `{attribute:KEY}` is the text form
of an attribute of a request, `{resource}` the map of the attributes of the resource, in text form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from stagetrace.columns import ATTRIBUTE, names_of
from stagetrace.store.relations import REQUESTS

_FOLDER: Final = Path(__file__).parent / "sql"
_ATTRIBUTE: Final = re.compile(r"\{attribute:([^{}]+)\}")
PATH: Final = "path"  # the route or, of requests without one, their name


class Engine(NamedTuple):
    """The SQL dialect of one database: the parts that a reduction leaves open."""

    name: str
    source: str  # the requests, with the columns that `attribute` reads
    attribute: Callable[[str], str]  # expression of the text form of an attribute, of the span or else its resource
    resource: str  # expression of the map of the resource's attributes


def statement(engine: Engine, name: str, by: Sequence[str]) -> str:
    """Return the SQL of a reduction, grouped by columns of `requests`, `path` or attributes.

    A key behind ATTRIBUTE is an attribute also where a column has its name.
    """
    made = [f"coalesce(route, name) AS {PATH}"]
    attributes = [key for key in by if key not in REQUESTS and key != PATH]
    made += [f"{engine.attribute(key.removeprefix(ATTRIBUTE))} AS {_quoted(key)}" for key in attributes]
    requests = f"(SELECT *, {', '.join(made)} FROM {engine.source})"  # noqa: S608 -- names are quoted
    grouped = "".join(f"{_quoted(key)}, " for key in by)
    verdicts = _text(f"each_verdict_{engine.name}")
    text = _text(f"{name}.{engine.name}").replace("{resource}", engine.resource)
    text = _ATTRIBUTE.sub(lambda found: engine.attribute(found[1]), text.replace("{verdicts}", verdicts))
    return text.replace("{requests}", requests).replace("{by}", grouped)


def _of_maps(key: str) -> str:
    """Return the expression for ClickHouse, which has maps."""
    places = [("attributes", name) for name in names_of(key)] + [("resource", key)]
    found = []
    for place, name in places:
        text = name.replace("\\", "\\\\").replace("'", "\\'")
        found.append(f"mapContains({place}, '{text}'), {place}['{text}']")
    return f"multiIf({', '.join(found)}, NULL)"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@cache
def _text(name: str) -> str:
    return (_FOLDER / f"{name}.sql").read_text(encoding="utf-8")


CLICKHOUSE: Final = Engine("clickhouse", "requests", _of_maps, "resource")
