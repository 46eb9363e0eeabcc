"""Which options of a verb a URL of the page may give. A URL never makes the server read or write a file, or connect.

What is not listed here is refused, so that a new option of a verb is not on the page before somebody has looked at it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from stagetrace.page.asked import REPEATED, SHARED, Asked, BadRequest

if TYPE_CHECKING:
    from stagetrace.page.base import Option, Site

ALLOWED: Final[Mapping[str, Sequence[str]]] = {
    "slo": ("--by",),
    "report": ("--exclude", "--credits", "--incident-burn", "--incident-gap"),
    "bottleneck": ("--by",),
    "causes": ("--against",),
    "segments": ("--by", "--top"),
    "compare": ("--a", "--b", "--quantiles", "--stratify", "--gate", "--resolution", "--once"),
    "drift": ("--least",),
    "capacity": ("--rate", "--objective"),
    "cost": ("--by", "--price"),
    "bench": (),
}
NAMES: Final = tuple(dict.fromkeys(flag.removeprefix("--") for flags in ALLOWED.values() for flag in flags))
_SIDES: Final = ("--a", "--b")
_LONGEST: Final = 300
_ELSEWHERE: Final = ("store", "file")  # keys of a side that name another store


def options(site: Site, verb: str) -> list[Option]:
    """Return the options of a verb that a URL may give, as the verb describes them."""
    described = {one.flag: one for one in site.options(verb)}
    return [described[flag] for flag in ALLOWED[verb] if flag in described]


def given(site: Site, verb: str, asked: Asked) -> list[str]:
    """Return the options that a URL gives, as on a command line. Raise BadRequest for any other parameter."""
    known = {one.flag.removeprefix("--"): one for one in options(site, verb)}
    found: list[str] = []
    for name, values in asked.params.items():
        if name in SHARED:
            continue
        if name not in known:
            names = ", ".join(known) or "none"
            raise BadRequest(f"{name[:40]!r} is no option of {verb} on this page; there are: {names}\nchange the URL")
        option = known[name]
        for value in values if option.repeats else values[-1:]:
            _check(option.flag, value)
            # One word, so that no value is taken for another option.
            found.append(option.flag if option.metavar is None else f"{option.flag}={value}")
    return found


def command(site: Site, verb: str, asked: Asked, words: Sequence[str]) -> str:
    """Return the command line that gives the same answer."""
    taken = {one.flag for one in site.options(verb)}
    selected = {"since": (site.since,), **asked.params}
    line = ["stagetrace", verb, f"--store={site.store}"]
    line += [
        f"--{name}={value}"
        for name in SHARED
        if f"--{name}" in taken
        for value in _values(name, selected.get(name, ()))
    ]
    return shlex.join([*line, *words])


def _values(name: str, values: Sequence[str]) -> Sequence[str]:
    return values if name in REPEATED else values[-1:]


def _check(flag: str, value: str) -> None:
    """Raise BadRequest for a side of a comparison that names another store, and for what is as long as no option is."""
    if len(value) > _LONGEST:
        raise BadRequest(f"{flag} is longer than {_LONGEST} characters\nshorten it, or ask on a command line")
    key = value.partition("=")[0].strip()
    if flag in _SIDES and key in _ELSEWHERE:
        raise BadRequest(f"{flag} {key}= opens another store, which a URL may not\nask on a command line")
