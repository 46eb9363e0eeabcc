"""Keywords, of Python or of an agent, as the options of a command, which reads, checks and explains them."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple, NoReturn

from stagetrace.cli.arguments import selection
from stagetrace.cli.ask import judged
from stagetrace.cli.registry import Option, add_options, load
from stagetrace.errors import StagetraceError
from stagetrace.output.answer import Answer
from stagetrace.output.units import Zone
from stagetrace.store.base import Reader

# Where to read is the store's, and how to print is the caller's.
_NOT_HERE: Final = ("store", "json", "format", "long", "csv")
_FLAG: Final = re.compile(r"^argument (?:--?)?([\w-]+)[^:]*: ")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        wrong = _FLAG.sub(lambda found: f"{found[1].replace('-', '_')}: ", message)
        raise StagetraceError(f"{self.prog}: {wrong}")


def parsed(
    asked: str, options: Sequence[Option], given: Mapping[str, object], more: Sequence[str] = ()
) -> argparse.Namespace:
    """Return the values of options, by their names, as a command line has them.

    `given`: keyword -> value; None, False and an empty list leave an option out, a list or a mapping repeats it, a
    mapping as `KEY=VALUE`. `more`: keywords that are no options, for the error. Raise StagetraceError for a keyword
    that is no option, and for a wrong value.
    """
    keywords = {keyword(one): one for one in options}
    meant = {name: one for name, one in keywords.items() if name not in _NOT_HERE}
    for name in given:
        if name not in meant:
            raise StagetraceError(f"{asked} takes no {name!r}\nthere are {', '.join(sorted({*meant, *more}))}")
    parser = _Parser(prog=asked, add_help=False, allow_abbrev=False)
    add_options(parser, [one._replace(required=False, many=one.many or "?") for one in options])
    words = [word for name, value in given.items() for word in _words(asked, name, meant[name], value)]
    last = [word for word in words if not word.startswith("--")]
    return parser.parse_args([*(word for word in words if word.startswith("--")), *(["--", *last] if last else [])])


class Asked(NamedTuple):
    """The answer of a verb, and the zone of its times."""

    answer: Answer
    zone: Zone


def answer_to(reader: Reader, url: str, verb: str, given: Mapping[str, object]) -> Asked:
    """Return the answer of a verb to keywords, of the store at `url`, as its command line has it."""
    module: Any = load(verb)
    args = parsed(verb, module.OPTIONS, given)
    vars(args).update(store=url, json=False)
    wanted = selection(args, url, since=getattr(module, "SINCE", None))
    return Asked(module.answer(reader, judged(reader, wanted, args), args), args.tz)


def command(verb: str, options: Sequence[Option], given: Mapping[str, object], url: str) -> str:
    """Return the command line that asks the same."""
    keywords = {keyword(one): one for one in options}
    words = [word for name, value in given.items() for word in _words(verb, name, keywords[name], value)]
    pairs = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return shlex.join(["stagetrace", *verb.split(), *pairs, "--store", url])


def keyword(option: Option) -> str:
    """Return how a keyword names an option: `judged_by`."""
    name = option.flags[-1] if option.flags else option.names
    return name.lstrip("-").lower().replace("-", "_")


def _words(asked: str, name: str, option: Option, value: object) -> list[str]:
    """Return what stands on a command line for one keyword."""
    if value is None or value is False:
        return []
    if not option.takes_value:
        if value is not True:
            raise StagetraceError(f"{asked}: {name} is True or False, and {value!r} is neither")
        return [option.flags[-1]]
    values = _values(value)
    if len(values) > 1 and not option.repeats:
        raise StagetraceError(f"{asked}: {name} takes one value, and these are {len(values)}")
    return [f"{option.flags[-1]}={one}" if option.flags else one for one in values]


def _values(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key}={one}" for key, one in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_text(one) for one in value]
    return [_text(value)]


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
