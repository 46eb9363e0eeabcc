"""`stagetrace drift`: whether latency has changed: steps and slopes of p50, p95 and p99 over time."""

from __future__ import annotations

import argparse
from typing import Final
from urllib.parse import urlsplit

from stagetrace.cli.arguments import is_file, next_command, seconds, selection, selection_options, store_url
from stagetrace.cli.ask import PRINTED, TEXT, ask
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output.answer import Answer, no_requests
from stagetrace.output.units import Moment
from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = (
    "Show which quantiles of which routes, stages and models have changed, and which kinds of requests: steps to a\n"
    "new level and slopes, each with since when, with which release, and by how much; the most harmful first. Spikes,\n"
    "noise and patterns that repeat by day or week are no change. Exit code 1 where the newest level of one is slower\n"
    "than before it, by so much that it matters. With --watch, an alarm for each new change for the worse."
)
EXAMPLE: Final = "stagetrace drift --route /predict --since 7d"
_DAY: Final = Moment(86_400 * 10**9, ago=True)


def percent(text: str) -> float:
    """Return a share out of `5%` or `5`."""
    try:
        found = float(text.removesuffix("%"))
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1000:  # noqa: PLR2004
        raise ValueError(f"{text!r} is not a percentage from 0 to 1000: write 5%")
    return found / 100


def webhook(text: str) -> str:
    """Return a URL of HTTP."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise ValueError("a webhook is http://HOST/PATH or https://HOST/PATH, without a user")
    return text


OPTIONS: Final = (
    Option("--least PERCENT", "only changes by this much or more; default: 5%", percent, 0.05),
    Option("--watch", "ask again and again, and print each new alarm on a line"),
    Option("--interval SECONDS", "how often --watch asks; default: 60", seconds, 60.0),
    Option("--webhook URL", "with --watch: POST each new alarm there too, as JSON", webhook),
    *selection_options(since="1d, of a file all of it", cause=False),  # breaches alone are no latency over time
    *PRINTED,
)


def run(args: argparse.Namespace) -> int:
    """Print the answer, or watch, and return the exit code."""
    if args.webhook and not args.watch:
        raise UsageError("--webhook gets alarms of --watch alone\ngive --watch too")
    if args.watch and args.format != TEXT:
        raise UsageError(f"--watch prints lines, and not --format {args.format}\nleave one of them out")
    url = store_url(args)
    since = None if is_file(url) else _DAY
    if args.watch:
        from stagetrace.cli.drift.view import watch

        return watch(url, args, lambda: selection(args, url, since=since))
    return ask(args, answer, since=since)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the changes in a selection."""
    from stagetrace.analysis import cases, drift, drift_kinds, onset, series
    from stagetrace.analysis.drift_kinds import Sample
    from stagetrace.cli.drift import view

    with reader.relations(wanted) as relations:
        found = series.ask(relations)
        requests = cases.ask_any(relations)
        released = onset.ask(relations, found.requests, requests)
    sample = Sample(requests, found.since_unix_nano, found.until_unix_nano)
    of_kinds = drift_kinds.look(sample, found, released, least=args.least)
    looked = sample.weighed(drift.look(found.tracks, released, least=args.least), of_kinds.rows)
    looked += of_kinds.looked
    small = sum(not one.track.having and one.track.requests < series.LEAST_REQUESTS for one in of_kinds.looked)
    found = found._replace(thin=max(0, found.thin - small))
    return Answer(
        "Drift",
        view.sentence(found, looked, args.tz) if found.requests else no_requests(wanted, args.tz),
        view.keys(found, looked, released),
        view.parts(found, looked, released, args.tz),
        is_bad=any(drift.is_worse(one) for one in looked),
        reason=relations.reason,
        steps=[next_command(args, "why")],
    )
