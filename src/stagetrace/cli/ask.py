"""Run the query of a verb on the store that the command line names, and print the answer."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from stagetrace.cli.arguments.options import selection, store_url
from stagetrace.cli.output.formats import print_answer
from stagetrace.cli.output.terminal import watched
from stagetrace.store import open_store

if TYPE_CHECKING:
    from stagetrace.output.answer import Answer
    from stagetrace.output.times import Moment
    from stagetrace.store.base import Reader, Selection

    Question: TypeAlias = Callable[[Reader, Selection, argparse.Namespace], Answer]


def ask_store(args: argparse.Namespace, answer: Question, since: Moment | None = None) -> int:
    """Run `answer` on the selected requests of the store, print the result, and return the exit code.

    `since`: the default of `--since`, where it is not an hour.
    """
    url = store_url(args)
    return ask(args, answer, url, selection(args, url, since=since))


def ask(args: argparse.Namespace, answer: Question, url: str, wanted: Selection) -> int:
    """Run `answer` on requests of the store at `url`, print the result, and return the exit code."""
    with open_store(url) as reader, watched(reader):
        return print_answer(args, answer(reader, wanted, args))
