"""`stagetrace sla replay`: what a policy would have said of stored requests."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from stagetrace.cli.arguments.options import add_selection, is_file, store_url
from stagetrace.cli.arguments.policy import add_policy, policy_of
from stagetrace.cli.output.formats import add_format
from stagetrace.output import objectives
from stagetrace.output.answer import Answer
from stagetrace.output.times import window

if TYPE_CHECKING:
    import argparse

    from stagetrace.store.base import Reader, Selection

TITLE: Final = "A policy over stored requests"
DESCRIPTION: Final = (
    "Show what each objective of a policy would have decided on stored requests: attainment with its 95 % interval,\n"
    "budget, breaches a day; and which verdicts differ from the recorded ones. A verdict that depends on what is not\n"
    "stored of a request (headers, baggage) is unknown. Of sampled requests, those that only this policy finds late\n"
    "were kept by chance; the interval allows for that. Exits with 1 if an objective is missed, with 2 if no request\n"
    "is judged."
)
EXAMPLE: Final = "stagetrace sla replay --policy sla.yaml --since 7d --service api"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_policy(parser)
    add_selection(parser, cause=False)
    add_format(parser)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return what the policy says of the selected requests."""
    from stagetrace.analysis import policy_replay
    from stagetrace.cli.sla import replay_view

    policy = policy_of(args)
    is_recording = args.until is None and is_file(store_url(args))
    until = None if is_recording else min(wanted.until_ns, time.time_ns())
    with reader.relations(wanted) as relations:
        found = policy_replay.ask(relations, policy, wanted.since_ns, until)
        reasons = [] if relations.reason is None else [relations.reason]
    if found.left >= 1:
        reasons.append(f"{objectives.requests(found.left)} beyond the largest groups are not replayed: select fewer")
    is_told = any(one.judged for one in found.outcomes)
    nothing = f"No requests{window(wanted.since_ns, wanted.until_ns, args.tz)}."
    return Answer(
        TITLE,
        replay_view.sentence(found) if found.requests else nothing,
        replay_view.keys(found),
        list(replay_view.parts(found)) if found.requests else (),
        is_bad=any(one.missed for one in found.outcomes),
        is_undecided=not is_told,
        reason="; ".join([*reasons, *policy.problems]) or None,
    )
