"""The answers: all of them as cards, and one of them whole, with the options that a URL may give."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.errors import StagetraceError, StoreError
from stagetrace.output.answer import Answer, as_json
from stagetrace.output.table import Table
from stagetrace.page.base import SHARED, Asked, BadRequest, File, Part, View
from stagetrace.page.queries import APART, TookTooLong

if TYPE_CHECKING:
    from stagetrace.page.base import Option, Site
    from stagetrace.store.base import Reader

# --- Which options of a verb a URL of the page may give. A URL never makes the server read or write a file, or connect.
#
# What is not listed here is refused, so that a new option of a verb is not on the page before somebody has looked at
# it.

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
    "what-if": (
        *("--workers", "--threads", "--batch-size", "--batch-wait", "--rate", "--stage", "--without", "--move"),
        *("--limit-concurrency", "--find", "--cpus"),
    ),
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
    chosen = [f"--{name}={value}" for name, value in asked.selected(site.since) if f"--{name}" in taken]
    return shlex.join(["stagetrace", verb, f"--store={site.store}", *chosen, *words])


def _check(flag: str, value: str) -> None:
    """Raise BadRequest for a side of a comparison that names another store, and for what is as long as no option is."""
    if len(value) > _LONGEST:
        raise BadRequest(f"{flag} is longer than {_LONGEST} characters\nshorten it, or ask on a command line")
    key = value.partition("=")[0].strip()
    if flag in _SIDES and key in _ELSEWHERE:
        raise BadRequest(f"{flag} {key}= opens another store, which a URL may not\nask on a command line")


# --- The answers: all of them as cards, and one of them whole, with its options.


WHAT_IF: Final = "what-if"


class Question(NamedTuple):
    """What a verb answers, and the reason for which one wants to know (docs/answers/README.md has the same)."""

    reason: str
    question: str


QUESTIONS: Final[Mapping[str, Question]] = {
    "slo": Question("quality of service", "Is each objective met, and how long does its error budget last?"),
    "report": Question("compliance", "What was met in a period, what is excluded, which incidents were there?"),
    "bottleneck": Question(
        "performance", "Where does the time go, at the median and in the tail, and what would a faster stage bring?"
    ),
    "causes": Question(
        "troubleshooting", "What distinguishes breaches from good requests, and which service is to blame?"
    ),
    "segments": Question("user segments", "Which tenants, tiers or regions fare worse, and what would help them?"),
    "compare": Question("model upgrades", "Is the new version slower, and how sure is that?"),
    "drift": Question("proactive detection", "Has a latency changed, since when, and by how much?"),
    "capacity": Question("scaling", "How much load does the service take, what is left, and when is it time to scale?"),
    "cost": Question("cost", "What does a request cost, and what of the bill was idle or went into breaches?"),
    "bench": Question("benchmarks", "Up to which rate does a service meet its objective, and what breaks it?"),
    WHAT_IF: Question("planning", "What would more workers, other batches, a faster stage or more load do?"),
}


class Slider(NamedTuple):
    """An option of `what-if` that is moved: its values, and the one at which nothing is changed."""

    label: str
    flag: str
    text: str  # the option's value, with `{}` for the number
    least: float
    most: float
    step: float
    now: float


SLIDERS: Final = (
    Slider("workers", "workers", "{}", 0, 16, 1, 0),
    Slider("threads of a pool", "threads", "{}", 0, 100, 4, 0),
    Slider("requests in a batch", "batch-size", "{}", 0, 64, 4, 0),
    Slider("a batch waits", "batch-wait", "{}ms", -1, 50, 1, -1),
    Slider("load", "rate", "x{}", 0.5, 3, 0.1, 1),
    Slider("preprocess", "stage", "preprocess {}%", -90, 100, 10, 0),
    Slider("inference", "stage", "inference {}%", -90, 100, 10, 0),
    Slider("requests in a worker at most", "limit-concurrency", "{}", 0, 200, 5, 0),
)


def _verb(asked: Asked) -> str:
    verb = asked.path["verb"]
    if verb not in QUESTIONS:
        raise BadRequest(f"there is no answer {verb[:40]!r}\nthere are {', '.join(QUESTIONS)}")
    return verb


def _ask(asked: Asked, reader: Reader, site: Site) -> Answer:
    """Return the answer that a URL asks for. Raise BadRequest for options that do not fit."""
    verb = _verb(asked)
    words = given(site, verb, asked)
    selected, ignored = asked.selection, _ignored(site, verb, asked)
    causes, codes = (() if "cause" in ignored else selected.causes), (() if "code" in ignored else selected.codes)
    judged_by = None if "judged-by" in ignored else selected.judged_by
    wanted = replace(selected, causes=causes, codes=codes, judged_by=judged_by)
    try:
        return site.ask(verb, reader, wanted, words, asked.zone)
    except (StoreError, TookTooLong):
        raise
    except StagetraceError as error:  # of the options
        raise BadRequest(str(error)) from None


def _ignored(site: Site, verb: str, asked: Asked) -> list[str]:
    """Return the parameters given that select breaches, or an objective's requests, and are no options of the verb."""
    taken = {one.flag for one in site.options(verb)}
    return [name for name in ("judged-by", "cause", "code") if name in asked.params and f"--{name}" not in taken]


def card(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the sentence of an answer and its first picture."""
    answer = _ask(asked, reader, site)
    pictures = [part for part in answer.parts if not isinstance(part, (str, Table))]
    return Part("answers_card.html", {"answer": answer, "picture": next(iter(pictures), None)}, answer.reason)


def whole(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return an answer with all of its tables and pictures."""
    answer, verb = _ask(asked, reader, site), _verb(asked)
    # The sliders ask again without a new page.
    shown = command(site, verb, asked, given(site, verb, asked)) if verb == WHAT_IF else None
    return Part("answer_whole.html", {"answer": answer, "command": shown}, answer.reason)


def as_file(asked: Asked, reader: Reader, site: Site) -> File:
    """Return what the command prints with `--json`."""
    values = as_json(_ask(asked, reader, site))
    text = json.dumps(values, allow_nan=False, default=lambda value: value.item())  # a number of NumPy's
    return File(text.encode(), "application/json", None)


# The cards are asked for in this order, the quickest answers first, and so many at a time.
_ORDER: Final = (
    *("bench", "slo", "compare", "report", "capacity", "bottleneck", "cost", "what-if", "segments", "causes", "drift"),
)


def _list(_asked: Asked, _site: Site) -> Mapping[str, Any]:
    return {"questions": QUESTIONS, "order": {verb: place for place, verb in enumerate(_ORDER)}, "at_once": APART}


def _one(asked: Asked, site: Site) -> Mapping[str, Any]:
    verb = _verb(asked)
    words = given(site, verb, asked)
    return {
        "verb": verb,
        "question": QUESTIONS[verb],
        "questions": QUESTIONS,
        "options": options(site, verb),
        "sliders": SLIDERS if verb == WHAT_IF else (),
        "shared": SHARED,
        "command": command(site, verb, asked, words),
        "ignored": _ignored(site, verb, asked),
    }


VIEW: Final = View("answers", "Answers", "/answers", "answers.html", shell=_list)
ONE: Final = View(
    "answer",
    "Answer",
    "/answers/{verb}",
    "answer.html",
    {"card": card, "whole": whole, "json": as_file},
    shell=_one,
    in_menu=False,
    keeps=NAMES,
    apart=("card", "whole", "json"),
    as_they_were=("card",),
)
