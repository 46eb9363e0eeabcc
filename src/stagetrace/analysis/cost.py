"""The cost of requests: the time of instances and tokens, divided among them to the last unit, and idle time.

Each moment in which an instance has requests in flight is divided in equal parts among them; moments without are idle.
Within a group of requests, time is divided among stages as their durations are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

from stagetrace.analysis.base import Source
from stagetrace.analysis.prices import MICROS, PriceError, Prices
from stagetrace.semconv import STAGES

SERVICE: Final = "service"
INSTANCE: Final = "service.instance.id"  # of a process
HOST: Final = "host.name"
INSTANCE_TYPE: Final = "host.type"
MODEL: Final = "model"
STAGE: Final = "stage"  # what lines may be by, beside columns and attributes
OTHERS: Final = "(others)"  # groups beyond the costliest MOST
NO_STAGE: Final = "(no stage)"
MOST: Final = 10_000
_PART: Final = 500_000  # requests, about
_MOST_PARTS: Final = 200
_EVER: Final = 2**62
_COLUMNS: Final = {  # stage -> column of `stage_time`
    **{stage: f"{stage.replace('.', '_')}_total_ms" for stage in STAGES},
    "other": "other_total_ms",
    NO_STAGE: "rest_ms",
}
_ROUNDING: Final = 10**6
_COUNTED: Final = ("stored", "negative", "sixteenths")
_UNITS: Final = 16 * 3600 * 10**9  # sixteenths of a nanosecond in an hour: as `busy` counts
_SECOND: Final = 16 * 10**9


@dataclass(frozen=True)
class Line:
    """The cost of one group of requests: those that met their objective or have none, and those that missed it apart.

    Amounts are in millionths of the currency's unit, None without prices; `requests` are by weight.
    """

    by: Mapping[str, Any]
    requests: float
    breaches: float
    busy_s: float  # of instances, breaches included
    share: float | None  # of all busy time
    amount: int | None
    breach_amount: int | None

    @property
    def per_request(self) -> float | None:
        """Return the average cost of one request, in the currency's unit, breaches included."""
        if self.amount is None or self.breach_amount is None or not self.requests:
            return None
        return (self.amount + self.breach_amount) / MICROS / self.requests


@dataclass(frozen=True)
class Costs:
    """The bill, divided: the amounts of all lines, `idle` and `breach` add up to `total`, in millionths."""

    lines: tuple[Line, ...]  # the costliest first
    idle: int | None
    breach: int | None
    total: int | None
    currency: str | None
    instances: int
    paid_s: float  # of all instances, together
    busy_s: float
    stored: int
    negative: int  # requests that end before they begin, and have no time
    unnamed: int  # services whose instances have no name, and count as one
    processes: int = 0  # of these instances, that are known by their id
    without_host: int = 0  # processes of which it is not known on which host they are

    @property
    def idle_share(self) -> float | None:
        """Return which part of the instances' time had no request in flight."""
        return 1 - self.busy_s / self.paid_s if self.paid_s else None


def allocate(total: int, weights: Sequence[Fraction | float]) -> list[int]:
    """Divide a whole number in proportion to weights, without a rest: by the largest remainders, the first one first.

    Weights are not negative; where all are 0 they count as equal. Without weights nothing can be divided.

    Raise ValueError for a negative weight, or a total above 0 without weights.
    """
    exact = [Fraction(weight) for weight in weights]
    if any(weight < 0 for weight in exact) or (total and not exact):
        raise ValueError("what is divided needs weights, and none may be negative")
    whole = sum(exact)
    shares = [total * weight / whole if whole else Fraction(total, len(exact)) for weight in exact]
    parts = [int(share // 1) for share in shares]
    left = total - sum(parts)
    order = sorted(range(len(parts)), key=lambda place: (parts[place] - shares[place], place))
    for place in order[:left]:
        parts[place] += 1
    return parts


def ask(source: Source, by: Sequence[str], given: Prices | None = None, window_ns: int | None = None) -> Costs:
    """Return the cost of a source's requests, by columns, attributes or `stage` (see `divide`)."""
    groups = [one for one in dict.fromkeys(by) if one != STAGE]
    typed = [INSTANCE_TYPE] if given is not None and any(one.instance_type for one in given.prices) else []
    keys = [SERVICE, HOST, INSTANCE, *typed]
    rows = _busy(source, list(dict.fromkeys((*keys, *groups))))
    if len(rows) > MOST:
        kept = sorted(rows, key=lambda row: -row["sixteenths"])[:MOST]
        rows = [*kept, *_others(kept, _busy(source, keys), keys, _COUNTED)]
    has_tokens = given is not None and given.has_tokens
    tokens = _all_of(source, "tokens", [SERVICE, MODEL], groups, ("input", "output")) if has_tokens else []
    stages = _all_of(source, "stage_time", [], groups, tuple(_COLUMNS.values())) if STAGE in by else None
    return divide(rows, by, given, tokens=tokens, stages=stages, window_ns=window_ns)


def _all_of(
    source: Source, name: str, keys: Sequence[str], groups: Sequence[str], counted: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rows of a reduction by groups; those beyond MOST together, by `keys` alone."""
    rows = source.reduce(name, list(dict.fromkeys((*keys, *groups))), most=MOST + 1)
    if len(rows) <= MOST:
        return rows
    return [*rows[:MOST], *_others(rows[:MOST], source.reduce(name, keys, most=MOST), keys, counted)]


def _busy(source: Source, by: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of `busy` by these keys, queried in parts of the time: no part holds very many requests."""
    (whole,) = source.reduce("versions", []) or [{"requests": None}]
    if not whole["requests"]:
        return []
    asked = [key for key in by if key not in (HOST, INSTANCE)]  # a row has these two anyway
    parts = min(_MOST_PARTS, math.ceil(whole["requests"] / _PART))
    steps = [whole["first"] + (whole["last"] - whole["first"]) * place // parts for place in range(1, parts)]
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for since, until in pairwise([-_EVER, *steps, _EVER]):
        if since == until:
            continue
        for row in source.reduce("busy", asked, most=MOST + 1, since=since, until=until):
            one = found.setdefault(_key(row, by), {**row, "stored": 0, "negative": 0, "sixteenths": 0})
            for name in _COUNTED:
                one[name] += row[name]
            one["first"], one["last"] = min(one["first"], row["first"]), max(one["last"], row["last"])
    return list(found.values())


def divide(
    rows: Sequence[Mapping[str, Any]],
    by: Sequence[str],
    given: Prices | None = None,
    *,
    tokens: Sequence[Mapping[str, Any]] = (),
    stages: Sequence[Mapping[str, Any]] | None = None,
    window_ns: int | None = None,
) -> Costs:
    """Divide the bill among groups of requests: rows of the reductions `busy`, `tokens` and `stage_time`.

    An instance is paid from its first request to its last, or, where the prices give the number of instances, for
    the window (`window_ns`; without it from the first request of all to the last).

    Raise PriceError where prices do not fit what they are for.
    """
    groups = [one for one in dict.fromkeys(by) if one != STAGE]
    instances = _instances(rows)
    rates = _rates(instances, given)
    cells = _cells(rows, tokens, groups, rates, given)
    paid, idle = _idle(instances, rates, given, window_ns)
    left = _settle(cells, idle, given, is_timed=any(rate is not None for rate in rates.values()))
    amounts = [cell.amount for cell in cells.values() if cell.amount is not None]
    lost = [cell.amount for key, cell in cells.items() if key[-1] and cell.amount is not None]
    whole = sum((one.busy for one in instances.values()), Fraction(0))
    return Costs(
        lines=_lines(cells, by, stages, whole),
        idle=left,
        breach=sum(lost) if amounts else None,
        total=sum(amounts) + (left or 0) if amounts else None,
        currency=None if given is None else given.currency,
        instances=len(instances),
        paid_s=float(paid / _SECOND),
        busy_s=float(whole / _SECOND),
        stored=sum(row["stored"] for row in rows),
        negative=sum(row["negative"] for row in rows),
        unnamed=sum(name is None for _, name in instances),
        processes=len({(row[SERVICE], row.get(INSTANCE)) for row in rows if row.get(INSTANCE)}),
        without_host=len({(row[SERVICE], row[INSTANCE]) for row in rows if row.get(INSTANCE) and not row.get(HOST)}),
    )


@dataclass
class _Instance:
    """One instance as its requests show it; its times in sixteenths of a nanosecond."""

    kind: str | None
    first: int
    last: int
    busy: Fraction = Fraction(0)

    @property
    def seen(self) -> int:
        """Return how long it is known to have run."""
        return self.last - self.first


@dataclass
class _Cell:
    """The use of the good requests, or the breaches, of one group; prices in millionths, not rounded yet."""

    requests: float = 0.0
    busy: Fraction = Fraction(0)
    time: Fraction = Fraction(0)
    tokens: Fraction = Fraction(0)
    amount: int | None = None


_Cells = dict[tuple[Any, ...], _Cell]  # by the values of the group, and whether they are breaches
_Instances = dict[tuple[str, "str | None"], _Instance]


def _instance_of(row: Mapping[str, Any]) -> str | None:
    """Return what is paid for: a host, whose workers are one instance of their service, else a process."""
    name: str | None = row.get(HOST) or row[INSTANCE]
    return name


def _instances(rows: Iterable[Mapping[str, Any]]) -> _Instances:
    found: _Instances = {}
    for row in rows:
        first, last = 16 * row["first"], 16 * row["last"]
        one = found.setdefault((row[SERVICE], _instance_of(row)), _Instance(row.get(INSTANCE_TYPE), first, last))
        one.first, one.last = min(one.first, first), max(one.last, last)
        one.busy += _time(row)
    return found


def _rates(instances: _Instances, given: Prices | None) -> dict[tuple[str, str | None], Fraction | None]:
    """Return the price of an hour of each instance: all have a price or, where tokens alone do, none has."""
    if given is None:
        return dict.fromkeys(instances)
    found = {key: given.per_hour(key[0], one.kind) for key, one in instances.items()}
    missing = [key for key, rate in found.items() if rate is None]
    if len(missing) == len(found) and given.bill is not None:
        return dict.fromkeys(instances, Fraction(1))  # each hour is worth as much
    if missing and len(missing) < len(found):
        service, kind = missing[0][0], instances[missing[0]].kind
        of_type = "" if kind is None else f" of type {kind!r}"
        raise PriceError(
            f"no price by the hour fits the instances of service {service!r}{of_type}\n"
            "add one for them, or one without service and instance_type for all others"
        )
    return found


def _cells(
    rows: Iterable[Mapping[str, Any]],
    tokens: Iterable[Mapping[str, Any]],
    groups: Sequence[str],
    rates: Mapping[tuple[str, str | None], Fraction | None],
    given: Prices | None,
) -> _Cells:
    cells: _Cells = defaultdict(_Cell)
    for row in rows:
        key = (*(row.get(one, OTHERS) for one in groups), row["is_breach"])
        cell = cells[key]
        cell.requests += row["stored"] * row["weight"]
        cell.busy += _time(row)
        cell.time += _price(_time(row), rates[row[SERVICE], _instance_of(row)])
    for row in tokens:
        price = None if given is None else given.per_token(row[SERVICE], row[MODEL])
        if price is not None:
            key = (*(row.get(one, OTHERS) for one in groups), row["is_breach"])
            cell = cells[key if key in cells else (*(OTHERS for _ in groups), row["is_breach"])]
            cell.tokens += MICROS * (Fraction(row["input"]) * price[0] + Fraction(row["output"]) * price[1])
    return cells


def _time(row: Mapping[str, Any]) -> Fraction:
    return max(Fraction(0), Fraction(row["sixteenths"]) * Fraction(row["weight"]))


def _price(time: Fraction, rate: Fraction | None) -> Fraction:
    return Fraction(0) if rate is None else time * rate * MICROS / _UNITS


def _idle(
    instances: _Instances,
    rates: Mapping[tuple[str, str | None], Fraction | None],
    given: Prices | None,
    window_ns: int | None,
) -> tuple[Fraction, Fraction]:
    """Return how long instances were paid for, and the cost of the part without requests."""
    seen = sum((Fraction(one.seen) for one in instances.values()), Fraction(0))
    idle = sum((_price(one.seen - one.busy, rates[key]) for key, one in instances.items()), Fraction(0))
    count = None if given is None else given.instances
    if count is None or not instances:
        return seen, idle
    if count < len(instances):
        raise PriceError(
            f"instances = {count}, but {len(instances)} were at work\nleave it out, or write how many were paid"
        )
    if len(set(rates.values())) > 1:
        raise PriceError(
            "instances is given, and there are several prices by the hour\nleave it out, or give one price"
        )
    window = max(one.last for one in instances.values()) - min(one.first for one in instances.values())
    paid = Fraction(count * (window if window_ns is None else max(16 * window_ns, window)))
    (rate,) = set(rates.values())
    return paid, idle + _price(paid - seen, rate)


def _settle(cells: _Cells, idle: Fraction, given: Prices | None, *, is_timed: bool) -> int | None:
    """Give each cell its amount, and return that of idle time: together the bill, or the sum of the prices."""
    if given is None:
        return None
    keys = sorted(cells, key=repr)
    tokens = [cells[key].tokens for key in keys]
    of_tokens = round(sum(tokens, Fraction(0)))
    if given.bill is not None and of_tokens > given.bill:
        raise PriceError(
            f"tokens cost {of_tokens / MICROS:.2f}, more than the bill of {given.bill / MICROS:.2f}\n"
            "the bill is for all, tokens included"
        )
    times = [*(cells[key].time for key in keys), idle]
    if not any(times):
        times[-1] = Fraction(1)  # no request took any time
    of_time = round(sum(times, Fraction(0))) if given.bill is None else given.bill - of_tokens
    parts = allocate(of_time if is_timed else 0, times)
    for key, part, more in zip(keys, parts, allocate(of_tokens, tokens), strict=False):
        cells[key].amount = part + more
    return parts[-1] if is_timed else None


def _lines(
    cells: _Cells, by: Sequence[str], stages: Sequence[Mapping[str, Any]] | None, whole: Fraction
) -> tuple[Line, ...]:
    groups = [one for one in dict.fromkeys(by) if one != STAGE]
    found: dict[tuple[Any, ...], dict[bool, _Cell]] = defaultdict(dict)
    timed = None
    if stages is not None:
        timed = {(*(row.get(one, OTHERS) for one in groups), row["is_breach"]): row for row in stages}
    for key, cell in cells.items():
        for stage, part in _by_stage(cell, key, timed):
            place = (*key[:-1], stage)
            found[place][bool(key[-1])] = part
    lines = []
    for key, parts in found.items():
        good, bad = (parts.get(is_breach, _Cell(amount=0)) for is_breach in (False, True))
        known = all(part.amount is not None for part in parts.values())
        named = dict(zip(groups, key[:-1], strict=True)) | ({} if stages is None else {STAGE: key[-1]})
        lines.append(
            Line(
                by=named,
                requests=good.requests + bad.requests,
                breaches=bad.requests,
                busy_s=float((good.busy + bad.busy) / _SECOND),
                share=float((good.busy + bad.busy) / whole) if whole else None,
                amount=good.amount if known else None,
                breach_amount=bad.amount if known else None,
            )
        )
    return tuple(
        sorted(lines, key=lambda line: (-(line.amount or 0) - (line.breach_amount or 0), -line.busy_s, repr(line.by)))
    )


def _by_stage(
    cell: _Cell, key: tuple[Any, ...], stages: Mapping[tuple[Any, ...], Mapping[str, Any]] | None
) -> list[tuple[str | None, _Cell]]:
    """Divide the use of one cell among stages, in proportion to their durations in it."""
    if stages is None:
        return [(None, cell)]
    row = stages.get(key, {})
    took = {stage: Fraction(row.get(column, 0)) for stage, column in _COLUMNS.items()}
    if took[NO_STAGE] * _ROUNDING < sum(took.values()):
        took[NO_STAGE] = Fraction(0)  # what rounding to ms leaves of stages that tile a request
    if not any(took.values()):
        took[NO_STAGE] = Fraction(1)
    whole = sum(took.values())
    amounts = allocate(cell.amount or 0, list(took.values()))
    return [
        (
            stage,
            _Cell(
                requests=cell.requests, busy=cell.busy * time / whole, amount=None if cell.amount is None else amount
            ),
        )
        for (stage, time), amount in zip(took.items(), amounts, strict=True)
        if time
    ]


def _others(
    rows: Iterable[Mapping[str, Any]], totals: Iterable[Mapping[str, Any]], keys: Sequence[str], counted: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the rest beside the listed groups: totals by `keys`, less those of the rows."""
    known: dict[tuple[Any, ...], dict[str, Any]] = defaultdict(lambda: dict.fromkeys(counted, 0))
    for row in rows:
        sums = known[_key(row, keys)]
        for name in counted:
            sums[name] += row[name]
    made = [{**row, **{name: max(0, row[name] - known[_key(row, keys)][name]) for name in counted}} for row in totals]
    return [row for row in made if any(row[name] for name in counted)]


def _key(row: Mapping[str, Any], keys: Sequence[str]) -> tuple[Any, ...]:
    return (*(row[key] for key in keys), row["is_breach"], row.get("weight"))
