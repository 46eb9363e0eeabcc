"""`stagetrace drift`: whether latency has changed: steps and slopes of p50, p95 and p99 over time."""

from __future__ import annotations

import argparse
from typing import Final
from urllib.parse import urlsplit

from stagetrace.cli.arguments.options import add_selection, seconds, selection, store_url
from stagetrace.cli.ask import ask
from stagetrace.cli.base import UsageError
from stagetrace.cli.output.formats import TEXT, add_format
from stagetrace.output.answer import Answer
from stagetrace.output.times import Moment, window
from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = (
    "Show which quantiles of which routes, stages and models have changed: steps to a new level and slopes, each with\n"
    "when and by how much. Spikes, noise and patterns that repeat by day or week are no change. Exit code 1 where the\n"
    "newest level of one is slower than before it. With --watch, an alarm for each new change for the worse."
)
EXAMPLE: Final = "stagetrace drift --route /predict --since 7d"
TITLE: Final = "Drift"
_DAY: Final = Moment(86_400 * 10**9, ago=True)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "--least", metavar="PERCENT", type=percent, default=0.05, help="only changes by this much or more; default: 5%%"
    )
    parser.add_argument("--watch", action="store_true", help="ask again and again, and print each new alarm on a line")
    parser.add_argument(
        "--interval", metavar="SECONDS", type=seconds, default=60.0, help="how often --watch asks; default: 60"
    )
    parser.add_argument(
        "--webhook", metavar="URL", type=webhook, help="with --watch: POST each new alarm there too, as JSON"
    )
    add_selection(parser, since="1d, of a file all of it", cause=False)  # breaches alone are no latency over time
    add_format(parser)


def run(args: argparse.Namespace) -> int:
    """Print the answer, or watch, and return the exit code."""
    if args.webhook and not args.watch:
        raise UsageError("--webhook gets alarms of --watch alone\ngive --watch too")
    if args.watch and args.format != TEXT:
        raise UsageError(f"--watch prints lines, and not --format {args.format}\nleave one of them out")
    url = store_url(args)
    if args.watch:
        from stagetrace.cli.drift.watch import watch

        return watch(url, args, lambda: chosen(args, url))
    return ask(args, answer, url, chosen(args, url))


def chosen(args: argparse.Namespace, url: str) -> Selection:
    """Return which requests are meant: of a file all of them."""
    default = None if args.since else selection(args, url).since_ns
    return selection(args, url, since=_DAY if default else None)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the changes in a selection."""
    from stagetrace.analysis import drift, tracks
    from stagetrace.cli.drift import view

    with reader.relations(wanted) as relations:
        found = tracks.ask(relations)
    looked = drift.look(found.tracks, least=args.least)
    if not found.requests:
        sentence = f"No requests{window(wanted.since_ns, wanted.until_ns, args.tz)}."
    else:
        sentence = view.sentence(found, looked, args.tz)
    return Answer(
        TITLE,
        sentence,
        view.keys(found, looked),
        view.parts(found, looked, args.tz),
        is_bad=any(drift.is_worse(one) for one in looked),
        reason=relations.reason,
    )


def percent(text: str) -> float:
    """Return a share out of `5%` or `5`."""
    try:
        found = float(text.removesuffix("%"))
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1000:  # noqa: PLR2004
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 0 to 1000: write 5%")
    return found / 100


def webhook(text: str) -> str:
    """Return a URL of HTTP."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise argparse.ArgumentTypeError("a webhook is http://HOST/PATH or https://HOST/PATH, without a user")
    return text
