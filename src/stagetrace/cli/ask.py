"""Run the query of a verb: on the store that the command line names, to print the answer, or for another form of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

from stagetrace.cli.arguments.options import selection, store_url
from stagetrace.cli.base import UsageError
from stagetrace.cli.output.formats import print_answer
from stagetrace.cli.output.terminal import watched
from stagetrace.cli.registry import load
from stagetrace.output.times import Moment, Zone
from stagetrace.store import open_store

if TYPE_CHECKING:
    from stagetrace.output.answer import Answer
    from stagetrace.page.base import Option
    from stagetrace.sla.policy import Policy
    from stagetrace.store.base import Reader, Selection

    Question: TypeAlias = Callable[[Reader, Selection, argparse.Namespace], Answer]

# Options that all verbs with an answer share.
_SHARED: Final = (
    "store",
    "service",
    "route",
    "model",
    "segment",
    "cause",
    "code",
    "since",
    "until",
    "tz",
    "limit",
    "json",
    "policy",
)


class _Parser(argparse.ArgumentParser):
    """Parses the options of one verb, none of which must be given."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{self.prog}: {message}\ntry: stagetrace {self.prog} --help")


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


def answer_of(
    store: str,
    verb: str,
    reader: Reader,
    wanted: Selection,
    options: Sequence[str],
    zone: Zone,
    policy: Callable[[], Policy | None] = lambda: None,
) -> Answer:
    """Return the answer of a verb to a selection in a store; `options` as on a command line. Raise StagetraceError.

    `policy`: returns the objectives that are evaluated where this is asked.

    A selection from where the verb begins without `--since` (its `SINCE`) is one without it.
    """
    module: Any = load(verb)
    start = Moment(wanted.since_ns, ago=False)
    since = None if start == getattr(module, "SINCE", None) else start
    until = None if wanted.until_ns > time.time_ns() else Moment(wanted.until_ns, ago=False)  # no end is meant
    shared = {**vars(wanted), "segment": list(wanted.segments.items()), "since": since, "until": until}
    own = arguments_of(verb, module, options, {**shared, "tz": zone, "store": store, "policy": policy()})
    answer: Answer = module.answer(reader, wanted, own)
    return answer


def options_of(verb: str) -> list[Option]:
    """Return the options of a verb, as its help has them."""
    from stagetrace.page.base import Option

    parser = _Parser(prog=verb, add_help=False)
    load(verb).configure(parser)
    return [
        Option(
            action.option_strings[-1],
            None if action.nargs == 0 else str(action.metavar or action.dest.upper()),
            (action.help or "") % {"default": action.default, "prog": verb},
            repeats=isinstance(action, argparse._AppendAction),  # noqa: SLF001 -- argparse names it nowhere else
        )
        for action in parser._actions  # noqa: SLF001 -- likewise
        if action.option_strings
    ]


def arguments_of(verb: str, module: Any, given: Sequence[str], shared: Mapping[str, Any]) -> argparse.Namespace:
    """Return a verb's options, as given or at their defaults, and those that all verbs share as `shared` has them."""
    parser = _Parser(prog=verb, add_help=False, allow_abbrev=False)
    module.configure(parser)
    for action in parser._actions:  # noqa: SLF001 -- argparse gives defaults only where nothing is missing
        action.required = False
    own = parser.parse_args(given)
    for name in _SHARED:
        if hasattr(own, name) and name in shared:
            setattr(own, name, shared[name])
    return own
