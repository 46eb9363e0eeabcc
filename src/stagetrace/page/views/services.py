"""The map of services: who waits for whom, with time and breaches on each call. Drawn here, without a script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.analysis import service_map
from stagetrace.causes.cause import DOWNSTREAM
from stagetrace.output.units import milliseconds
from stagetrace.page.base import Part, View
from stagetrace.store import answers
from stagetrace.store.answers import requests_of
from stagetrace.store.base import RELATIONS
from stagetrace.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.analysis.service_map import Call, ServiceMap
    from stagetrace.page.base import Asked, Site
    from stagetrace.store.base import Reader

_WIDE: Final = 180  # of a box
_HIGH: Final = 40
_ACROSS: Final = 320  # from one box to the next
_DOWN: Final = 84
_EDGE: Final = 12
_LONGEST: Final = 24  # characters in a box
_THICKEST: Final = 8.0


class Box(NamedTuple):
    """A service, or what is called and is none, and where it is drawn."""

    name: str
    text: str
    x: int
    y: int
    url: str | None  # its board; None: no request of it is stored


class Line(NamedTuple):
    """A call, as a curve from box to box."""

    path: str
    thick: float
    share: float  # of the calls, those of breaches
    words: str  # beside it
    x: float
    y: float
    title: str


def calls(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the map of the calls of a selection."""
    if RELATIONS not in reader.capabilities:
        return Part("services_calls.html", {"found": None, "rows": []})
    with reader.relations(requests_of(asked.selection)) as relations:
        found = service_map.ask(relations, answers.count(relations))
        reason = relations.reason
    boxes = {one.name: one for one in _boxes(asked, found)}
    values: dict[str, Any] = {
        "found": found,
        "boxes": list(boxes.values()),
        "lines": [_line(one, found, boxes) for one in found.calls],
        "rows": [(one, asked.url("/breaches", service=one.caller, cause=DOWNSTREAM)) for one in found.calls],
        "wide": _EDGE * 2 + _WIDE + _ACROSS * (len(found.columns) - 1),
        "high": _EDGE * 2 + _HIGH + _DOWN * (max(map(len, found.columns), default=1) - 1),
        "box": (_WIDE, _HIGH),
        "most": service_map.MOST,
    }
    return Part("services_calls.html", values, reason)


def _boxes(asked: Asked, found: ServiceMap) -> Iterator[Box]:
    stored = {one.caller for one in found.calls} | {one.callee for one in found.calls if one.is_service}
    for column, names in enumerate(found.columns):
        for row, name in enumerate(names):
            text = printable(name)
            short = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
            url = asked.url("/board", service=name) if name in stored else None
            yield Box(name, short, _EDGE + column * _ACROSS, _EDGE + row * _DOWN, url)


def _line(one: Call, found: ServiceMap, boxes: dict[str, Box]) -> Line:
    a, b = boxes[one.caller], boxes[one.callee]
    x, y, to_x, to_y = a.x + _WIDE, a.y + _HIGH / 2, b.x, b.y + _HIGH / 2
    bend = max(40, abs(to_x - x) / 2)
    most = found.calls[0].took_ms or 1
    words = f"{one.calls:,.0f} x {milliseconds(one.mean_ms)}"
    title = f"{one.caller} calls {one.callee}: {words} on average, {one.of_breaches:,.0f} in breaches of {one.caller}"
    return Line(
        f"M{x} {y:g} C{x + bend:g} {y:g} {to_x - bend:g} {to_y:g} {to_x} {to_y:g}",
        round(1 + _THICKEST * one.took_ms / most, 2),
        one.of_breaches / one.calls,
        words,
        x + 0.62 * (to_x - x),
        round(y + 0.74 * (to_y - y) - 6, 1),
        printable(title),
    )


VIEW: Final = View("services", "Services", "/services", "services.html", {"calls": calls}, in_menu=False)
