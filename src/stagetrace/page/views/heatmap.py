"""The latency heat map: when requests took how long, and what distinguishes a box of it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, isfinite
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis import cases, latency_map
from stagetrace.analysis.cases import Box, Cases
from stagetrace.analysis.diagnosis import LEAST, diagnose, profiles
from stagetrace.analysis.latency_map import WIDTHS, Cell, LatencyMap, quantile_row
from stagetrace.output.chart import number
from stagetrace.output.units import UTC, Zone, mark, moment
from stagetrace.page.base import SHARED, Asked, BadRequest, Part, View

if TYPE_CHECKING:
    from stagetrace.analysis.causes import Contrast
    from stagetrace.page.base import Site
    from stagetrace.store.base import Reader, Relations

BOX: Final = ("from", "to", "least_ms", "most_ms")  # the parameters of a box
_MOST: Final = 3_000  # requests of each side that are compared
_FOREVER: Final = 2**63 - 1
_SLOW: Final = 0.95  # the preset where no request is judged
_SLICES: Final = 12  # rows of the table
_TICKS: Final = 12
_FINDINGS: Final = 10
_ATTRIBUTES: Final = 12
_VALUES: Final = 5  # of an attribute
_LONGEST: Final = 10
_S: Final = 10**9


def shell(asked: Asked, site: Site) -> Mapping[str, Any]:
    """Return the values of the form; what it asks for is checked here, too."""
    box_of(asked)
    selection = [(name, value) for name in SHARED for value in asked.params.get(name, ())]
    return {"selection": selection, "box_fields": {name: asked.one(name, "") for name in BOX}}


def box_of(asked: Asked) -> Box | None:
    """Return the box that a URL names, None where it names none. Raise BadRequest."""
    if not any(name in asked.params for name in BOX):
        return None
    since, until = (_time(asked, name, default) for name, default in (("from", 0), ("to", _FOREVER)))
    least, most = (_duration(asked, name, default) for name, default in (("least_ms", 0.0), ("most_ms", inf)))
    if since >= until:
        raise BadRequest("the box is empty: `from` is not before `to`\nchange one of them")
    if least >= most:
        raise BadRequest("the box is empty: `least_ms` is not below `most_ms`\nchange one of them")
    return Box(since, until, least, most)


def _time(asked: Asked, name: str, default: int) -> int:
    text = asked.one(name)
    if text is None:
        return default
    try:
        return moment(text).at(asked.now_ns, asked.zone)
    except argparse.ArgumentTypeError as error:
        raise BadRequest(f"{error}\nchange `{name}` in the URL") from None


def _duration(asked: Asked, name: str, default: float) -> float:
    text = asked.one(name)
    if text is None:
        return default
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not (isfinite(found) and found >= 0):
        raise BadRequest(f"{name}={text[:40]!r} is not a number of milliseconds, 0 or more\nchange the URL")
    return found


def cells(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the heat map."""
    with reader.relations(asked.selection) as relations:
        found = latency_map.ask(relations, *asked.window_ns)
        reason = relations.reason
    times = [exact(ns, asked.zone) for ns in found.times_ns] if found.cells else []
    data = {
        "origin_ms": found.origin_ns / 1e6,
        "width_ms": found.width_ns / 1e6,
        "times": times,
        "edges": found.edges_ms,
        "cells": [(one.column, one.row, round(one.requests, 2), round(one.breaches, 2)) for one in found.cells],
        "lines": [(one.threshold_ms, _objectives(one.objectives)) for one in found.lines],
        "ticks": ticks(found.times_ns[0], found.times_ns[-1], asked.zone),
        "zone": asked.zone.name,
        "judged": found.is_judged,
        "mark": mark(found.sample),
    }
    values = {"map": found, "data": data, "mark": data["mark"], "slices": _slices(found, asked)}
    return Part("heatmap_cells.html", values, reason)


def _objectives(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} objectives"


def exact(ns: int, zone: Zone) -> str:
    """Return a time with its offset, so that a URL means the same in each zone."""
    seconds, rest = divmod(ns, _S)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    wall = zone.wall(seconds)
    offset = "Z"
    if (minutes := _offset(seconds, zone) // 60) != 0:
        offset = f"{'+' if minutes > 0 else '-'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    return f"{wall:%Y-%m-%dT%H:%M:%S}{fraction}{offset}"


def _offset(seconds: int, zone: Zone) -> int:
    """Return by how many seconds clocks of a zone are ahead of UTC."""
    return round((zone.wall(seconds).replace(tzinfo=None) - UTC.wall(seconds).replace(tzinfo=None)).total_seconds())


def ticks(start_ns: int, end_ns: int, zone: Zone) -> list[tuple[float, str]]:
    """Return round times of a zone, each in ms and as a text."""
    length = end_ns - start_ns
    step = next((width for width in WIDTHS if length // width < _TICKS), WIDTHS[-1])
    ahead = _offset(start_ns // _S, zone) * _S
    form = "%Y-%m-%d" if step >= 86400 * _S else "%H:%M:%S" if step < 60 * _S else "%H:%M"
    made = []
    at = -(-(start_ns + ahead) // step) * step - ahead
    while at <= end_ns:
        seconds, rest = divmod(at, _S)
        fraction = f".{rest:09d}".rstrip("0") if rest else ""
        wall = zone.wall(seconds)
        is_new_day = step < 86400 * _S and not (wall.hour or wall.minute or wall.second or rest)
        made.append((at / 1e6, f"{wall:%m-%d}" if is_new_day else f"{wall:{form}}{fraction}"))
        at += step
    return made


def _slices(found: LatencyMap, asked: Asked) -> list[dict[str, Any]]:
    """Return what the picture shows as rows of a table: equal parts of its time."""
    step = max(1, -(-found.columns // _SLICES))
    by_slice: dict[int, list[Cell]] = {}
    for cell in found.cells:
        by_slice.setdefault(cell.column // step, []).append(cell)
    return [
        {
            "time": asked.time(found.times_ns[place * step], 0),
            "requests": sum(cell.requests for cell in some),
            "breaches": sum(cell.breaches for cell in some),
            "ranges": [_range(found, quantile_row(some, q)) for q in (0.5, 0.95)],
            "longest": _range(found, max(cell.row for cell in some)),
        }
        for place, some in sorted(by_slice.items())
    ]


def _range(found: LatencyMap, row: int) -> str:
    return f"{number(found.edges_ms[row])} to {number(found.edges_ms[row + 1])} ms"


@dataclass(frozen=True)
class _Side:
    """What is compared: a box, or the breaches where there is none."""

    box: Box | None
    cases: Cases
    is_preset: bool  # no URL names it

    @property
    def those(self) -> str:
        """Return what the requests are called."""
        return "breaches" if self.box is None else "requests in the box"

    @property
    def others(self) -> str:
        """Return what the other requests are called."""
        return "good requests" if self.box is None else "requests outside of it"


def box(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return what distinguishes the requests in the box from the others."""
    with reader.relations(asked.selection) as relations:
        side = _side(asked, relations)
        longest = cases.longest(relations, side.box, _LONGEST)
        reason = relations.reason
    found = diagnose(side.cases)
    described = profiles(side.cases)
    texts = {key: set(column) for key, column in side.cases.attributes.items()}
    values = {
        "side": side,
        "found": found,
        "drawn_box": _drawn(side.box),
        "described": _described(side.box, asked),
        "lacking": _lacking(side) if min(found.breaches, found.good) < LEAST else None,
        "findings": [_finding(one.contrast, side, texts, asked) for one in found.findings[:_FINDINGS]],
        "profiles": [
            (one, [(share, _filtered(asked, {one.key: share.value}, texts)) for share in one.shares[:_VALUES]])
            for one in described[:_ATTRIBUTES]
        ],
        "attributes": len(described),
        "longest": longest,
    }
    return Part("heatmap_box.html", values, reason)


def _side(asked: Asked, relations: Relations) -> _Side:
    """Return the box asked for; else the breaches or, where none is judged, what took longer than 95 %."""
    wanted = box_of(asked)
    if wanted is not None:
        return _Side(wanted, cases.ask_box(relations, wanted, _MOST), is_preset=False)
    found = cases.ask(relations, _MOST)
    if not found.breaches + found.good:
        slow = latency_map.ask(relations, *asked.window_ns).quantile(_SLOW)
        if slow is not None:
            preset = cases.Box(0, _FOREVER, slow, inf)
            return _Side(preset, cases.ask_box(relations, preset, _MOST), is_preset=True)
    return _Side(None, found, is_preset=True)


def _drawn(found: Box | None) -> dict[str, float | None] | None:
    """Return a box as the script draws it: times in ms, None for an open end."""
    if found is None:
        return None
    return {
        "from": found.since_ns / 1e6 if found.since_ns else None,
        "to": found.until_ns / 1e6 if found.until_ns < _FOREVER else None,
        "least": found.least_ms,
        "most": found.most_ms if isfinite(found.most_ms) else None,
    }


def _described(found: Box | None, asked: Asked) -> str:
    """Return a box in words."""
    if found is None:
        return ""
    begins = asked.time(found.since_ns, 0) if found.since_ns else "The start"
    ends = asked.time(found.until_ns, 0) if found.until_ns < _FOREVER else "the end"
    took = f"{number(found.least_ms)} to {number(found.most_ms)} ms"
    if not isfinite(found.most_ms):
        took = f"{number(found.least_ms)} ms or more"
    return f"{begins} to {ends}, {took}"


def _lacking(side: _Side) -> str:
    """Return what there is too little of, and how much would be enough."""
    if side.box is None and not side.cases.rows:
        return "No request here is judged, and none has a duration to compare."
    numbers = f"{side.cases.breaches:,.0f} {side.those} and {side.cases.good:,.0f} {side.others}"
    return f"Not enough data: {numbers}; {LEAST} of each are needed."


def _finding(one: Contrast, side: _Side, texts: Mapping[str, set[str | None]], asked: Asked) -> dict[str, Any]:
    """Return one finding as its row shows it, and the link that selects its requests, by whichever of its names can."""
    links = (_filtered(asked, values, texts) for values in (one.values, *one.also))
    return {
        "one": one,
        "name": _named(one.values),
        "also": [_named(values) for values in one.also],
        "along": [_named(values) for values in one.along],
        "inside": one.breached / side.cases.breaches,
        "outside": one.good / side.cases.good,
        "url": next((link for link in links if link is not None), None),
    }


def _named(values: Mapping[str, str | None]) -> str:
    return " and ".join(f"no {key}" if value is None else f"{key} = {value}" for key, value in values.items())


def _filtered(asked: Asked, values: Mapping[str, str | None], texts: Mapping[str, set[str | None]]) -> str | None:
    """Return the link that keeps the box and selects requests with these values.

    None where no filter can: for the absence of an attribute, and for a range of numbers, which is no value of `texts`.
    """
    if any(value is None or value not in texts[key] for key, value in values.items()):
        return None
    segments = {**asked.selection.segments, **{key: str(value) for key, value in values.items()}}
    kept = {name: asked.one(name) for name in BOX if name in asked.params}
    return asked.url("/heatmap", segment=[f"{key}={value}" for key, value in segments.items()], **kept)


VIEW: Final = View("heatmap", "Heat map", "/heatmap", "heatmap.html", {"cells": cells, "box": box}, shell, keeps=BOX)
