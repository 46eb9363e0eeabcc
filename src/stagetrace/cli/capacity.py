"""`stagetrace capacity`: how much a service takes, how much is left, and how many replicas a rate needs."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.analysis.attainment import target_of
from stagetrace.cli.arguments import ABOVE_0, next_command, number_between, selection_options
from stagetrace.cli.ask import LONG, format_option, print_answer, reading
from stagetrace.cli.output import warn
from stagetrace.cli.registry import ANSWERED, Option, UsageError
from stagetrace.errors import StagetraceError
from stagetrace.output import autoscaler, units
from stagetrace.output.answer import Answer, join_reasons, no_requests
from stagetrace.output.chart import Chart, Points, number
from stagetrace.output.table import Column, Table, numbers, numeric, table_of
from stagetrace.output.units import rounded_percent, threshold
from stagetrace.text import printable

if TYPE_CHECKING:
    from stagetrace.analysis.capacity import Capacity, Plan
    from stagetrace.analysis.usl import Interval, Level
    from stagetrace.store.base import Reader, Relations, Selection

DESCRIPTION: Final = (
    "Tell how much a service takes: requests in flight by Little's law, the throughput beyond which more of them\n"
    "only wait (Universal Scalability Law), what the busiest minute left of it, and how many replicas a rate needs.\n"
    "Where the load never came near a limit, it reports no number. Exit code 1 where less than 10 % is left,\n"
    "or where a rate needs more replicas than were at work."
)
EXAMPLE: Final = "stagetrace capacity --service churn --since 24h --rate 500 --objective p99:50ms"
_UNIT_MS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_OBJECTIVE: Final = re.compile(r"p(\d{1,2}(?:\.\d+)?):(\d+(?:\.\d+)?)(us|ms|s|m)", re.ASCII)


class Objective(NamedTuple):
    """A share of requests, and how long they may take at most."""

    share: float
    within_ms: float
    text: str


def objective(text: str) -> Objective:
    """Return share and time of `p99:50ms`."""
    found = _OBJECTIVE.fullmatch(text)
    if not found or not 0 < float(found[1]) < 100 or float(found[2]) <= 0:  # noqa: PLR2004 -- percent
        raise ValueError(f"{text!r} is no objective; write p99:50ms, with us, ms, s or m")
    return Objective(round(float(found[1]) / 100, 12), float(found[2]) * _UNIT_MS[found[3]], text)


OPTIONS: Final = (
    *selection_options(cause=False),
    Option(
        "--rate N",
        "requests per second to find the replicas for",
        number_between(ABOVE_0, 1e12, "is no rate; write requests per second, as 500"),
    ),
    Option(
        "--objective P:TIME",
        "what an instance is to keep at its load: p99:50ms; default: the objectives of its requests, for 99 %",
        objective,
    ),
    format_option(*autoscaler.FORMS),
    LONG,
)

# --- Utilisation of a service's resources, as far as its spans show it: time averages, and capacity where known.

_MOST_READ: Final = 20_000  # requests whose attributes are read
_PER_S: Final = "requests/s"
_REQUESTS: Final = "requests"


def sampled_values(relations: Relations, one: Capacity, *keys: str) -> list[dict[str, Any]]:
    """Return how many requests of the busiest minute have which values of attributes: that minute is quickly read."""
    since, until, one_in = _sample(one)
    return relations.reduce("sampled_values", keys, service=one.service, since=since, until=until, one_in=one_in)


def _sample(one: Capacity) -> tuple[int, int, int]:
    """Return begin and end of the busiest minute, and in which of how many requests attributes are read."""
    begin, seconds = one.busiest.start_unix_nano, one.busiest.seconds
    return begin, begin + round(seconds * 1e9), max(1, int(one.busiest.per_s * seconds) // _MOST_READ)


def utilisation(relations: Relations, one: Capacity, *, of_all: bool) -> dict[str, dict[str, Any]]:
    """Return resource -> mean, in the busiest minute, `of` how much, used share; `why_not` where it is unknown.

    `of_all`: the requests are all that the service had in that time.
    """
    working = max(0.0, one.in_flight - (one.stages["queue"] or 0))
    # The one that was waited for most in the busiest minute, of those whose size is known.
    since, until, one_in = _sample(one)
    pools = relations.reduce("pools", service=one.service, since=since, until=until, one_in=one_in)
    pool = next((row for row in pools if row["pool_size"]), None)
    threads = None if pool is None else pool["pool_size"] * one.busiest.instances
    batched = _use("requests in a batch", one.batch) if one.batch else _unknown("no request carries ml.batch.size")
    return {
        "capacity": _use(_PER_S, one.per_s, one.busiest.per_s, one.peak_per_s),
        "workers": _use(_REQUESTS, working, one.busiest.working, one.saturation),
        "queue": _use(_REQUESTS, one.stages["queue"] or 0.0, one.busiest.waiting),
        "inference": _unknown("no request has this stage")
        if one.stages["inference"] is None
        else _use(_REQUESTS, one.stages["inference"], one.busiest.inferring),
        "thread_pool": _unknown("no wait of the busiest minute shows how many threads a pool has")
        if pool is None
        else {**_use("threads", working, one.busiest.working, threads), "pool": pool["reason"]},
        "event_loop": _unknown("spans do not show how long an event loop was busy"),
        "batches": batched,
        "cpu": _cpu(one, of_all=of_all),
    }


def _use(unit: str, mean: float, busiest: float | None = None, of: float | None = None) -> dict[str, Any]:
    return {
        "mean": mean,
        "busiest": busiest,
        "of": of,
        "utilisation": mean / of if of else None,
        "busiest_utilisation": busiest / of if of and busiest is not None else None,
        "unit": unit,
        "why_not": None,
    }


def _cpu(one: Capacity, *, of_all: bool) -> dict[str, Any]:
    """Return the CPUs that the processes of the service used, whatever for, from each one's first request on."""
    if not of_all:
        return _unknown("it is of a whole process, and only some of its requests are selected")
    if one.cpus is None:
        return _unknown("no request carries stagetrace.process.cpu_ms")
    return _use("CPUs", one.cpus, one.busiest.cpus)


def _unknown(why: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("mean", "busiest", "of", "utilisation", "busiest_utilisation", "unit"))
    return {**nothing, "why_not": why}


# --- The command that would find a capacity which is not known.

_KEYS: Final = ("path", "method", "objective", "target", "threshold_ms")
_WITHOUT_BODY: Final = ("GET", "HEAD", "DELETE")


def command(relations: Relations, one: Capacity) -> str:
    """Return the command, for the route with most requests in the busiest minute; unknown parts are in capitals."""
    rows = sampled_values(relations, one, *_KEYS)
    row: dict[str, Any] = max(rows, key=lambda row: row["requests"], default=dict.fromkeys(_KEYS))
    route, method = row["path"] or "", row["method"]
    if method or not route:  # of a request without a route, `path` is the name of its span
        url = f"http://HOST:PORT{route if route.startswith('/') else '/PATH'}"
    else:
        url = f"grpc://HOST:PORT/{route}"
    body = "" if method in _WITHOUT_BODY else " --body @request.json"
    named = f" --method {method}" if method not in (None, "GET", "POST") else ""
    share = target_of(row["objective"], row["target"]).share
    allowed = row["threshold_ms"]
    is_known = allowed is not None and share < 1
    limit = f"p{100 * share:.6g}:{threshold(allowed).replace(' ', '')}" if is_known else "p99:LIMIT"
    return printable(f"stagetrace bench {url}{named}{body} --find {limit}")


_LEAST_HEADROOM: Final = 0.1
_MOST_PICTURES: Final = 5
_MOST_INSTANCES: Final = 20
_SHOWN: Final = 6  # times the knee that a picture goes to
_MINUTE_S: Final = 60
_NOTHING: Final = 0.005  # head-room below this is none
_USES: Final = (Column("resource"), *numbers("mean", "busiest", "of", "used"))


def run(args: argparse.Namespace) -> int:
    """Answer, and return the exit code."""
    with reading(args) as (reader, wanted):
        if args.format in autoscaler.FORMS and not args.json:
            sys.stdout.write(_manifest(reader, wanted, args))
            return ANSWERED
        return print_answer(args, answer(reader, wanted, args))


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the capacity of the services of a selection."""
    from stagetrace.analysis import capacity

    kept: Objective | None = args.objective
    with reader.relations(wanted) as relations:
        found = capacity.ask(relations, kept.within_ms if kept else None)
        of_all = not replace(wanted, service=None).is_filtered
        uses = [utilisation(relations, one, of_all=of_all) for one in found]
        tests = [None if one.law.identifiable else command(relations, one) for one in found]
    reasons = [relations.reason]
    if len(found) > capacity.MOST_SERVICES:
        found = found[: capacity.MOST_SERVICES]
        most = f"only the {capacity.MOST_SERVICES} services with most requests are here"
        reasons.append(f"{most}; --service NAME names another")
    plans = [capacity.plan(one, args.rate, kept.share if kept else None) for one in found]
    made = list(zip(found, plans, uses, tests, strict=False))
    services = [_keys(one, given, used, args) | {"load_test": test} for one, given, used, test in made]
    keys = {**_HEAD, **(services[0] if len(services) == 1 else {}), "services": services}
    return Answer(
        "Capacity",
        _sentence(found, plans, tests, args)
        if found
        else f"{no_requests(wanted, args.tz).rstrip('.')}: no capacity to show.",
        keys,
        [*_notes(wanted), *(part for number, one in enumerate(made) for part in _parts(*one, args, number, len(made)))],
        is_bad=any(_is_bad(one, given, args) for one, given in zip(found, plans, strict=True)),
        reason=join_reasons(reasons),
        steps=() if any(tests) or not found else [next_command(args, "bottleneck")],
    )


_HEAD: Final[Mapping[str, Any]] = {
    "knee": None,
    "peak_per_s": None,
    "interval": None,
    "identifiable": False,
    "why_not": "not one service",
}


def _is_bad(one: Capacity, given: Plan, args: argparse.Namespace) -> bool:
    short = one.headroom is not None and one.headroom < _LEAST_HEADROOM
    never = given.replicas is None and bool(one.levels) and args.rate is not None and args.objective is not None
    return (
        short or never or (given.replicas is not None and not given.at_most and given.replicas > one.busiest.instances)
    )


def _manifest(reader: Reader, wanted: Selection, args: argparse.Namespace) -> str:
    from stagetrace.analysis import capacity

    kept: Objective | None = args.objective
    with reader.relations(wanted) as relations:
        found = capacity.ask(relations, kept.within_ms if kept else None)
        warn(relations.reason)
        if len(found) != 1:
            names = ", ".join(one.service for one in found) or "no service"
            raise UsageError(f"--format {args.format} is of one service, and there is {names}\ngive --service NAME")
        (one,) = found
        methods = sampled_values(relations, one, "method")
    if not any(row["method"] for row in methods):
        raise StagetraceError(
            f"{one.service} serves no HTTP, and its requests in flight are in no metric that an autoscaler could read\n"
            "write the manifest by hand: `stagetrace capacity` shows how many requests an instance takes"
        )
    given = capacity.plan(one, args.rate, kept.share if kept else None)
    if given.in_flight is None or given.at_most:
        raise StagetraceError(
            f"no target for an autoscaler of {one.service}: {one.law.reason or given.reason}\n"
            "drive a copy of it to its limit once, or give an objective that it missed under load: --objective p99:50ms"
        )
    most = max(given.replicas or 0, 3 * one.busiest.instances)
    return autoscaler.manifest(args.format, one, given, most)


def _sentence(
    found: Sequence[Capacity], plans: Sequence[Plan], tests: Sequence[str | None], args: argparse.Namespace
) -> str:
    sentences = [_sentence_of(one, given, args) for one, given in zip(found, plans, strict=True)]
    if len(sentences) > 1:
        return f"{len(sentences)} services. {' '.join(sentences)}"
    return sentences[0] if tests[0] is None else f"{sentences[0]} {_how_to_find(tests[0])}"


def _how_to_find(test: str) -> str:
    return f"To find it, load a copy of the service: `{test}`."


def _sentence_of(one: Capacity, given: Plan, args: argparse.Namespace) -> str:
    """Return one service's capacity, in one or two sentences."""
    long = "minute" if round(one.busiest.seconds) == _MINUTE_S else f"{number(one.busiest.seconds)} s"
    busiest = f"the busiest {long} took {number(one.busiest.per_s)}/s"
    if one.peak_per_s is None or one.headroom is None:
        sentence = (
            f"The capacity of service {one.service} is not identifiable from this data: {one.law.reason}; {busiest}."
        )
    else:
        how = "peaks at" if one.law.law == "usl" and one.law.knee is not None else "levels off at"
        at = one.knee if one.law.knee is not None else one.saturation
        where = f"with {number(at or 0)} in flight" if how == "peaks at" else f"from {number(at or 0)} in flight on"
        left = f"{100 * one.headroom:.0f} % head-room" if one.headroom > _NOTHING else "no head-room"
        bounds = between(one.interval)
        sentence = f"{one.service} {how} {number(one.peak_per_s)} requests/s{bounds} {where}; {busiest}: {left}."
    if args.rate is None:
        return sentence
    return f"{sentence} {replicas(given, args)}"


def replicas(given: Plan, args: argparse.Namespace) -> str:
    """Return how many replicas a rate needs, as a sentence."""
    rate = f"{number(args.rate)}/s"
    if given.replicas is None:
        return f"How many replicas {rate} needs is not known: {given.reason}."
    most = " at most" if given.at_most else ""
    plural = "" if given.replicas == 1 else "s"
    return f"{rate} needs {given.replicas} replica{plural}{most}, {number(given.per_s or 0)}/s each ({given.reason})."


def between(interval: Interval | None) -> str:
    """Return an interval as it stands behind its value."""
    if interval is None:
        return ""
    return f" [{number(interval.low)}, {'?' if interval.high is None else number(interval.high)}]"


def _notes(wanted: Selection) -> list[str]:
    parts = {"route": wanted.route, "model": wanted.model, **wanted.segments}
    only = [f"{key} {value}" for key, value in parts.items() if value is not None]
    if not only:
        return []
    return [f"Only requests of {', '.join(only)} are counted; others of the service share its capacity with them."]


def _keys(one: Capacity, given: Plan, used: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of one service in `--json`."""
    law = one.law
    return {
        "service": one.service,
        "requests": round(one.requests),
        "reversed": one.reversed,
        **units.keys(one.sample),
        "since_unix_nano": one.since_ns,
        "until_unix_nano": one.until_ns,
        "width_s": one.width_s,
        "in_flight": one.in_flight,
        "per_s": one.per_s,
        "busiest": one.busiest._asdict(),
        "knee": one.knee,
        "knee_interval": one.knee_interval,
        "saturation": one.saturation,
        "peak_per_s": one.peak_per_s,
        "interval": one.interval,
        "identifiable": law.identifiable,
        "why_not": law.reason,
        "headroom": one.headroom,
        "law": law.law,
        "lambda": law.lambda_per_s,
        "sigma": law.sigma,
        "kappa": law.kappa,
        "sharpness": law.sharpness,
        "of_one_instance": {"knee": law.knee, "peak_per_s": law.peak_per_s, "interval": law.interval},
        "at_work": one.busiest.instances,
        "instances": [instance._asdict() for instance in one.instances[:_MOST_INSTANCES]],
        "utilisation": used,
        "replicas": None if args.rate is None else {"rate": args.rate, **given._asdict()},
        "target": {"in_flight": given.in_flight, "per_s": given.per_s, "reason": given.reason},
        "points": [level._asdict() for level in one.levels],
    }


def _parts(
    one: Capacity,
    given: Plan,
    used: Mapping[str, Any],
    test: str | None,
    args: argparse.Namespace,
    place: int,
    services: int,
) -> list[str | Table | Chart]:
    """Return the parts below the sentence of one service."""
    made: list[str | Table | Chart] = []
    if test is not None and services > 1:
        made.append(f"The capacity of service {one.service} is not known. {_how_to_find(test)}")
    if place < _MOST_PICTURES and one.levels:
        made.append(_picture(one))
    if services == 1 or place < _MOST_PICTURES:
        made += [_uses(one, used), _levels(one, args)]
    if len(one.instances) > 1:
        made.append(_instances(one))
    if given.in_flight is not None:
        target = f"{given.in_flight:.3g} in flight, {number(given.per_s or 0)}/s ({given.reason})"
        made.append(f"Target of an instance of {one.service}: {target}{', or more' if given.at_most else ''}.")
    if one.reversed:
        made.append(f"{one.reversed} requests of {one.service} end before they begin, and count for nothing.")
    note = units.note(one.service, one.sample)
    return [*made, *([note] if note else [])]


def _picture(one: Capacity) -> Points:
    knee = (one.law.knee or one.law.saturation) if one.law.identifiable else None
    # All that waits beyond the knee would leave no room for the rest.
    most = min(one.levels[-1].in_flight, _SHOWN * (knee or one.levels[-1].in_flight))
    loads = [most * step / 100 for step in range(1, 101)] if one.law.identifiable else []
    curve = [(0.0, 0.0), *zip(loads, one.law.throughput(loads), strict=True)] if loads else []
    marks = [] if knee is None else [(knee, f"{number(knee)} in flight")]
    points = [(level.in_flight, level.per_s) for level in one.levels if level.in_flight <= most]
    each = " of each instance" if one.busiest.instances > 1 else ""
    return Points(f"{one.service}: throughput{each} by requests in flight", points, curve, "in flight", "/s", marks)


def _levels(one: Capacity, args: argparse.Namespace) -> Table:
    """Return the table of an instance's results at each level of load."""

    def kept(level: Level) -> str:
        share = level.good if args.objective is None else level.within
        return "-" if share is None else f"{100 * share:.4g} %"

    return table_of(
        one.levels,
        (
            (Column("in flight"), lambda level: number(level.in_flight)),
            (numeric("requests/s"), lambda level: number(level.per_s)),
            (numeric("waiting"), lambda level: number(level.waiting)),
            (numeric("time"), lambda level: f"{number(level.seconds)} s"),
            (numeric("requests"), lambda level: units.about(round(level.requests), one.sample)),
            (numeric("attainment"), kept),
        ),
        f"Levels of load in an instance of {one.service}, by {one.width_s:g} s",
    )


def _uses(one: Capacity, used: Mapping[str, Any]) -> Table:
    """Return the table of utilisation, with the reason where it is unknown."""
    rows: list[tuple[str, ...] | str] = []
    unknown = []
    for name, use in used.items():
        if use["mean"] is None:
            unknown.append(f"{name}: {use['why_not']}")
            continue
        cells = ("-" if use[key] is None else number(use[key]) for key in ("mean", "busiest", "of"))
        rows.append((f"{name}, {use['unit']}", *cells, rounded_percent(use["utilisation"])))
    rows += [f"not known: {text}" for text in unknown]
    return Table(_USES, rows, f"What {one.service} used")


def _instances(one: Capacity) -> Table:
    made = table_of(
        one.instances[:_MOST_INSTANCES],
        (
            (Column("instance"), lambda each: each.name or "(unnamed)"),
            (numeric("requests"), lambda each: units.about(round(each.requests), one.sample)),
            (numeric("requests/s"), lambda each: number(each.per_s)),
            (numeric("in flight"), lambda each: number(each.in_flight)),
            (numeric("at most"), lambda each: number(each.busiest_in_flight)),
        ),
        f"Instances of {one.service}; {one.busiest.instances} at work at once",
    )
    more = len(one.instances) - _MOST_INSTANCES
    return made._replace(rows=[*made.rows, f"and {more} more"]) if more > 0 else made
