"""Compare two versions, periods or other selections: how long requests of each took, and by how much they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import exp, isfinite, log, log10
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

from stagetrace import semconv
from stagetrace.errors import StagetraceError, StoreError
from stagetrace.output.chart import number
from stagetrace.output.table import Table
from stagetrace.output.units import milliseconds
from stagetrace.page.base import BadRequest, Part, View, url_time

if TYPE_CHECKING:
    from stagetrace.output.answer import Answer
    from stagetrace.page.base import Asked, Site
    from stagetrace.store.base import Reader

SERVICE_VERSION: Final = "service.version"
_ELSEWHERE: Final = ("store", "file")  # of a side of the command: other stores, which a page does not open
_NEWEST: Final = 6  # versions, models and routes that are suggested, of each kind
_HALF: Final = 110  # height of a histogram, px
_MIDDLE: Final = 150  # where both begin
_TICKS: Final = 8
_LEAST_REACH: Final = log(1.1)  # of the axis of differences
_MOST_REACH: Final = log(32)
_PERCENT: Final = 100
_WHOLE: Final = 0.1  # shares from which on whole percents are shown

Pairs = Sequence[str]  # KEY=VALUE, all of which hold on one side


class Preset(NamedTuple):
    """Two sides that may be worth comparing."""

    name: str
    a: Pairs
    b: Pairs


class Difference(NamedTuple):
    """One quantile of one stage as a line: what it is, both values, words, and where on an axis of 0 to 100."""

    stage: str
    at: str
    values: str
    words: str
    verdict: str  # slower, faster, or empty where it is not sure
    dot: float | None
    low: float
    high: float
    is_bounded: bool


def shell(asked: Asked, site: Site) -> Mapping[str, Any]:
    """Return the sides that the form has."""
    a, b = sides(asked)
    return {"a": a, "b": b, "swapped": _url(asked, b, a), "newest": asked.url(VIEW.path)}


def sides(asked: Asked) -> tuple[Pairs, Pairs]:
    """Return both sides, or none. Raise BadRequest where one is missing, or names another store."""
    found = asked.params.get("a", ()), asked.params.get("b", ())
    for name, pairs in zip("ab", found, strict=True):
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not key or not equals or not value:
                raise BadRequest(f"{name}={pair[:80]!r} is not KEY=VALUE\nname an attribute and its value: version=3")
            if key in _ELSEWHERE:
                raise BadRequest(
                    f"{name}={pair[:80]!r} names another store\nstagetrace compare reads it, the page does not"
                )
    if bool(found[0]) != bool(found[1]):
        missing = "b" if found[0] else "a"
        raise BadRequest(
            f"{missing} is missing: a comparison has two sides\ngive both, or neither for the newest versions"
        )
    return found


def compared(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the comparison: of both sides, or of the newest two versions, or else how to get the time before."""
    options = [f"--{name}={pair}" for name, pairs in zip("ab", sides(asked), strict=True) for pair in pairs]
    try:
        answer = site.ask("compare", reader, asked.selection, options, asked.zone)
    except (StoreError, BadRequest):
        raise
    except StagetraceError as error:  # two sides that cannot be compared
        raise BadRequest(str(error)) from None
    if answer.keys["a"] is None:
        before = _before(asked)
        address = asked.url(f"{VIEW.path}/answer", a=before.a, b=before.b)
        return Part("compare_before.html", {"address": address}, answer.reason)
    reach = _reach(answer)
    values = {
        "answer": answer,
        "sides": [_side(asked, name, answer.keys[name]) for name in "ab"],
        "picture": picture(answer),
        "differences": list(differences(answer, reach)) if all(answer.keys[name]["stored"] for name in "ab") else [],
        "axis": [f"{_PERCENT * (exp(end) - 1):+.0f} %" for end in (-reach, reach)],
        "tables": [part for part in answer.parts if isinstance(part, (str, Table))],
    }
    return Part("compare_answer.html", values, answer.reason)


def suggested(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return which sides there may be: versions and models that requests have, and parts of the window."""
    with reader.relations(asked.selection) as relations:
        models = relations.reduce("versions", ["service", "model", "model_version"])
        services = relations.reduce("versions", ["service", SERVICE_VERSION])
        routes = relations.reduce("versions", ["path"])
    presets = [*_presets(models, services), _before(asked), _halves(asked)]
    conditions = [
        *(f"{key}={row[column]}" for rows, key, column in (
            (models, semconv.ML_MODEL_VERSION, "model_version"), (services, SERVICE_VERSION, SERVICE_VERSION),
            (models, "model", "model"), (services, "service", "service"), (routes, "route", "path"),
        ) for row in rows if row[column] is not None),
    ]  # fmt: skip
    values = {
        "presets": [(one.name, _url(asked, one.a, one.b)) for one in presets],
        "conditions": list(dict.fromkeys(conditions))[: 10 * _NEWEST],
    }
    return Part("compare_suggested.html", values, relations.reason)


def _presets(models: Sequence[Mapping[str, Any]], services: Sequence[Mapping[str, Any]]) -> Iterator[Preset]:
    """Yield pairs of versions of each service, the newest ones of all first, then pairs of its models."""
    several = len({row["service"] for row in services}) > 1
    found = [
        *_newest_two(services, ("service",), SERVICE_VERSION, SERVICE_VERSION),
        *_newest_two(models, ("service", "model"), "model_version", semconv.ML_MODEL_VERSION),
    ]
    # Versions of a service whose models have other names in each of them.
    covered = {group["service"] for _, group, key, *_ in found if key != SERVICE_VERSION}
    rest = [row for row in models if row["service"] not in covered]
    found += _newest_two(rest, ("service",), "model_version", semconv.ML_MODEL_VERSION)
    for _, group, key, old, new in sorted(found, key=lambda one: -one[0])[:_NEWEST]:
        of = [(name, value) for name, value in group.items() if value and (name != "service" or several)]
        names = " ".join(value for _, value in of) or "version"
        pairs = [f"{name}={value}" for name, value in of]
        yield Preset(f"{names} {new} against {old}", (*pairs, f"{key}={old}"), (*pairs, f"{key}={new}"))
    yield from _models(models, several=several)


def _newest_two(
    rows: Sequence[Mapping[str, Any]], group: Sequence[str], column: str, key: str
) -> Iterator[tuple[int, dict[str, str | None], str, str, str]]:
    """Yield of each group that has two versions when the newest began, the group, the key and both versions."""
    found: dict[tuple[str | None, ...], dict[str, int]] = {}
    for row in rows:
        if row[column] is not None:
            of = found.setdefault(tuple(row[name] for name in group), {})
            of[row[column]] = min(row["first"], of.get(row[column], row["first"]))
    for values, firsts in found.items():
        if len(firsts) > 1:
            old, new = sorted(firsts, key=lambda version: (firsts[version], version))[-2:]
            yield firsts[new], dict(zip(group, values, strict=True)), key, old, new


def _models(rows: Sequence[Mapping[str, Any]], *, several: bool) -> Iterator[Preset]:
    """Yield the two models with most requests of each service: those of two services serve other requests."""
    sizes: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["model"] is not None:
            of = sizes.setdefault(row["service"], {})
            of[row["model"]] = of.get(row["model"], 0.0) + row["requests"]
    for service, of in sorted(sizes.items(), key=lambda one: -sum(one[1].values()))[:_NEWEST]:
        most = sorted(of, key=lambda name: -of[name])[:2]
        if len(most) > 1:
            pairs = (f"service={service}",) if several else ()
            name = f"{service} model" if several else "model"
            a, b = ((*pairs, f"model={one}") for one in most)
            yield Preset(f"{name} {most[1]} against {most[0]}", a, b)


def _before(asked: Asked) -> Preset:
    start, end = asked.window_ns
    return Preset("this time against as much before", (_period(2 * start - end, start),), (_period(start, end),))


def _halves(asked: Asked) -> Preset:
    start, end = asked.window_ns
    middle = (start + end) // 2
    return Preset("second half against the first", (_period(start, middle),), (_period(middle, end),))


def _period(start: int, end: int) -> str:
    return f"period={'..'.join(url_time(max(0, at), 0) for at in (start, end))}"


def _url(asked: Asked, a: Pairs, b: Pairs) -> str:
    return asked.url(VIEW.path, a=a, b=b)


def _side(asked: Asked, name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return one side's name, its requests and links to them."""
    chosen = keys["selection"]
    wanted: list[tuple[str, str]] = [("tz", asked.params["tz"][-1])] if "tz" in asked.params else []
    for field in ("since", "until"):
        ns = chosen[f"{field}_unix_nano"]
        if ns is not None:
            wanted.append((field, url_time(ns)))
        elif field in asked.params:
            wanted.append((field, asked.params[field][-1]))
    wanted += [(field, chosen[field]) for field in ("service", "route", "model") if chosen[field]]
    wanted += [("segment", f"{key}={value}") for key, value in chosen["segments"].items()]
    query = urlencode(wanted)
    return {
        "letter": name.upper(),
        "name": keys["name"],
        "requests": keys["requests"],
        "links": [
            (word, f"{path}?{query}")
            for word, path in (("breaches", "/breaches"), ("heat map", "/heatmap"), ("stages", "/stages"))
        ],
    }


def picture(answer: Answer) -> dict[str, Any] | None:
    """Return the mirrored histograms: a upwards, b downwards, over one axis of logarithms; x in percent, y in px."""
    shape = answer.keys["histogram"]
    edges: Sequence[float] = shape["edges_ms"]
    totals = [sum(shape[name]) for name in "ab"]
    if len(edges) < 2 or not all(totals):  # noqa: PLR2004 -- one bin
        return None
    parts = [[count / total for count in shape[name]] for name, total in zip("ab", totals, strict=True)]
    most = max(max(part) for part in parts)

    def place(ms: float) -> float:
        return _PERCENT * min(max(log(max(ms, edges[0]) / edges[0]) / log(edges[-1] / edges[0]), 0.0), 1.0)

    bars = []
    for name, part in zip("ab", parts, strict=True):
        for low, high, share in zip(edges, edges[1:], part, strict=False):
            tall = _HALF * share / most
            if share:
                words = f"{name.upper()}: {_PERCENT * share:.1f} % took {number(low)} to {number(high)} ms"
                bars.append(
                    (
                        name,
                        place(low),
                        place(high) - place(low),
                        _MIDDLE - tall if name == "a" else _MIDDLE,
                        tall,
                        words,
                    )
                )
    marks = [
        (name, f"p{_PERCENT * one['q']:g} {milliseconds(one[f'{name}_ms'])}", place(one[f"{name}_ms"]), line)
        for line, one in enumerate(one for one in answer.keys["quantiles"] if one["q"] in (0.5, 0.99))
        for name in "ab"
        if one[f"{name}_ms"] is not None
    ]
    rows = [
        (f"{number(low)} to {number(high)} ms", a, b)
        for low, high, a, b in zip(edges, edges[1:], *parts, strict=False)
        if a or b
    ]
    return {
        "bars": bars,
        "marks": marks,
        "ticks": [(place(ms), number(ms)) for ms in _ticks(edges[0], edges[-1])],
        "rows": rows,
    }


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers on an axis of logarithms: 1, 2 and 5 of each decade, or fewer."""
    decades = range(int(log10(low)) - 1, int(log10(high)) + 2)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [one for power in decades for step in steps if low <= (one := step * 10.0**power) <= high]
        if len(found) <= _TICKS:
            break
    return found


def differences(answer: Answer, reach: float) -> Iterator[Difference]:
    """Yield a line for each quantile of the whole request and of each stage, in their order."""
    order = {stage: place for place, stage in enumerate(semconv.STAGES)}
    stages = sorted(answer.keys["stages"], key=lambda one: order.get(one["stage"], len(order)))
    for stage, quantiles in (
        ("request", answer.keys["quantiles"]),
        *((one["stage"], one["quantiles"]) for one in stages),
    ):
        for one in quantiles:
            yield _difference(stage, one, reach)


def _difference(stage: str, one: Mapping[str, Any], reach: float) -> Difference:
    a, b, found = one["a_ms"], one["b_ms"], one["difference"]
    low, high = one["interval"] or (None, None)
    values = " to ".join("-" if ms is None else milliseconds(ms) for ms in (a, b))
    shift = one["shift_ms"] or (None, None)
    is_sure = (shift[0] is not None and shift[0] > 0) or (shift[1] is not None and shift[1] < 0)
    word = "" if found is None or not found else "slower" if found > 0 else "faster"
    text = "-" if found is None else f"{_signed(found)} % [{_signed(low)}, {_signed(high)}]"
    note = word if is_sure else f"{word}, not surely" if word else ""
    return Difference(
        stage,
        f"p{_PERCENT * one['q']:g}",
        values,
        f"{text} {note}".strip(),
        word if is_sure else "",
        None if found is None else _at(found, reach),
        _at(-1.0 if low is None else low, reach),
        _at(float("inf") if high is None else high, reach),
        low is not None and high is not None,
    )


def _signed(share: float | None) -> str:
    """Return a difference in percent, with a digit more where it is small; `?` where it is not known."""
    return "?" if share is None else f"{_PERCENT * share:+.{0 if abs(share) >= _WHOLE else 1}f}"


def _at(share: float, reach: float) -> float:
    """Return where on the axis a difference is: by the logarithm of the ratio, 0 in the middle."""
    ratio = -reach if share <= -1 else reach if not isfinite(share) else log(1 + share)
    return _PERCENT * (min(max(ratio / reach, -1.0), 1.0) + 1) / 2


def _reach(answer: Answer) -> float:
    """Return how far the axis of differences goes to either side, as a logarithm of the ratio."""
    every = [*answer.keys["quantiles"], *(one for stage in answer.keys["stages"] for one in stage["quantiles"])]
    ends = [
        end for one in every for end in (one["difference"], *(one["interval"] or ())) if end is not None and end > -1
    ]
    return min(max([_LEAST_REACH, *(abs(log(1 + end)) for end in ends)]), _MOST_REACH)


VIEW: Final = View(
    "compare",
    "Compare",
    "/compare",
    "compare.html",
    {"answer": compared, "suggested": suggested},
    shell,
    keeps=("a", "b"),
)
