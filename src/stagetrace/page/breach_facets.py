"""Facets of breaches: the properties that a list is narrowed by, as links that set or clear a filter in the URL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from stagetrace import semconv
from stagetrace.page.asked import LONGEST, REPEATED
from stagetrace.store import code_lines

if TYPE_CHECKING:
    from stagetrace.page.asked import Asked
    from stagetrace.store.base import Selection

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
    return found | {"codes": [code_lines.pattern(wanted.codes)] if wanted.codes else []}


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
            _toggled(kind, row["value"], asked, own) if _fits(kind, row["value"]) else None,
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


def _fits(kind: _Kind, text: str | None) -> bool:
    return bool(text) and len(f"{kind.attribute or ''}={text}") <= LONGEST


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
