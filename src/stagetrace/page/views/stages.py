"""Stages at a percentile: shares that add up, of everything, by group, and over time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis import bottleneck, routes_and_stages, stage_bins
from stagetrace.analysis.stage_bins import NO_STAGE
from stagetrace.output import units
from stagetrace.output.units import milliseconds
from stagetrace.page.base import BadRequest, Part, View, url_time
from stagetrace.page.templates import stage_class
from stagetrace.semconv import as_text
from stagetrace.store.reductions import PATH, REQUESTS, TYPED

if TYPE_CHECKING:
    from stagetrace.analysis.bottleneck import Course, ShareGroup, Shares, Whole
    from stagetrace.analysis.estimates import Sample
    from stagetrace.page.base import Asked, Site
    from stagetrace.store.base import Reader, Value

PRESETS: Final = ("50", "90", "95", "99")
GROUPS: Final = 20  # that are shown
# What is offered to group by -> its column or attribute. Any other name is a column with an attribute, or an attribute.
KEYS: Final = {
    "route": PATH,
    "model": "model",
    "version": "model_version",
    "service": "service",
    "service.version": "service.version",
}
_FIELDS: Final = ("route", "model", "service")  # of a selection
_MEDIAN: Final = 0.5
_PERCENT: Final = 100
_S: Final = 10**9


class Percentile(NamedTuple):
    """A percentile of the total: as it is written, and its rank."""

    text: str
    rank: float

    @property
    def name(self) -> str:
        """Return it as `p95`."""
        return f"p{self.text}"


class Bit(NamedTuple):
    """A part of a bar: the stage, its style, where it begins and how long it is (0 to 100), and words for it."""

    name: str
    style: str
    at: float
    size: float
    words: str


def shell(asked: Asked, site: Site) -> Mapping[str, Any]:
    """Return what the controls show."""
    chosen, (by, _) = percentile(asked), grouping(asked)
    return {
        "percentile": chosen,
        "by": by,
        "percentiles": [(f"p{one}", _url(asked, p=one), one == chosen.text) for one in PRESETS],
        "groupings": [(one, _url(asked, by=one), one == by) for one in KEYS],
    }


def percentile(asked: Asked) -> Percentile:
    """Return the percentile that a URL names. Raise BadRequest where it names none."""
    text = asked.one("p", "95") or ""
    found = re.fullmatch(r"p?(\d{1,2}(?:\.\d{1,3})?)", text, re.ASCII)
    number = float(found[1]) if found else 0.0
    if not 1 <= number < _PERCENT:
        raise BadRequest(f"p={text[:40]!r} is no percentile from 1 to 99.999\nwrite 95, p95 or 99.9")
    return Percentile(f"{number:g}", round(number / _PERCENT, 8))


def grouping(asked: Asked) -> tuple[str, str]:
    """Return what a URL groups by, and its column or attribute. Raise BadRequest for what makes no groups."""
    by = asked.one("by", "route") or "route"
    by = "route" if by == PATH else by
    column = KEYS.get(by, by)
    if column in REQUESTS and column not in (*TYPED, *_FIELDS):
        raise BadRequest(f"by={by!r} makes no groups\nname route, model, version, service, or an attribute of requests")
    return by, column


def whole(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return where the time of the whole selection goes: on average, at the usual percentiles and at the one chosen."""
    chosen = percentile(asked)
    every = {
        one.name: one for one in sorted({Percentile(p, float(p) / _PERCENT) for p in PRESETS} | {chosen}, key=_rank)
    }
    ranks = [one.rank for one in every.values()]
    with reader.relations(asked.selection) as relations:
        found = bottleneck.whole(relations, ranks, (_MEDIAN, chosen.rank))
    if found is None:
        return Part("stages_none.html", {}, relations.reason)
    columns = {"mean": found.mean, **{name: found.at[one.rank] for name, one in every.items()}}
    names, at = _order(columns.values()), found.at[chosen.rank]
    values = {
        "chosen": chosen.name,
        "sentence": sentence(found, chosen),
        "columns": columns,
        "bars": {name: list(bits(one)) for name, one in columns.items() if one is not None},
        "needed": {name: stage_bins.needed(one.rank) for name, one in every.items() if found.at[one.rank] is None},
        "rows": [(label(name), style(name), name, _breaches(asked, name)) for name in names],
        "requests": _count(found.requests, found.sample),
        "stages": [(label(name), style(name)) for name in names],
        "band": None if at is None else at.band,
        "whole": found,
        "note": units.note("requests", found.sample),
    }
    return Part("stages_whole.html", values, relations.reason)


def groups(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return where the time of the largest groups goes."""
    chosen, (by, column) = percentile(asked), grouping(asked)
    with reader.relations(asked.selection) as relations:
        found = bottleneck.by_key(relations, column, chosen.rank, GROUPS)
    names = _order(group.shares for group in found.groups)
    values = {
        "by": by,
        "percentile": chosen,
        "needed": stage_bins.needed(chosen.rank),
        "count": found.count,
        "is_known": any(group.key is not None for group in found.groups),
        "stages": [(label(name), style(name)) for name in names],
        "rows": [_row(asked, by, group, names) for group in found.groups],
    }
    return Part("stages_groups.html", values, relations.reason)


def times(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return how long each stage takes, exactly."""
    with reader.relations(asked.selection) as relations:
        found = routes_and_stages.of_all(relations)
    if found is None:
        return Part("stages_none.html", {}, relations.reason)
    rows = [
        (one, label(one.stage) if one.stage else "(request)", style(one.stage), _count(one.count, found.sample))
        for one in (found.whole, *found.stages)
    ]
    return Part("stages_times.html", {"rows": rows}, relations.reason)


def course(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return where the time goes over time."""
    chosen = percentile(asked)
    with reader.relations(asked.selection) as relations:
        found = bottleneck.over_time(relations, chosen.rank, *asked.window_ns)
    if found is None:
        return Part("stages_none.html", {}, relations.reason)
    shown = [one for one in found.buckets if one is not None]
    is_share = asked.one("show") == "share"
    top = None if is_share else _round_up(max((one.shares.total_ms for one in shown), default=0.0))
    names = _order(one.shares for one in shown)
    values = {
        "percentile": chosen,
        "shows": [("time", _url(asked, show=()), not is_share), ("share", _url(asked, show="share"), is_share)],
        "course": found,
        "top": top,
        "stages": [(label(name), style(name)) for name in names],
        "columns": list(_columns(asked, found, top, names)),
        "ends": [_time(asked, found, steps) for steps in (0, len(found.buckets))],
        "from_ms": found.origin_ns / 1e6,
        "to_ms": (found.origin_ns + len(found.buckets) * found.width_ns) / 1e6,
        "width": _span(found.width_ns),
        "means": sum(one.shares.rank is None for one in shown),
        "filled": len(shown),
        "needed": stage_bins.needed(chosen.rank),
    }
    return Part("stages_course.html", values, relations.reason)


def sentence(found: Whole, chosen: Percentile) -> str:
    """Return which stage has the time at a percentile, and which at the median; and which makes the tail longer."""
    at, median = found.at[chosen.rank], found.at[_MEDIAN]
    if at is None:
        enough = f"Not enough requests for {chosen.name} ({stage_bins.needed(chosen.rank):,} would be enough)"
        return f"{enough}; on average ({milliseconds(found.mean.total_ms)}) {_leading(found.mean)}."
    which = "Of the stored requests, sampled in a way that is not known, at" if found.sample.is_unknown else "At"
    text = f"{which} {chosen.name} ({milliseconds(at.total_ms)}) {_leading(at)}"
    rivals = [name for name in at.share if name != at.greatest and _may_exceed(at, name)]
    if rivals:
        second = max(rivals, key=lambda name: at.share[name])
        text += f" and {label(second)} {_percent(at.share[second])}, too few requests to know which takes more"
    if chosen.rank <= _MEDIAN or median is None:
        return f"{text}."
    text += f"; at p50 ({milliseconds(median.total_ms)}) {_leading(median)}."
    more = at.total_ms - median.total_ms
    grown = max(at.share, key=lambda name: at.ms(name) - median.ms(name), default=None)
    if grown is not None and more > 0:
        part = min(1.0, (at.ms(grown) - median.ms(grown)) / more)
        text += f" Of the {milliseconds(more)} between them {label(grown)} makes up {_percent(part)}."
    return text


def _leading(shares: Shares) -> str:
    """Return which stage takes most of the time, in words."""
    if not shares.share:
        return "no time is taken"
    return f"{label(shares.greatest)} takes {_percent(shares.share[shares.greatest])} of the time"


def _may_exceed(at: Shares, name: str | None) -> bool:
    """Return whether a stage may in truth take more than the one with the greatest share: intervals overlap."""
    return at.interval is not None and at.interval[name][1] > at.interval[at.greatest][0]


def bits(shares: Shares) -> Iterator[Bit]:
    """Yield the parts of a bar, which fill it."""
    at = 0.0
    for name, share in shares.share.items():
        size = _PERCENT * share
        words = f"{label(name)} {size:.1f} %, {milliseconds(shares.ms(name))}"
        yield Bit(label(name), style(name), at, size, words)
        at += size


def _columns(asked: Asked, found: Course, top: float | None, names: Sequence[str | None]) -> Iterator[dict[str, Any]]:
    """Yield what a bucket that has requests shows: its bar, from the bottom up, and its line of the table.

    `top`: the time that is as high as the picture; None where each bar is.
    """
    for place, group in enumerate(found.buckets):
        if group is None:
            continue
        start = found.origin_ns + place * found.width_ns
        scale = group.shares.total_ms / top if top else 1.0
        yield {
            "place": place,
            "time": _time(asked, found, place),
            "bits": [
                bit._replace(at=_PERCENT - (bit.at + bit.size) * scale, size=bit.size * scale)
                for bit in bits(group.shares)
            ],
            "requests": _count(group.requests, group.sample),
            "total_ms": group.shares.total_ms,
            "is_mean": group.shares.rank is None,
            "shares": [group.shares.share.get(name, 0.0) for name in names],
            "zoom": _url(asked, since=url_time(start), until=url_time(start + found.width_ns)),
        }


def _time(asked: Asked, found: Course, place: int) -> str:
    """Return when a bucket begins, as finely as they follow each other."""
    return asked.time(found.origin_ns + place * found.width_ns, 0 if found.width_ns >= _S else 3)


def _row(asked: Asked, by: str, group: ShareGroup, names: Sequence[str | None]) -> dict[str, Any]:
    """Return what a group's line shows."""
    narrowed = _narrowed(asked, by, group.key)
    return {
        "name": as_text(group.key),
        "requests": _count(group.requests, group.sample),
        "total_ms": group.shares.total_ms,
        "is_mean": group.shares.rank is None,
        "bits": list(bits(group.shares)),
        "shares": [group.shares.share.get(name, 0.0) for name in names],
        "links": None
        if narrowed is None
        else {
            "only": _url(asked, **narrowed),
            "breaches": asked.url("/breaches", **narrowed),
            "heat map": asked.url("/heatmap", **narrowed),
        },
    }


def _narrowed(asked: Asked, by: str, key: Value) -> dict[str, Sequence[str]] | None:
    """Return the parameters that select one group; None for the requests that lack what groups are made by."""
    if key is None:
        return None
    if by in _FIELDS:
        return {by: (as_text(key),)}
    column = KEYS.get(by, by)
    attribute = TYPED[column][0] if column in REQUESTS else column
    wanted = f"{attribute}={as_text(key)}"
    return {"segment": tuple(dict.fromkeys((*asked.params.get("segment", ()), wanted)))}


def _breaches(asked: Asked, stage: str | None) -> str | None:
    """Return a link to the breaches that a stage is to blame for."""
    if stage is NO_STAGE:
        return None
    segments = (*asked.params.get("segment", ()), f"{semconv.SLA_BREACH_STAGE}={stage}")
    return asked.url("/breaches", segment=tuple(dict.fromkeys(segments)))


def _url(asked: Asked, **changes: str | Sequence[str]) -> str:
    kept = {name: asked.params[name] for name in VIEW.keeps if name in asked.params}
    return asked.url(VIEW.path, **{**kept, **changes})


def _order(some: Iterable[Shares | None]) -> list[str | None]:
    """Return the stages that take any time, in their order."""
    found = dict.fromkeys(name for one in some if one is not None for name in one.share)
    own = sorted(name for name in found if name is not NO_STAGE and name not in semconv.STAGES)
    return [name for name in (*semconv.STAGES, *own, NO_STAGE) if name in found]


def label(stage: str | None) -> str:
    """Return a stage's name for people."""
    return "(no stage)" if stage is NO_STAGE else stage


def style(stage: str | None) -> str:
    """Return the class that has a stage's colour."""
    return "stage-none" if stage is NO_STAGE else stage_class(stage)


def _rank(one: Percentile) -> float:
    return one.rank


def _count(requests: float, sample: Sample) -> str:
    """Return how many requests there are, with the mark of an estimate."""
    return f"{units.mark(sample)}{requests:,.0f}"


def _percent(share: float) -> str:
    return f"{_PERCENT * share:.0f} %"


def _round_up(value: float) -> float:
    """Return the next number of one digit that counts."""
    if value <= 0:
        return 1.0
    power = 10.0 ** floor(log10(value))
    return ceil(value / power) * power


def _span(ns: int) -> str:
    """Return the width of a bucket in words."""
    for unit, size in (("d", 86_400 * 10**9), ("h", 3600 * 10**9), ("min", 60 * 10**9), ("s", 10**9)):
        if ns >= size and ns % size == 0:
            return f"{ns // size} {unit}"
    return f"{ns / 1e6:g} ms"


VIEW: Final = View(
    "stages",
    "Stages",
    "/stages",
    "stages.html",
    {"whole": whole, "course": course, "groups": groups, "times": times},
    shell,
    keeps=("p", "by", "show"),
)
