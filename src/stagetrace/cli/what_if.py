"""`stagetrace what-if`: how requests would fare with other workers, threads, batches, load or stages."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.cli.arguments import (
    ABOVE_0,
    count,
    delay,
    duration,
    next_command,
    number_between,
    selection_options,
    utf8,
)
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option
from stagetrace.output.answer import Answer, no_requests
from stagetrace.output.chart import Bars
from stagetrace.output.table import Column, Table, numeric, table_of
from stagetrace.output.units import milliseconds, percent

if TYPE_CHECKING:
    from stagetrace.analysis.what_if.changes import Change, Goal
    from stagetrace.analysis.what_if.prediction import Outcome, Value, WhatIf
    from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = (
    "Tell how requests would fare after a change, from what each recorded request waited for and needed itself: the\n"
    "recorded arrivals are simulated on a model of the service, which is first checked against what was recorded.\n"
    "Each option is a change of its own, and several are also tried together; without any, some usual ones are.\n"
    "Where the data cannot tell, it says so."
)
EXAMPLE: Final = "stagetrace what-if --service api --workers 2 --rate x1.5"
TITLE: Final = "What if"
_RATE: Final = re.compile(r"(x?)(\d+(?:\.\d+)?)", re.ASCII)
_STAGE: Final = re.compile(r"([\w.]+)\s+([+-])(\d+(?:\.\d+)?)\s*%", re.ASCII)
_MOVE: Final = re.compile(r"(\S.*?)\s+off the loop")
_GOAL: Final = re.compile(r"breaches\s*<\s*(\d+(?:\.\d+)?)\s*%|(p50|p95|p99)\s*<\s*(\d.*)", re.ASCII)


class Rate(NamedTuple):
    """A rate in requests per second or, `is_factor`, in times the present one."""

    value: float
    is_factor: bool


def rate(text: str) -> Rate:
    """Return the rate of `x1.5` or `200`."""
    found = _RATE.fullmatch(text)
    if not found or float(found[2]) <= 0:
        raise ValueError(f"{text!r} is no rate; write x1.5 for that many times the present one, or requests per second")
    return Rate(float(found[2]), bool(found[1]))


def stage(text: str) -> tuple[str, float]:
    """Return a stage and which part of its work is left, of `inference -20%`."""
    found = _STAGE.fullmatch(text)
    left = 1 + float(f"{found[2]}{found[3]}") / 100 if found else -1.0
    if found is None or left < 0:
        raise ValueError(f"{text!r} is no change of a stage; write 'inference -20%'")
    return found[1], left


def move(text: str) -> str:
    """Return the request of `POST /embed off the loop`."""
    found = _MOVE.fullmatch(utf8(text))
    if not found:
        raise ValueError(f"{text!r} moves nothing; write 'POST /embed off the loop'")
    return found[1]


def goal(text: str) -> Goal:
    """Return what `breaches < 1 %` or `p99 < 100ms` asks for."""
    from stagetrace.analysis.what_if.changes import Goal

    found = _GOAL.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no goal; write 'breaches < 1 %' or 'p99 < 100ms'")
    return Goal(found[2], duration(found[3]) * 1e3, text) if found[2] else Goal("breaches", float(found[1]) / 100, text)


OPTIONS: Final = (
    Option("--workers N", "worker processes in all; each of these options may be repeated", count, repeats=True),
    Option("--threads N", "threads of each worker's pool", count, repeats=True),
    Option("--batch-size N", "requests that a batch takes at most", count, repeats=True),
    Option("--batch-wait TIME", "how long a batch waits for more requests: 5ms, or 0", delay, repeats=True),
    Option(
        "--rate RATE", "the load: x1.5 for so many times the present one, or requests per second", rate, repeats=True
    ),
    Option("--stage CHANGE", "a stage that takes more or less work, as 'inference -20%'", stage, repeats=True),
    Option("--without NAME", "a stage that is left out", utf8, repeats=True),
    Option("--move REQUEST", "one that holds the loop no more, as 'POST /embed off the loop'", move, repeats=True),
    Option("--limit-concurrency N", "requests in a worker beyond which one is refused", count, repeats=True),
    Option("--find GOAL", "the least single change that would do: 'breaches < 1 %', 'p99 < 100ms'", goal),
    Option(
        "--cpus N",
        "CPUs that the workers share; default: as recorded",
        number_between(ABOVE_0, 1e4, "is no number of CPUs"),
    ),
    *selection_options(cause=False),
    *PRINTED,
)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return what each change would do to the service that is selected."""
    from stagetrace.analysis.what_if import prediction

    services = [wanted.service] if wanted.service is not None else reader.services()
    if len(services) != 1:
        return _of_no_service(services, wanted, args)
    if replace(wanted, service=None).is_filtered:
        why = "only some of its requests are selected, and a model needs all that shared its processes"
        found = prediction.WhatIf(services[0], 0, refusal=why, would_help="leave all but --service and times out")
        return _answer(found, args)
    with reader.relations(wanted) as relations:
        found = prediction.ask(relations, services[0], list(_changes(args)), args.find, args.cpus)
    return _answer(found, args, relations.reason)


def _of_no_service(services: Sequence[str], wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the answer where there is not one service."""
    text = no_requests(wanted, args.tz)
    if services:
        text = f"A model is of one service, and there are {len(services)}: {', '.join(services)}."
    keys: dict[str, Any] = {"service": None, "refusal": text, "changes": []}
    steps = [next_command(args, "what-if", service=name) for name in services[:1]]
    return Answer(TITLE, text, keys, is_undecided=bool(services), steps=steps)


def _answer(found: WhatIf, args: argparse.Namespace, reason: str | None = None) -> Answer:
    return Answer(
        TITLE,
        _sentence(found),
        _keys(found),
        list(_parts(found)),
        reason=reason,
        is_undecided=found.refusal is not None,
        steps=[next_command(args, "capacity")],
    )


def _changes(args: argparse.Namespace) -> Iterator[Change]:
    """Yield each change by itself, then all together if no option is given twice."""
    from stagetrace.analysis.what_if.changes import Change, together

    single = [
        *(Change(workers=one) for one in args.workers),
        *(Change(threads=one) for one in args.threads),
        *(Change(batch_size=one) for one in args.batch_size),
        *(Change(batch_wait_s=one) for one in args.batch_wait),
        *(Change(rate=one.value) if one.is_factor else Change(per_s=one.value) for one in args.rate),
        *(Change(stages={name: left}) for name, left in args.stage),
        *(Change(stages={name: 0.0}) for name in args.without),
        *(Change(off_loop=(one,)) for one in args.move),
        *(Change(most_in_process=one) for one in args.limit_concurrency),
    ]
    yield from single
    whole = together(single)
    if whole is not None:
        yield whole


# --- The answer.


def _sentence(found: WhatIf) -> str:
    if found.refusal is not None:
        return f"No prediction for service {found.service}: {found.refusal}. What would help: {found.would_help}."
    if not found.changes:
        return f"No single change that was tried reaches {found.goal} for service {found.service}."
    change, outcome = found.changes[-1]
    if len(change.keys()) == 1:  # not all together: the first that was asked for, or the least that will do
        change, outcome = found.changes[0]
    assert found.recorded is not None  # noqa: S101 -- only a refusal has none
    now = found.recorded
    p99 = _from_to(now.percentiles_ms["p99"], outcome.percentiles_ms["p99"], milliseconds)
    told = [f"p99 of service {found.service} {p99}"]
    if now.breaches is not None and outcome.breaches is not None and now.breaches.value + outcome.breaches.high:
        told.append(f"breaches {_from_to(now.breaches, outcome.breaches, percent)}")
    if outcome.refused:
        told.append(f"{percent(outcome.refused)} refused")
    next_ = outcome.bottleneck
    limit = f"; most in use then: {next_[0]}, {percent(next_[1])}" if next_ is not None else ""
    return f"With {change.text}: {', '.join(told)}{limit}."


def _from_to(before: Value, after: Value, text: Any) -> str:
    return f"{text(before.value)} -> {text(after.value)} ({text(after.low)} to {text(after.high)})"


def _parts(found: WhatIf) -> Iterator[str | Table | Bars]:
    rows: list[tuple[str, Outcome]] = []
    if found.recorded is not None:
        rows.append(("as recorded", found.recorded))
    if found.modelled is not None:
        rows.append(("as modelled", found.modelled))
    rows += [(change.text, outcome) for change, outcome in found.changes]
    if rows:
        yield table_of(
            rows,
            (
                (Column("change"), lambda one: one[0]),
                *((numeric(name), _percentile(name)) for name in ("p50", "p95", "p99")),
                (numeric("p99, 90 % interval"), lambda one: _interval(one[1].percentiles_ms["p99"], milliseconds)),
                (numeric("breaches"), lambda one: "-" if one[1].breaches is None else percent(one[1].breaches.value)),
                (numeric("waits"), lambda one: milliseconds(one[1].waited_ms)),
                (Column("most in use"), lambda one: _use(one[1])),
            ),
            f"Service {found.service}, {found.requests:,} requests",
        )
    if found.changes:
        bars = [(name, (p99 := one.percentiles_ms["p99"].value), milliseconds(p99)) for name, one in rows]
        yield Bars("p99", bars)
    if found.model is not None:
        yield from found.model.notes()


def _percentile(name: str) -> Any:
    return lambda one: milliseconds(one[1].percentiles_ms[name].value)


def _interval(value: Value, text: Any) -> str:
    return "-" if value.low == value.high else f"{text(value.low)} to {text(value.high)}"


def _use(outcome: Outcome) -> str:
    return "-" if outcome.bottleneck is None else f"{outcome.bottleneck[0]} ({percent(outcome.bottleneck[1])})"


def _keys(found: WhatIf) -> dict[str, Any]:
    changes: Sequence[tuple[Change, Outcome]] = found.changes
    return {
        "service": found.service,
        "requests": found.requests,
        "refusal": found.refusal,
        "would_help": found.would_help,
        "recorded": None if found.recorded is None else asdict(found.recorded),
        "modelled": None if found.modelled is None else asdict(found.modelled),
        "waits_reproduced": found.waits_reproduced,
        "changes": [{"change": change.text, **change.keys(), **asdict(outcome)} for change, outcome in changes],
    }
