"""The ten answers: all of them as cards, and one of them whole, with its options."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.errors import StagetraceError, StoreError
from stagetrace.output.answer import Answer, as_json
from stagetrace.output.table_layout import Table
from stagetrace.page import answer_options
from stagetrace.page.asked import SHARED, BadRequest
from stagetrace.page.base import File, Part, View
from stagetrace.page.time_limit import TookTooLong

if TYPE_CHECKING:
    from stagetrace.page.asked import Asked
    from stagetrace.page.base import Site
    from stagetrace.store.base import Reader


class Question(NamedTuple):
    """What a verb answers, and the reason for which one wants to know (docs/answers/README.md has the same)."""

    reason: str
    question: str


QUESTIONS: Final[Mapping[str, Question]] = {
    "slo": Question("quality of service", "Is each objective met, and how long does its error budget last?"),
    "report": Question("compliance", "What was met in a period, what is excluded, which incidents were there?"),
    "bottleneck": Question(
        "performance",
        "Where does the time go, at the median and in the tail, and what would a faster stage bring?",
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
}


def _verb(asked: Asked) -> str:
    verb = asked.path["verb"]
    if verb not in QUESTIONS:
        raise BadRequest(f"there is no answer {verb[:40]!r}\nthere are {', '.join(QUESTIONS)}")
    return verb


def _ask(asked: Asked, reader: Reader, site: Site) -> Answer:
    """Return the answer that a URL asks for. Raise BadRequest for options that do not fit."""
    verb = _verb(asked)
    words = answer_options.given(site, verb, asked)
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
    answer = _ask(asked, reader, site)
    return Part("answer_whole.html", {"answer": answer}, answer.reason)


def as_file(asked: Asked, reader: Reader, site: Site) -> File:
    """Return what the command prints with `--json`."""
    values = as_json(_ask(asked, reader, site))
    text = json.dumps(values, allow_nan=False, default=lambda value: value.item())  # a number of NumPy's
    return File(text.encode(), "application/json", None)


def _list(_asked: Asked, _site: Site) -> Mapping[str, Any]:
    return {"questions": QUESTIONS}


def _one(asked: Asked, site: Site) -> Mapping[str, Any]:
    verb = _verb(asked)
    words = answer_options.given(site, verb, asked)
    return {
        "verb": verb,
        "question": QUESTIONS[verb],
        "questions": QUESTIONS,
        "options": answer_options.options(site, verb),
        "shared": SHARED,
        "command": answer_options.command(site, verb, asked, words),
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
    keeps=answer_options.NAMES,
)
