"""The contract of a verb: one module of this folder with these four names, and one line in `registry.VERBS`."""

from __future__ import annotations

import argparse
from typing import Final, Protocol

from stagetrace.errors import StagetraceError

# Exit codes of every verb.
ANSWERED: Final = 0
BAD: Final = 1  # answered, and the answer is bad: a breach, with --fail
NO_ANSWER: Final = 2  # wrong usage, or no answer


class UsageError(StagetraceError):
    """The options of a command are wrong; the message names the remedy."""


class Verb(Protocol):
    """A module that is one command. It is imported only when its command is given, so it may import freely."""

    DESCRIPTION: str
    """Description of the command, for its help: one to three sentences."""

    EXAMPLE: str
    """One command line, which ends the help."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add options and arguments."""
        ...

    def run(self, args: argparse.Namespace) -> int:
        """Run it and return the exit code: data to stdout, messages to stderr. A StagetraceError means exit code 2.

        A verb that answers a question on a selection has `answer(reader, wanted, args) -> Answer` in place of this, and
        `SINCE` where its default of --since is not an hour.
        """
        ...
