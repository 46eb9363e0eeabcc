"""`stagetrace compare`: whether one version of a model, or any other set of requests, is slower than another."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from stagetrace.cli.arguments import selection_options, utf8
from stagetrace.cli.ask import PRINTED, ask
from stagetrace.cli.compare.sides import Gate, check, newest_two, side, side_part, state_of, store_of
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output.answer import join_reasons
from stagetrace.store import open_store

if TYPE_CHECKING:
    from stagetrace.analysis.comparison import Comparison
    from stagetrace.analysis.comparison_kinds import Kinds
    from stagetrace.output.answer import Answer
    from stagetrace.store.base import Reader, Relations, Selection

DESCRIPTION: Final = (
    "Compare two sets of requests, such as two versions of a model: by how much their p50, p95 and p99 differ, whole\n"
    "and by stage, with intervals that hold however often one looks. Both are compared as if they had the same mix of\n"
    "routes and input sizes. With --gate the exit code is 1 if b is surely slower than allowed, and 2 while that is\n"
    "open."
)
EXAMPLE: Final = "stagetrace compare --a version=2 --b version=3 --gate p99:+5%"
_QUANTILES: Final = (0.5, 0.95, 0.99)
_SIDE: Final = (
    "version=, model=, service=, route=, any attribute, period=SINCE..UNTIL, store=URL or file=PATH; may be repeated, "
    "all must hold"
)


def _quantile(text: str) -> float:
    number = re.fullmatch(r"p?(\d{1,2}(?:\.\d{1,4})?)", text.strip())
    q = round(float(number[1]) / 100, 8) if number else 0.0
    if not 0 < q < 1:
        raise ValueError(f"{text!r} is no percentile; write p99 or p99.9")
    return q


def _quantiles(text: str) -> tuple[float, ...]:
    return tuple(sorted({_quantile(part) for part in text.split(",")}))


def _percent(text: str) -> float:
    number = re.fullmatch(r"\+?(\d+(?:\.\d+)?)\s*%", text.strip())
    if not number or not float(number[1]):
        raise ValueError(f"{text!r} is no share above 0; write 5%")
    return float(number[1]) / 100


def _gate(text: str) -> Gate:
    q, colon, limit = text.partition(":")
    number = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)\s*%", limit.strip())
    if not colon or not number:
        raise ValueError(f"{text!r} is no gate; write p99:+5%")
    return Gate(_quantile(q), float(number[1]) / 100, text)


OPTIONS: Final = (
    Option(
        "--a KEY=VALUE",
        f"what is compared with: {_SIDE}; default, with --b: the two newest versions of the model with most requests",
        side_part,
        repeats=True,
    ),
    Option("--b KEY=VALUE", "what is compared, likewise", side_part, repeats=True),
    Option("--quantiles P,P", "which to compare, as p50,p99.9; default: p50,p95,p99", _quantiles, _QUANTILES),
    Option(
        "--stratify KEY",
        "what makes requests alike, in place of route and input size: a column or an attribute; may be repeated; none "
        "compares them as they are",
        utf8,
        repeats=True,
    ),
    Option("--gate P:+N%", "how much slower b may be, as p99:+5%; may be repeated", _gate, repeats=True),
    Option(
        "--resolution N%",
        "the smallest difference to detect, for the number of requests that are needed; default: 10%",
        _percent,
        0.1,
    ),
    Option("--once", "narrower intervals, right for one look at a number of requests that was set before"),
    *selection_options(cause=False),
    *PRINTED,
)


def run(args: argparse.Namespace) -> int:
    """Print the comparison and return the exit code."""
    named = store_of(args.a), store_of(args.b)
    return ask(args, answer, url=named[0] if None not in named else None)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return how two sides differ: those of --a and --b, or the two newest versions."""
    from stagetrace.cli.compare import view

    if bool(args.a) != bool(args.b):
        missing = "--b" if args.a else "--a"
        raise UsageError(
            f"{missing} is missing: a comparison has two sides\ngive both, or neither for the newest versions"
        )
    with ExitStack() as stack:
        urls = [store_of(args.a), store_of(args.b)]
        readers = [reader if url is None else stack.enter_context(open_store(url)) for url in urls]
        if args.a:
            sides = side(readers[0], wanted, args.a, args), side(readers[1], wanted, args.b, args)
        else:
            found = newest_two(reader, wanted)
            if found is None:
                return view.nothing(wanted, args.tz)
            sides = found
        check(*sides)
        relations = [stack.enter_context(one.relations(at.wanted)) for one, at in zip(readers, sides, strict=True)]
        is_one_route = sides[0].wanted.route == sides[1].wanted.route
        keys = args.stratify or (["path"] if is_one_route else [])
        both = relations[0], relations[1]
        compared, kinds = _compare(both, keys, args), _kinds(both, keys, args)
        reasons = [f"{name}: {one.reason}" for name, one in zip("ab", relations, strict=True) if one.reason]
    gates = [(gate, state_of(gate, compared)) for gate in args.gate]
    return view.answer(sides, compared, kinds, gates, args, join_reasons(reasons))


def _compare(relations: tuple[Relations, Relations], keys: Sequence[str], args: argparse.Namespace) -> Comparison:
    from stagetrace.analysis.comparison import TooManyKindsError, compare

    asked = sorted({*args.quantiles, *(gate.q for gate in args.gate)})
    try:
        return compare(
            relations,
            asked,
            stratify=[key for key in dict.fromkeys(keys) if key != "none"],
            sizes=not args.stratify,
            resolution=args.resolution,
            sequential=not args.once,
        )
    except TooManyKindsError as error:
        raise UsageError(
            f"{error} makes too many kinds of requests to compare\n"
            "give --stratify an attribute with fewer values, or none"
        ) from None


def _kinds(relations: tuple[Relations, Relations], keys: Sequence[str], args: argparse.Namespace) -> Kinds:
    """Return the kinds of requests that got slower, within each route unless routes are pooled."""
    from stagetrace.analysis.cases import ask_any
    from stagetrace.analysis.comparison import PATH
    from stagetrace.analysis.comparison_kinds import slower_kinds

    return slower_kinds(
        ask_any(relations[0]),
        ask_any(relations[1]),
        by_route=PATH in keys,
        sizes=not args.stratify,
        resolution=args.resolution,
        alpha=0.05,
        sequential=not args.once,
    )
