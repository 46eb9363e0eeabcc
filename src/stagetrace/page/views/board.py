"""The board: what is wrong now, breaches over time, objectives, the newest breaches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from zlib import crc32

from stagetrace.analysis import routes_and_stages, wrong_now
from stagetrace.analysis.attainment import Target, exact_interval, is_missed
from stagetrace.analysis.slo import SHOWN
from stagetrace.backend.alerts.silences import of as silence_of
from stagetrace.output import objectives
from stagetrace.output.units import milliseconds
from stagetrace.page import silencing
from stagetrace.page.base import BadRequest, Part, View, url_time
from stagetrace.page.moments import moments
from stagetrace.semconv import SLA_BREACH_STAGE, STAGES
from stagetrace.store.answers import requests_of
from stagetrace.store.base import COUNTS, Selection
from stagetrace.store.entries import request_text

if TYPE_CHECKING:
    from stagetrace.analysis.estimates import Attainment
    from stagetrace.analysis.routes_and_stages import Route
    from stagetrace.analysis.wrong_now import Found, Kind, Loss
    from stagetrace.page.base import Asked, Site
    from stagetrace.store.base import Reader

_BY: Final = ("cause", "stage")
_SERIES: Final = {"cause": 5, "stage": 8}  # told apart in the picture
_LOSSES: Final = 6
_NEWEST: Final = 6
_ALERTS: Final = 50
_NAMES: Final = 1_000  # combinations of service, route and model that names are taken from
_NS: Final = 10**9
_DAY_NS: Final = 86_400 * _NS
_OTHERS: Final = "all others"
_NO_STAGE: Final = "(no stage)"


def now(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the sentence that says what is wrong, and breaches over time."""
    by = _by(asked)
    with reader.relations(requests_of(asked.selection)) as relations:
        found = wrong_now.ask(relations, *asked.window_ns)
        reason = relations.reason
    if not found.counts.requests:
        return _nothing(asked, reader, site, reason)
    if found.has_rest:
        most = f"objectives beyond the {wrong_now.OBJECTIVES} with most breaches are counted, but not looked at alone"
        reason = most if reason is None else f"{reason}; {most}"
    causes = asked.selection.causes
    losses = [one for one in found.losses if not causes or one.kind.cause in causes]
    series = _series(asked, found, by)
    values = {
        "found": found,
        "worst": found.missed[0] if found.missed else None,
        "main": _main(found),
        "when": _when(asked, found),
        "by": by,
        "series": series,
        "chart": _chart(asked, found, series),
        "losses": losses[:_LOSSES],
        "all_losses": len(losses),
        "undetermined": sum(one.missed is None for one in found.lines),
        "narrowed": lambda bucket: _narrowed(asked, found.start(bucket), found.width_ns),
        "lost_ms": sum(one.over_ms for one in losses),
        "kind_url": lambda kind: _kind_url(asked, kind),
        "share": objectives.percent,
        "wanted": objectives.wanted,
        "seconds": _seconds,
    }
    return Part("board_now.html", values, reason)


def alerts(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the alerts of objectives: those that fire, those that may, and those that did."""
    every = [] if site.alerts is None else [(one, dict(one.labels), dict(one.annotations)) for one in site.alerts()]
    # One that says that there is no data is of an objective, and of no service.
    services = (asked.selection.service, "")
    found = [one for one in every if services[0] is None or one[1].get("service", "") in services]
    silences = site.silences()
    rows = [(*one, silence_of(one[0].labels, silences)) for one in found[:_ALERTS]]
    return Part("board_alerts.html", {"alerts": rows, "all_alerts": len(found), "lengths": silencing.CHOICES})


def _by(asked: Asked) -> str:
    by = asked.one("by", _BY[0]) or ""
    if by not in _BY:
        raise BadRequest(f"by={by[:40]!r} is neither {_BY[0]} nor {_BY[1]}\nchange the URL")
    return by


def _nothing(asked: Asked, reader: Reader, site: Site, reason: str | None) -> Part:
    """Return what to do where the window has no request."""
    services = reader.services()
    newest = reader.breaches(replace(asked.selection, limit=1)).tally.newest_unix_nano if services else None
    address = next((where for name, where in site.about if name == "OTLP HTTP"), None)
    earlier = None if newest is None else _narrowed(asked, newest - 600 * _NS, 601 * _NS)
    values = {"services": services, "newest": newest, "earlier": earlier, "address": address}
    return Part("board_nothing.html", values, reason)


def _narrowed(asked: Asked, start_ns: int, width_ns: int) -> str:
    """Return the link to the board of a part of the time."""
    since, until = (url_time(ns, 0) for ns in (start_ns, start_ns + width_ns))
    return asked.url("/board", since=since, until=until, by=asked.one("by"))


def _seconds(took_ms: float) -> str:
    return f"{took_ms / 1000:,.1f} s" if took_ms >= 1000 else milliseconds(took_ms)  # noqa: PLR2004


def _main(found: Found) -> Loss | None:
    """Return the stage and cause that most breaches have: of the objective that is worst, else of all."""
    if found.missed:
        return found.missed[0].losses[0] if found.missed[0].losses else None
    return max(found.losses, key=lambda one: one.breaches, default=None)


def _when(asked: Asked, found: Found) -> str:
    """Return since when the worst objective has too many breaches, in words."""
    worst = found.missed[0] if found.missed else None
    stretch = None if worst is None else worst.latest or worst.all_breaches
    if worst is None or stretch is None:
        return ""
    begins, ends = (_clock(asked, ns) for ns in (stretch.first_unix_nano, stretch.last_unix_nano))
    if worst.counts.breaches == 1:
        return f" at {begins}"
    part = "" if stretch.breaches >= worst.counts.breaches else f", {stretch.breaches:,} of them"
    return f"{part} {f'from {begins} to {ends}' if stretch.is_over else f'since {begins}'}"


def _clock(asked: Asked, ns: int) -> str:
    """Return a time of day, with the day where the window is longer than one."""
    since, until = asked.window_ns
    text = asked.time(ns, 0)
    return text if until - since > _DAY_NS else text[11:]


def _series(asked: Asked, found: Found, by: str) -> list[dict[str, Any]]:
    """Return what the bars are stacked of: breaches by cause or stage, the most frequent first."""
    causes = asked.selection.causes
    sums: dict[str | None, list[int]] = {}
    for kind, counts in found.kinds.items():
        if not causes or kind.cause in causes:
            name = None if kind.is_rest else _name(kind, by)
            sums[name] = [a + b for a, b in zip(sums.get(name, [0] * len(counts)), counts, strict=True)]
    named = sorted((name for name in sums if name is not None), key=lambda name: (-sum(sums[name]), name))
    shown, others = named[: _SERIES[by]], [*named[_SERIES[by] :], *([None] if None in sums else [])]
    made = [_one(name, sums[name], _filter_url(asked, by, name)) for name in shown]
    if others:
        made.append(_one(_OTHERS, [sum(values) for values in zip(*map(sums.__getitem__, others), strict=True)], None))
    for place, one in enumerate(made, 1):  # causes are shades, which go by their place; a stage has its own colour
        one["colour"] = f"shade-{place}" if by == "cause" else _colour(one["name"])
    return made


def _one(name: str, values: Sequence[int], url: str | None) -> dict[str, Any]:
    return {"name": name, "values": values, "total": sum(values), "url": url}


def _name(kind: Kind, by: str) -> str:
    return (kind.cause or "unknown") if by == "cause" else (kind.stage or _NO_STAGE)


def _colour(stage: str) -> str:
    return stage.replace(".", "-") if stage in STAGES else "other"


def _filter_url(asked: Asked, by: str, name: str) -> str | None:
    """Return the link to the breaches with a cause or stage."""
    if by == "cause":
        return asked.url("/breaches", cause=name)
    if name == _NO_STAGE:
        return None
    return asked.url("/breaches", segment=[*asked.params.get("segment", ()), f"{SLA_BREACH_STAGE}={name}"])


def _kind_url(asked: Asked, kind: Kind) -> str:
    """Return the link to the breaches of one stage and cause."""
    changes: dict[str, Any] = {}
    if kind.cause is not None:
        changes["cause"] = kind.cause
    if kind.stage is not None:
        changes["segment"] = [*asked.params.get("segment", ()), f"{SLA_BREACH_STAGE}={kind.stage}"]
    return asked.url("/breaches", **changes)


def _chart(asked: Asked, found: Found, series: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the picture shows, for the script: values by bucket, and where a bucket begins."""
    starts = [found.start(bucket) for bucket in range(len(found.requests) + 1)]
    return {
        "labels": [_clock(asked, start).removesuffix(":00") for start in starts],
        "starts_ms": [start // 10**6 for start in starts],
        "series": [{name: one[name] for name in ("name", "colour", "values")} for one in series],
        "requests": [round(count) for count in found.requests],
        "breaches": found.breaches,
        "missed": len(found.missed),
        # The window cuts the first and the last bucket.
        "seconds": [
            max(1, min(end, asked.window_ns[1]) - max(start, asked.window_ns[0])) / _NS
            for start, end in pairwise(starts)
        ],
    }


def objectives_part(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return how each objective does, in the window and in its own."""
    wanted = requests_of(asked.selection)
    with reader.relations(wanted) as relations:
        found = routes_and_stages.ask(relations, with_models=False)
        if COUNTS in reader.capabilities and not replace(wanted, service=None, route=None).is_filtered:
            found = routes_and_stages.exactly(relations, found, reader.counted(wanted))  # type: ignore[attr-defined]
        reason = relations.reason
    slo = site.ask("slo", reader, replace(wanted, since_ns=0), (), asked.zone)
    reasons = dict.fromkeys(one for one in (reason, slo.reason) if one is not None)
    return Part("board_objectives.html", values(found, slo.keys), "; ".join(reasons) or None)


def newest(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the newest breaches."""
    found = reader.breaches(replace(asked.selection, limit=_NEWEST))
    # That there are older ones is no lack: the tally has their number.
    reasons = [one for one in (found.reason or "").split("; ") if one and not one.startswith(f"limit {_NEWEST} ")]
    request = {one.span_id: request_text(one.name, one.route) for one in found.breaches}
    values = {"breaches": found.breaches, "request": request, "tally": found.tally}
    return Part("board_newest.html", values, "; ".join(reasons) or None)


def names(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return names for the fields of the selection: those with most requests in its time, of its service."""
    wanted = asked.selection
    with reader.relations(Selection(wanted.since_ns, wanted.until_ns)) as relations:
        rows = relations.reduce("largest_groups", ("service", "path", "model"), most=_NAMES)
    own = [row for row in rows if wanted.service in (None, row["service"])]
    values = {
        "services": _distinct(rows, "service"),
        "routes": _distinct(own, "path"),
        "models": _distinct(own, "model"),
    }
    return Part("board_names.html", {"names": values})


def _distinct(rows: list[dict[str, str | None]], column: str) -> list[str]:
    return list(dict.fromkeys(value for row in rows if (value := row[column]) is not None))


VIEW: Final = View(
    "board",
    "Board",
    "/board",
    "board.html",
    {
        "now": now,
        "alerts": alerts,
        "objectives": objectives_part,
        "newest": newest,
        "names": names,
        "moments.json": moments,
    },
    keeps=("by",),
)


# --- The rows of the board's table of objectives: how routes did in the window, joined with what `stagetrace slo` has.

_ROWS: Final = 50
_HELD: Final = 0.99  # share of its window that the store has
Slo: TypeAlias = "Mapping[str, Any]"  # an objective as `stagetrace slo --json` has it


class Row(NamedTuple):
    """One objective of a service and route; `route` is None where the window has no request of it."""

    slo: Slo
    route: Route | None

    @property
    def id(self) -> str:
        """Return what tells its element from those of others."""
        key = "\0".join(str(self.slo[name]) for name in ("service", "route", "objective", "target"))
        return f"objective-{crc32(key.encode()):08x}"

    @property
    def attained(self) -> Attainment | None:
        """Return which share of the window's requests met it, as `slo` has it of another window."""
        known = None if self.route is None else self.route.attainment
        if known is None or self.route is None or known.low < known.high:
            return known
        low, high = exact_interval(self.route.judged - self.route.breaches, self.route.judged)
        return known._replace(low=low, high=high)

    @property
    def missed(self) -> bool | None:
        """Return whether fewer requests of the window met it than wanted; None where that is not known."""
        return is_missed(self.attained, Target(self.slo["target"], self.slo["window_s"]))

    @property
    def burns(self) -> list[tuple[str, float | None]]:
        """Return the burn rates by window."""
        return [(name, self.slo["burn"].get(name)) for name in SHOWN]

    @property
    def alerts(self) -> list[Mapping[str, Any]]:
        """Return the alerts that fire."""
        return [one for one in self.slo["alerts"] if one["fires"]]

    @property
    def window(self) -> str:
        """Return how long the objective's window is."""
        return objectives.length(self.slo["window_s"])

    @property
    def held(self) -> str | None:
        """Return how much of the objective's window the store has; None where that is all of it."""
        held = self.slo["held_s"]
        return None if held >= _HELD * self.slo["window_s"] else objectives.length(held)


def values(found: Sequence[Route], slo: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the table: rows with most breaches in the window first, and what has no objective."""
    of_window = {(one.service, one.route, one.objective): one for one in found if one.judged}
    rows = [Row(one, of_window.get((one["service"], one["route"], one["objective"]))) for one in slo["objectives"]]
    rows.sort(key=_worst_first)
    return {
        "rows": rows[:_ROWS],
        "all_rows": len(rows),
        "unjudged": sum(one.requests - one.judged for one in found),
        "burns": SHOWN,
        "windows": {one.window for one in rows},
        "held": {one.held for one in rows},
        "share": objectives.percent,
        "wanted": objectives.wanted,
        "interval": objectives.interval,
        "spent": objectives.spent,
        "estimated": any(one.route is not None and one.route.sample.is_estimate for one in rows),
    }


def _worst_first(one: Row) -> tuple[bool, int, int]:
    if one.route is None:
        return (True, 0, 0)
    return (not one.missed, -one.route.breaches, -one.route.requests)
