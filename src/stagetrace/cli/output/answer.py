"""What the verbs that answer a question found, and how it is printed: for people, as JSON, Markdown or a page."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.base import ANSWERED, BAD, UsageError
from stagetrace.cli.options import selection, store_url
from stagetrace.cli.output import chart, terminal
from stagetrace.cli.output.lines import completeness, show, show_json, warn
from stagetrace.cli.output.table_layout import Table
from stagetrace.cli.output.terminal import watched
from stagetrace.cli.times import UTC
from stagetrace.store import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from stagetrace.cli.output.chart import Chart
    from stagetrace.cli.times import Moment, Zone
    from stagetrace.store.base import Reader, Selection

TEXT: Final = "text"
MARKDOWN: Final = "markdown"
HTML: Final = "html"


@dataclass(frozen=True)
class Answer:
    """One answer. Where `complete` is false, `reason` says what is missing and why."""

    title: str  # heading of a page: `Service level objectives`
    sentence: str  # the answer, plainly: the first line
    keys: Mapping[str, Any]  # of `--json`, beside `complete`, `reason` and `sentence`; numbers are finite, or None
    parts: Sequence[str | Table | Chart] = ()  # what stands below: lines, tables, pictures
    is_bad: bool = False  # exit code 1
    complete: bool = True
    reason: str | None = None


def add_format(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add `--format`, with the forms that every answer has and `more` of this verb's own."""
    forms = (TEXT, MARKDOWN, HTML, *more)
    parser.add_argument(
        "--format", choices=forms, default=TEXT, help=f"how to print the answer: {', '.join(forms)}; default: {TEXT}"
    )


def ask_store(
    args: argparse.Namespace,
    answer: Callable[[Reader, Selection, argparse.Namespace], Answer],
    since: Moment | None = None,
) -> tuple[int, Answer]:
    """Put a verb's question to the store and the requests that are meant; print and return the answer, after its code.

    `since`: from when on by default, where that is not as usual.
    """
    url = store_url(args)
    wanted = selection(args, url, since=since)
    with open_store(url) as reader, watched(reader):
        made = answer(reader, wanted, args)
    return finish(args, made), made


def finish(args: argparse.Namespace, answer: Answer) -> int:
    """Print an answer in the form asked for and return the exit code. Raise UsageError if two forms are asked for."""
    if args.json and args.format != TEXT:
        raise UsageError(f"--json and --format {args.format} are two forms\ngive one of them")
    zone = getattr(args, "tz", UTC)
    if args.json:
        show_json(as_json(answer))
    elif args.format == HTML:
        from stagetrace.cli.output.html_page import page

        sys.stdout.write(page(answer.title, [answer], zone))
    else:
        show_answer(answer, args.format, zone)
    warn(answer.complete, answer.reason)
    return BAD if answer.is_bad else ANSWERED


def as_json(answer: Answer) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {**completeness(answer.complete, answer.reason), "sentence": answer.sentence, **answer.keys}


def show_answer(answer: Answer, form: str, zone: Zone) -> None:
    """Print one answer as text or Markdown."""
    if form == MARKDOWN:
        from stagetrace.cli.output.markdown import markdown

        sys.stdout.write(markdown(answer, zone))
    else:
        show(answer.sentence, *(one for part in answer.parts for one in ("", *_drawn(part, zone))))


def _drawn(part: str | Table | Chart, zone: Zone) -> Sequence[str | Table]:
    """Return a part as what a terminal shows: pictures as lines."""
    if isinstance(part, (str, Table)):
        return (part,)
    return chart.lines(part, terminal.width(), chart.BLOCKS if terminal.shows_blocks() else chart.ASCII, zone)
