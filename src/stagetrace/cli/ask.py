"""Run the query of a verb on the store that the command line names, and print the answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.cli.arguments.options import selection, store_url
from stagetrace.cli.output.formats import print_answer
from stagetrace.cli.output.terminal import watched
from stagetrace.store import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from stagetrace.cli.arguments.times import Moment
    from stagetrace.cli.output.answer import Answer
    from stagetrace.store.base import Reader, Selection


def ask_store(
    args: argparse.Namespace,
    answer: Callable[[Reader, Selection, argparse.Namespace], Answer],
    since: Moment | None = None,
) -> tuple[int, Answer]:
    """Run `answer` on the selected requests of the store, print the result, and return the exit code and the answer.

    `since`: the default of `--since`, where it is not an hour.
    """
    url = store_url(args)
    wanted = selection(args, url, since=since)
    with open_store(url) as reader, watched(reader):
        made = answer(reader, wanted, args)
    return print_answer(args, made), made
