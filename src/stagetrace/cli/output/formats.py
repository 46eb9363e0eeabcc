"""The forms in which an answer is printed: text with pictures, JSON, Markdown, a page of HTML."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Final

from stagetrace.cli.base import ANSWERED, BAD, NO_ANSWER, UsageError
from stagetrace.cli.output import terminal
from stagetrace.cli.output.lines import show, show_json, warn
from stagetrace.output import chart
from stagetrace.output.answer import Answer, as_json
from stagetrace.output.chart import Chart
from stagetrace.output.html_page import page
from stagetrace.output.markdown import markdown
from stagetrace.output.table_layout import Table
from stagetrace.output.times import UTC, Zone

TEXT: Final = "text"
MARKDOWN: Final = "markdown"
HTML: Final = "html"


def add_format(parser: argparse.ArgumentParser, *more: str) -> None:
    """Add `--format`, with the forms that every answer has and `more` of this verb's own."""
    forms = (TEXT, MARKDOWN, HTML, *more)
    parser.add_argument(
        "--format", choices=forms, default=TEXT, help=f"how to print the answer: {', '.join(forms)}; default: {TEXT}"
    )


def print_answer(args: argparse.Namespace, answer: Answer) -> int:
    """Print an answer in the form asked for and return the exit code. Raise UsageError if two forms are asked for."""
    if args.json and args.format != TEXT:
        raise UsageError(f"--json and --format {args.format} are two forms\ngive one of them")
    zone = getattr(args, "tz", UTC)
    if args.json:
        show_json(as_json(answer))
    elif args.format == HTML:
        sys.stdout.write(page(answer.title, [answer], zone))
    else:
        show_answer(answer, args.format, zone)
    warn(answer.reason)
    return BAD if answer.is_bad else NO_ANSWER if answer.is_undecided else ANSWERED


def show_answer(answer: Answer, form: str, zone: Zone) -> None:
    """Print one answer as text or Markdown."""
    if form == MARKDOWN:
        sys.stdout.write(markdown(answer, zone))
    else:
        show(answer.sentence, *(one for part in answer.parts for one in ("", *_drawn(part, zone))))


def _drawn(part: str | Table | Chart, zone: Zone) -> Sequence[str | Table]:
    """Return a part for a terminal: pictures as lines."""
    if isinstance(part, (str, Table)):
        return (part,)
    return chart.lines(part, terminal.width(), chart.BLOCKS if terminal.shows_blocks() else chart.ASCII, zone)
