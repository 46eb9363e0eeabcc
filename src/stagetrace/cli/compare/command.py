"""`stagetrace compare`: whether one version of a model, or any other set of requests, is slower than another."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from stagetrace.cli.arguments.options import add_selection, selection, store_url, utf8
from stagetrace.cli.ask import add_format, ask
from stagetrace.cli.compare.sides import Gate, Side, check, newest_two, side, side_part, state_of, store_of
from stagetrace.cli.registry import UsageError
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


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--a",
        metavar="KEY=VALUE",
        type=side_part,
        action="append",
        default=[],
        help=f"what is compared with: {_SIDE}; default, with --b: the two newest versions of the model with most "
        "requests",
    )
    parser.add_argument(
        "--b", metavar="KEY=VALUE", type=side_part, action="append", default=[], help="what is compared, likewise"
    )
    parser.add_argument(
        "--quantiles",
        metavar="P,P",
        type=_quantiles,
        default=_QUANTILES,
        help="which to compare, as p50,p99.9; default: p50,p95,p99",
    )
    parser.add_argument(
        "--stratify",
        metavar="KEY",
        type=utf8,
        action="append",
        help="what makes requests alike, in place of route and input size: a column or an attribute; may be repeated; "
        "none compares them as they are",
    )
    parser.add_argument(
        "--gate",
        metavar="P:+N%",
        type=_gate,
        action="append",
        default=[],
        help="how much slower b may be, as p99:+5%%; may be repeated",
    )
    parser.add_argument(
        "--resolution",
        metavar="N%",
        type=_percent,
        default=0.1,
        help="the smallest difference to detect, for the number of requests that are needed; default: 10%%",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="narrower intervals, right for one look at a number of requests that was set before",
    )
    add_selection(parser, cause=False)
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the comparison and return the exit code."""
    named = store_of(args.a), store_of(args.b)
    url = named[0] if named[0] is not None and named[1] is not None else store_url(args)
    wanted = selection(args, url)
    return ask(args, answer, url, wanted)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return how two sides differ: those of --a and --b, or the two newest versions."""
    from stagetrace.cli.compare import view

    if bool(args.a) != bool(args.b):
        missing = "--b" if args.a else "--a"
        raise UsageError(
            f"{missing} is missing: a comparison has two sides\ngive both, or neither for the newest versions"
        )
    with ExitStack() as stack:
        if not args.a:
            found = newest_two(reader, wanted)
            if found is None:
                return view.nothing(wanted, args)
            sides, readers = found, (reader, reader)
        else:
            sides, readers = _sides(stack, reader, wanted, args)
        check(*sides)
        relations = [stack.enter_context(one.relations(at.wanted)) for one, at in zip(readers, sides, strict=True)]
        is_one_route = sides[0].wanted.route == sides[1].wanted.route
        keys = args.stratify if args.stratify is not None else ["path"] if is_one_route else []
        compared = _compared((relations[0], relations[1]), keys, args)
        kinds = _kinds((relations[0], relations[1]), keys, args)
        reasons = [f"{name}: {one.reason}" for name, one in zip("ab", relations, strict=True) if one.reason]
    gates = [(gate, state_of(gate, compared)) for gate in args.gate]
    return view.answer(sides, compared, kinds, gates, args, "; ".join(reasons) or None)


def _sides(
    stack: ExitStack, reader: Reader, wanted: Selection, args: argparse.Namespace
) -> tuple[tuple[Side, Side], tuple[Reader, Reader]]:
    """Return the sides that are named, and the reader of each: of the command's store unless the side names another."""
    made: list[tuple[Side, Reader]] = []
    for parts in (args.a, args.b):
        url = store_of(parts)
        at = reader if url is None else stack.enter_context(open_store(url))
        made.append((side(at, wanted, parts, args), at))
    (a, of_a), (b, of_b) = made
    return (a, b), (of_a, of_b)


def _compared(relations: tuple[Relations, Relations], keys: Sequence[str], args: argparse.Namespace) -> Comparison:
    from stagetrace.analysis.comparison import TooManyKindsError, compare

    asked = sorted({*args.quantiles, *(gate.q for gate in args.gate)})
    try:
        return compare(
            relations,
            asked,
            stratify=[key for key in dict.fromkeys(keys) if key != "none"],
            sizes=args.stratify is None,
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
        sizes=args.stratify is None,
        resolution=args.resolution,
        alpha=0.05,
        sequential=not args.once,
    )


def _quantile(text: str) -> float:
    number = re.fullmatch(r"p?(\d{1,2}(?:\.\d{1,4})?)", text.strip())
    q = round(float(number[1]) / 100, 8) if number else 0.0
    if not 0 < q < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no percentile; write p99 or p99.9")
    return q


def _quantiles(text: str) -> tuple[float, ...]:
    return tuple(sorted({_quantile(part) for part in text.split(",")}))


def _percent(text: str) -> float:
    number = re.fullmatch(r"\+?(\d+(?:\.\d+)?)\s*%", text.strip())
    if not number or not float(number[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no share above 0; write 5%")
    return float(number[1]) / 100


def _gate(text: str) -> Gate:
    q, colon, limit = text.partition(":")
    number = re.fullmatch(r"([+-]?\d+(?:\.\d+)?)\s*%", limit.strip())
    if not colon or not number:
        raise argparse.ArgumentTypeError(f"{text!r} is no gate; write p99:+5%")
    return Gate(_quantile(q), float(number[1]) / 100, text)
