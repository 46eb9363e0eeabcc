"""`stagetrace cost`: the cost of requests, by model, version, segment or stage, and of idle time."""

from __future__ import annotations

import argparse
import json
import re
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments import next_command, selection_options, utf8
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output.answer import Answer, keys_of, no_requests
from stagetrace.output.chart import Bars
from stagetrace.output.table import Column, Table, numbers
from stagetrace.output.units import rounded_percent

if TYPE_CHECKING:
    from stagetrace.analysis.cost import Costs, Line
    from stagetrace.analysis.prices import Prices
    from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = (
    "Divide what instances and tokens cost among requests: by model and version, or by what --by names, a stage too.\n"
    "Idle time and requests that missed their objective are apart; all amounts add up to the bill to the last unit.\n"
    "Without prices, shares of busy time."
)
EXAMPLE: Final = "stagetrace cost --prices prices.toml --by model --by tenant.id --since 1d"
_SHOWN: Final = 20  # lines, to people
_COLUMNS: Final = {"version": "model_version", "route": "path"}  # by the words of --by
_WORDS: Final = {column: word for word, column in _COLUMNS.items()}
_PER: Final = 1000  # requests, in the sentence
_WHOLE_PERCENT: Final = 10
_LARGEST: Final = 1 << 20  # bytes of a price file
_PRICE: Final = re.compile(r"\d{1,15}(\.\d{1,15})?", re.ASCII)


def _price(text: str) -> tuple[str, Any]:
    """Return a key and its value: a number where it is one."""
    key, equals, value = utf8(text).partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} is not KEY=VALUE, as per_hour=1.20")
    if not _PRICE.fullmatch(value):
        return key, value
    return key, Decimal(value) if "." in value else int(value)


OPTIONS: Final = (
    Option(
        "--prices FILE",
        "TOML or JSON with per_hour, gpu_per_hour, per_1k_tokens or per_token, by service, model or instance_type, or "
        "a bill to divide, and a currency (docs/answers/cost.md)",
        Path,
    ),
    Option(
        "--price KEY=VALUE",
        "one line of such a file in place of it: per_hour=1.20, per_1k_tokens=0.002, bill=900, currency=EUR; may be "
        "repeated",
        _price,
        repeats=True,
    ),
    Option(
        "--by KEY",
        "what to divide by: model, version, service, route, stage, or any attribute; may be repeated; default: model "
        "and version",
        utf8,
        repeats=True,
    ),
    *selection_options(cause=False),
    *PRINTED,
)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the costs of the requests of a selection."""
    from stagetrace.analysis.cost import ask
    from stagetrace.analysis.prices import PriceError

    by = tuple(dict.fromkeys(_COLUMNS.get(one, one) for one in args.by)) or ("model", "model_version")
    try:
        given = _prices(args)
        with reader.relations(wanted) as relations:
            length_ns = wanted.until_ns - wanted.since_ns if args.since and getattr(args, "until", None) else None
            found = ask(relations, by, given, length_ns)
            sampled = any(row["sampled"] for row in relations.reduce("counts"))
    except PriceError as error:
        where = "--price" if args.prices is None else f"--prices {args.prices}"
        raise UsageError(f"{where}: {error}") from None
    if found.stored == 0:
        return Answer("Cost", no_requests(wanted, args.tz), _keys(found), reason=relations.reason)
    parts: list[str | Table | Bars] = [_table(found, by), _bars(found), *_notes(found, given, sampled)]
    return Answer(
        "Cost",
        _sentence(found, given),
        _keys(found),
        parts,
        reason=relations.reason,
        steps=[next_command(args, "bottleneck")],
    )


def _prices(args: argparse.Namespace) -> Prices | None:
    """Return the prices of the file, or those of the command line. Raise UsageError or PriceError for unusable ones."""
    from stagetrace.analysis.prices import prices

    if args.prices is None and not args.price:
        return None
    if args.prices is not None and args.price:
        raise UsageError("--prices and --price give two sets of prices\nleave one out")
    if args.prices is not None:
        return prices(_read(args.prices))
    given = dict(args.price)
    if len(given) < len(args.price):
        raise UsageError("--price gives one key twice\ngive it once; several prices stand in a file: --prices")
    return prices(given)


def _read(path: Path) -> Any:
    """Return the contents of a price file. Raise UsageError where it cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(f"--prices {path} cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise UsageError(f"--prices {path} is larger than {_LARGEST} bytes, and no price file is")
    if path.suffix.lower() == ".json":
        try:
            return json.loads(content)
        except ValueError as error:
            raise UsageError(f"--prices {path} is no JSON: {error}") from None
    try:
        tomllib = import_module("tomllib")
    except ImportError:  # Python 3.10
        raise UsageError(f"--prices {path}: TOML needs Python 3.11\nwrite the same as JSON, in a file *.json") from None
    try:
        return tomllib.loads(content.decode())
    except ValueError as error:
        raise UsageError(f"--prices {path} is no TOML: {error}\nJSON needs a name that ends with .json") from None


def _amount(micros: int | None) -> float | None:
    return None if micros is None else micros / 10**6


def _keys(found: Costs) -> dict[str, Any]:
    lines = [
        keys_of(
            line,
            amount=_amount(line.amount),
            breach_amount=_amount(line.breach_amount),
            per_request=line.per_request,
            requests=round(line.requests),
            breaches=round(line.breaches),
        )
        for line in found.lines
    ]
    amounts = {"idle": _amount(found.idle), "breach": _amount(found.breach), "total": _amount(found.total)}
    unlisted = ("stored", "negative", "unnamed", "processes", "without_host")
    return keys_of(found, *unlisted, lines=lines, idle_share=found.idle_share, **amounts)


def _money(micros: float | None, currency: str | None) -> str:
    """Return an amount with two decimals, or as many as show the first two digits of a small one."""
    if micros is None:
        return "-"
    value = micros / 10**6
    small = abs(value) < 1 and micros
    text = f"{value:.2g}" if small and abs(value) < 0.1 else f"{value:,.2f}"  # noqa: PLR2004
    if "e" in text:
        text = f"{value:.9f}".rstrip("0")
    return f"{text} {currency}" if currency else text


def _share(part: float, whole: float) -> str:
    share = 100 * part / whole if whole else 0.0
    return f"{share:.{0 if share >= _WHOLE_PERCENT or not share else 1}f} %"


def _what(line: Line) -> str:
    """Return the name of a line: `model churn version 3`."""
    named = [f"{_WORDS.get(key, key)} {value}" for key, value in line.by.items() if value is not None]
    without = [_WORDS.get(key, key) for key, value in line.by.items() if value is None]
    return " ".join(named) or (f"no {' and no '.join(without)}" if without else "any kind")


def _sentence(found: Costs, given: Prices | None) -> str:
    line = found.lines[0]
    if given is None or found.total is None:
        part = f"{_share(line.busy_s, found.busy_s)} of the busy time" if found.busy_s else "no time"
        idle = rounded_percent(found.idle_share)
        idle = "" if found.idle_share is None else f"; {idle} of the time no request was in flight"
        what = _what(line)
        what = (
            what if "." in what.partition(" ")[0] else what[:1].upper() + what[1:]
        )  # an attribute is as it is written
        return f"{what} took {part}{idle}; give --price or --prices for amounts."
    currency = found.currency
    text = f"{_PER:,} requests of {_what(line)} cost {_money((line.per_request or 0) * _PER * 10**6, currency)}"
    if not found.total:
        return f"{text}; the whole bill is 0."
    bill = f"the {_money(found.total, currency)} bill"
    idle = "" if found.idle is None else f"{_share(found.idle, found.total)} of {bill} was idle, "
    of_bill = "" if idle else f" of {bill}"
    missed = f"{_share(found.breach or 0, found.total)}{of_bill}"
    return f"{text}; {idle}{missed} went into requests that missed their objective."


def _table(found: Costs, by: tuple[str, ...]) -> Table:
    names = ("requests", "busy", "met or unjudged", "missed", f"{_PER:,} requests")
    rows = []
    for line in found.lines[:_SHOWN]:
        per = None if line.per_request is None else line.per_request * _PER * 10**6
        cells = [_money(one, found.currency) for one in (line.amount, line.breach_amount, per)]
        share = rounded_percent(line.share, 1)
        named = ["-" if line.by.get(key) is None else str(line.by[key]) for key in by]
        rows.append([*named, f"{round(line.requests):,}", share, *cells])
    rest = found.lines[_SHOWN:]
    met, missed = sum(one.amount or 0 for one in rest), sum(one.breach_amount or 0 for one in rest)
    ends: list[tuple[str, int | None, int | None]] = []
    if rest:
        ends.append((f"({len(rest)} more lines)", *((met, missed) if found.total is not None else (None, None))))
    if found.total is not None:
        ends += [("(idle)", found.idle, None), ("(all)", found.total - (found.breach or 0), found.breach)]
    blank = [""] * (len(by) - 1)
    rows += [[name, *blank, "", "", *(_money(one, found.currency) for one in amounts), ""] for name, *amounts in ends]
    return Table([*(Column(_WORDS.get(key, key)) for key in by), *numbers(*names)], rows)


def _bars(found: Costs) -> Bars:
    if found.total is None:
        rows = [(_what(line), line.share, rounded_percent(line.share or 0, 1)) for line in found.lines[:_SHOWN]]
        return Bars("Share of the busy time", rows)
    rows = []
    for line in found.lines[: _SHOWN // 2]:
        whole = (line.amount or 0) + (line.breach_amount or 0)
        rows.append((_what(line), whole / 10**6, _money(whole, found.currency)))
    if found.idle is not None:
        rows.append(("(idle)", found.idle / 10**6, _money(found.idle, found.currency)))
    return Bars("Cost, with that of missed objectives", rows)


def _notes(found: Costs, given: Prices | None, sampled: bool) -> list[str]:
    of_file = given is not None and given.instances is not None
    notes = [
        f"{found.instances} instance{'' if found.instances == 1 else 's'}, {found.paid_s / 3600:,.2f} hours, of which "
        f"{found.busy_s / 3600:,.2f} with a request in flight. "
        + (
            "Hours are those of the price file."
            if of_file
            else "An instance counts from its first request to its last: when it started and stopped is not known."
        )
    ]
    if found.processes > found.instances:
        notes.append(f"{found.processes} processes: workers of one host are one instance of their service.")
    if found.without_host > 1:
        notes.append(
            f"{found.without_host} processes carry no host.name, so each is an instance, workers of one host too: set "
            "OTEL_RESOURCE_ATTRIBUTES=host.name=$HOSTNAME for the service, or `instances` to how many are paid."
        )
    if found.unnamed:
        notes.append("Instances without service.instance.id count as one of their service.")
    if found.negative:
        notes.append(f"{found.negative} requests end before they begin, by their clocks: they have no time.")
    if sampled:
        notes.append(
            "Requests are sampled: those stored count for as many as they stand for, and busy time is a guess."
        )
    return notes
