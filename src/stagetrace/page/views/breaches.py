"""The list of breaches that people work through, with facets: properties, their values and how many have each."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from stagetrace import semconv
from stagetrace.analysis import breach_details
from stagetrace.causes.cause import DOWNSTREAM
from stagetrace.output import breaches
from stagetrace.output.breaches import as_json, blame_text, owners_of
from stagetrace.output.units import milliseconds
from stagetrace.page.base import LONGEST, REPEATED, BadRequest, File, Part, View, url_time
from stagetrace.page.templates import stage_class
from stagetrace.semconv import SLA_BREACH_MISSED, SLA_BREACH_STAGE
from stagetrace.store import answers, entries
from stagetrace.store.answers import Place, entry, slowest_stage
from stagetrace.store.entries import request_text

if TYPE_CHECKING:
    from stagetrace.analysis.breach_details import Group
    from stagetrace.page.base import Asked, Site
    from stagetrace.store.base import Entry, Reader, Selection

ROWS: Final = 100  # of one page of the list
GROUPS: Final = 100
EXPORTED: Final = 10_000
_VERSION: Final = "service.version"
SORTS: Final = {"start": "newest", "overrun": "most over", "duration": "slowest"}
# Parameters of this view: by what it is sorted, whether requests are listed that are no breach, and whether groups are.
OWN: Final = ("sort", "all", "groups")


def shell(asked: Asked, site: Site) -> Mapping[str, Any]:
    """Return the filters, the orders and what gives the same list elsewhere."""
    _sort(asked)
    return {
        "chips": chips(asked, _own(asked)),
        "sorts": [(word, _url(asked, sort=key), key == _sort(asked)) for key, word in SORTS.items()],
        "everything": _is_of_all(asked),
        "toggle": _url(asked, all=None if _is_of_all(asked) else "1", groups=None),
        "grouped": _is_grouped(asked),
        "toggle_groups": _url(asked, groups=None if _is_grouped(asked) else "1", all=None),
        "command": _command(asked, site),
        "exported": EXPORTED,
    }


def facets(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return each property's values, with how many breaches have them: of all, and of those that the filters select."""
    window = windowed(asked.selection)
    with reader.relations(window) as relations:
        rows = relations.reduce("facets", most=MOST, **conditions(asked.selection))
    found: list[Facet] = facets_of(rows, asked, _own(asked))
    values = {"facets": found, "others": [f"{key}={text}" for key, text in window.segments.items()]}
    return Part("breaches_facets.html", values, relations.reason)


def listed(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return a page of the list: the rows behind a place in it, and where the next ones are."""
    found, total, reason = _page(asked, reader)
    at = _at(asked)
    more = None
    if len(found) > ROWS:
        found = found[:ROWS]
        more = _fixed(asked, "list", _after(found[-1], _sort(asked)), at + ROWS)
    rows = rows_of(found, at, asked)
    followed = any(row.entry.cause == DOWNSTREAM for row in rows)
    values = {
        "rows": rows,
        "at": at,
        "last": at + len(rows),
        "total": total,
        "more": more,
        "owners": _fixed(asked, "owners", asked.one("after"), at) if followed else None,
        "what": "stored requests" if _is_of_all(asked) else "breaches",
    }
    return Part("breaches_list.html", values, reason)


def groups(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the groups of breaches that are alike, the largest ones."""
    with reader.relations(replace(asked.selection, breached=True)) as relations:
        found = breach_details.ask(relations, GROUPS)
        reason = relations.reason
    most = max((one.breaches for one in found.groups), default=1)
    rows = [(one, _group_url(asked, one), round(100 * one.breaches / most, 2)) for one in found.groups]
    values = {"rows": rows, "different": found.different, "services": len({one.service for one in found.groups})}
    return Part("breaches_groups.html", values, reason)


def _group_url(asked: Asked, group: Group) -> str:
    """Return the list of a group: of all that it has, since no URL selects what lacks something."""
    changes: dict[str, str | Sequence[str] | None] = {"service": group.service, "route": group.route}
    if group.cause is not None:
        changes["cause"] = group.cause
    if group.code is not None:
        changes["code"] = group.code
    if group.stage is not None:
        changes["segment"] = [*other_segments(SLA_BREACH_STAGE, asked), f"{SLA_BREACH_STAGE}={group.stage}"]
    return _url(asked, groups=None, **changes)


def owners(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return who owns the time of the rows of a page that waited for another service."""
    found, _, _ = _page(asked, reader)
    entries = [answers.entry(row) for row in found[:ROWS]]
    known = list(enumerate(zip(entries, owners_of(reader, entries), strict=True), _at(asked) + 1))
    followed = [(at, blame_text(entry, owner)) for at, (entry, owner) in known if entry.cause == DOWNSTREAM]
    reasons = sorted({owner.reason for _, (_, owner) in known if owner.reason})
    return Part("breaches_owners.html", {"owners": followed, "reasons": reasons})


def export(asked: Asked, reader: Reader, site: Site) -> File:
    """Return what `stagetrace breaches --each --json` prints, of at most `EXPORTED` breaches."""
    answer = reader.breaches(replace(asked.selection, limit=EXPORTED))
    text = json.dumps(as_json(answer, owners_of(reader, answer.breaches)), ensure_ascii=False, indent=1)
    return File(text.encode("utf-8", "backslashreplace"), "application/json", "breaches.json")


def _page(asked: Asked, reader: Reader) -> tuple[list[dict[str, Any]], int, str | None]:
    """Return the rows of a page and one more if there is one, how many there are in all, and what is missing."""
    sort, after = _sort(asked), _place(asked)
    with reader.relations(_selected(asked)) as relations:
        total = answers.count(relations)
        rows = answers.requests(relations, sort, ROWS + 1, after=after, attributes=[SLA_BREACH_MISSED, _VERSION])
        return rows, total, relations.reason


def _selected(asked: Asked) -> Selection:
    return replace(asked.selection, breached=None if _is_of_all(asked) else True)


def _is_of_all(asked: Asked) -> bool:
    return asked.one("all") is not None and not _is_grouped(asked)


def _is_grouped(asked: Asked) -> bool:
    return asked.one("groups") is not None


def _sort(asked: Asked) -> str:
    sort = asked.one("sort") or "start"
    if sort not in SORTS:
        raise BadRequest(f"sort={sort[:40]!r} is no order of this list\nwrite one of {', '.join(SORTS)}")
    return sort


def _at(asked: Asked) -> int:
    return asked.number("at", 0, 0, 10**12)


def _place(asked: Asked) -> Place | None:
    """Return the place that the list goes on behind. Raise BadRequest."""
    text = asked.one("after")
    if text is None:
        return None
    try:
        value, start, trace_id, span_id = text.split("~")
        number = None if not value else int(value) if _sort(asked) == "start" else float(value)
        return Place(number, int(start), trace_id, span_id)
    except ValueError:
        raise BadRequest(f"after={text[:80]!r} is no place in this list\nopen the list without it") from None


def _after(row: Mapping[str, Any], sort: str) -> str:
    value = row[answers.SORTS[sort]]
    return "~".join(
        ("" if value is None else repr(value), str(row["start_unix_nano"]), row["trace_id"], row["span_id"])
    )


def _own(asked: Asked) -> dict[str, str | Sequence[str] | None]:
    return {name: asked.one(name) for name in OWN}


def _url(asked: Asked, **changes: str | Sequence[str] | None) -> str:
    return asked.url("/breaches", **{**_own(asked), **changes})


def _fixed(asked: Asked, part: str, after: str | None, at: int) -> str:
    """Return the URL of a part that goes on with this list: in the window as it was when the list began."""
    window = {"since": url_time(asked.selection.since_ns), "until": url_time(asked.selection.until_ns)}
    own = {**_own(asked), **window, "after": after, "at": str(at)}
    return asked.url(f"/breaches/{part}", **own)


def _command(asked: Asked, site: Site) -> str:
    """Return the command that gives the same list."""
    words = ["stagetrace", "requests" if _is_of_all(asked) else "breaches", "--store", site.store]
    for name, value in asked.selected(site.since):
        words += [f"--{name}", value]
    if _is_of_all(asked) and _sort(asked) != "start":
        words += ["--sort", _sort(asked)]
    elif not _is_of_all(asked) and not _is_grouped(asked):
        words.append("--each")
    return shlex.join([*words, "--json"])


VIEW: Final = View(
    "breaches",
    "Breaches",
    "/breaches",
    "breaches.html",
    {"facets": facets, "list": listed, "groups": groups, "owners": owners, "breaches.json": export},
    shell,
    keeps=OWN,
)


# --- Facets of breaches: the properties that a list is narrowed by, as links that set or clear a filter in the URL.

MOST: Final = 100  # values of a facet
_SHOWN: Final = 8  # of these without unfolding
_BAR: Final = 100.0
_PATH: Final = "/breaches"
Own: TypeAlias = "Mapping[str, str | Sequence[str] | None]"


class _Kind(NamedTuple):
    """One property. Its filter is a parameter of all views or, where it has an attribute, a segment."""

    name: str  # as the reduction has it
    title: str
    condition: str  # the reduction's parameter
    attribute: str | None = None


KINDS: Final = (
    _Kind("service", "service", "services"),
    _Kind("route", "route", "routes"),
    _Kind("model", "model", "models"),
    _Kind("model_version", "model version", "versions", semconv.ML_MODEL_VERSION),
    _Kind("stage", "stage", "stages", semconv.SLA_BREACH_STAGE),
    _Kind("cause", "cause", "causes"),
    _Kind("code", "line of code", "codes"),
    _Kind("severity", "severity", "severities", semconv.SLA_SEVERITY),
    _Kind("objective", "objective", "objectives", semconv.SLA_OBJECTIVE),
)
_ATTRIBUTES: Final = {one.attribute: one for one in KINDS if one.attribute is not None}


class FacetValue(NamedTuple):
    """One value: of `breaches` that have it the filters on other properties select `matching`."""

    text: str | None  # None: without the property
    matching: int
    breaches: int
    all_wide: float  # bars
    wide: float
    is_chosen: bool
    url: str | None  # the list with this filter set, or cleared; None where a URL cannot express it


class Facet(NamedTuple):
    """One property and its values, those chosen first, then the most frequent ones."""

    title: str
    shown: Sequence[FacetValue]
    folded: Sequence[FacetValue]
    different: int  # values in all


class Chip(NamedTuple):
    """One active filter, and the list without it."""

    title: str
    text: str
    url: str


def windowed(wanted: Selection) -> Selection:
    """Return the selection of which the facets are: what is selected by time, and by attributes that are no facet."""
    segments = {key: text for key, text in wanted.segments.items() if key not in _ATTRIBUTES}
    return replace(wanted, service=None, route=None, model=None, causes=(), codes=(), segments=segments, breached=True)


def conditions(wanted: Selection) -> dict[str, list[str]]:
    """Return the conditions of the reduction `facets`."""
    found = {kind.condition: _chosen(kind, wanted) for kind in KINDS}
    return found | {"codes": [entries.code_pattern(wanted.codes)] if wanted.codes else []}


def facets_of(rows: Iterable[Mapping[str, Any]], asked: Asked, own: Own) -> list[Facet]:
    """Return the facets out of the rows of the reduction; `own`: parameters of the view, which links keep."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["facet"], []).append(row)
    return [_facet(kind, found[kind.name], asked, own) for kind in KINDS if kind.name in found]


def other_segments(key: str, asked: Asked) -> list[str]:
    """Return the filters by attributes other than one."""
    return [one for one in asked.params.get("segment", ()) if one.partition("=")[0] != key]


def chips(asked: Asked, own: Own) -> list[Chip]:
    """Return all filters that are active, time aside."""
    found = [
        Chip(kind.title, text, _toggled(kind, text, asked, own))
        for kind in KINDS
        for text in _chosen(kind, asked.selection)
    ]
    judged_by = asked.selection.judged_by
    if judged_by is not None:
        found.append(Chip("missed", judged_by, asked.url(_PATH, **{**own, "judged-by": None})))
    others = {key: text for key, text in asked.selection.segments.items() if key not in _ATTRIBUTES}
    return found + [Chip(key, text, _without_segment(key, asked, own)) for key, text in others.items()]


def _facet(kind: _Kind, rows: Sequence[Mapping[str, Any]], asked: Asked, own: Own) -> Facet:
    chosen = _chosen(kind, asked.selection)
    most = max(row["breaches"] for row in rows)
    values = [
        FacetValue(
            row["value"],
            row["matching"],
            row["breaches"],
            round(_BAR * row["breaches"] / most, 2),
            round(_BAR * row["matching"] / most, 2),
            row["value"] in chosen,
            # What has no value, or one that no URL takes, cannot be filtered by.
            _toggled(kind, row["value"], asked, own)
            if row["value"] and len(f"{kind.attribute or ''}={row['value']}") <= LONGEST
            else None,
        )
        for row in sorted(rows, key=lambda row: (row["value"] not in chosen, -row["matching"], -row["breaches"]))
    ]
    return Facet(kind.title, values[:_SHOWN], values[_SHOWN:], rows[0]["different"])


def _chosen(kind: _Kind, wanted: Selection) -> list[str]:
    """Return the values that are filtered by."""
    if kind.name in REPEATED:
        return list(getattr(wanted, kind.condition))
    value = wanted.segments.get(kind.attribute) if kind.attribute else getattr(wanted, kind.name)
    return [] if value is None else [value]


def _toggled(kind: _Kind, text: str, asked: Asked, own: Own) -> str:
    """Return the list with this filter set, or without it where it is set."""
    chosen = _chosen(kind, asked.selection)
    if kind.name in REPEATED:
        values = [one for one in chosen if one != text] if text in chosen else [*chosen, text]
        return asked.url(_PATH, **{**own, kind.name: values})
    if kind.attribute is None:
        return asked.url(_PATH, **{**own, kind.name: None if text in chosen else text})
    added = () if text in chosen else (f"{kind.attribute}={text}",)
    return _without_segment(kind.attribute, asked, own, added)


def _without_segment(key: str, asked: Asked, own: Own, added: Sequence[str] = ()) -> str:
    """Return the list without the filter by an attribute, or with another one in its place."""
    return asked.url(_PATH, **{**own, "segment": [*other_segments(key, asked), *added]})


# --- Rows of the list of breaches, as the page shows them.

_WIDE: Final = 100.0  # a bar of stages, in its own units


class Row(NamedTuple):
    """One request, as it is shown."""

    number: int
    time: str
    entry: Entry
    request: str
    took: str
    verdict: str  # empty of a breach
    stage: str | None
    bar: Sequence[tuple[str, float, float]]  # the class of a stage's colour, where it begins and how wide it is
    stages: str  # the bar in words
    url: str
    version: str | None  # the release of its service


def rows_of(found: Sequence[Mapping[str, Any]], at: int, asked: Asked) -> list[Row]:
    """Return rows of `requests`, of which the first has `at` before it."""
    return [_row(number, one, asked) for number, one in enumerate(found, at + 1)]


def _row(number: int, found: Mapping[str, Any], asked: Asked) -> Row:
    made = entry(found)
    return Row(
        number,
        asked.time(made.start_unix_nano),
        made,
        request_text(made.name, found["url_path"] if made.route is None else made.route),
        breaches.column(made),
        "" if found["breached"] else found["verdict"] or "not judged",
        slowest_stage(found),
        _bar(made.stages),
        ", ".join(f"{name} {milliseconds(took)}" for name, took in made.stages.items()),
        asked.url(f"/trace/{made.trace_id}"),
        found[_VERSION],
    )


def _bar(stages: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return the stages side by side, each as wide as its share."""
    kept = {name: took for name, took in stages.items() if took > 0}
    whole, at, bar = sum(kept.values()), 0.0, []
    for name, took in kept.items():
        width = _WIDE * took / whole
        bar.append((stage_class(name), round(at, 2), round(width, 2)))
        at += width
    return bar
