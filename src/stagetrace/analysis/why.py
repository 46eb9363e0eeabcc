"""Why requests were late: the largest groups of breaches, who is hit by each, since when; and one request among others.

A group is compared with all other requests of its own service and route: what the group's requests have in common and
those have not is who is hit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from stagetrace.analysis import breach_details, cases, onset
from stagetrace.analysis.base import RESPONSE, Source, rank_of
from stagetrace.analysis.breach_details import Group
from stagetrace.analysis.cases import Cases
from stagetrace.analysis.causes import LEAST, Contrast, search
from stagetrace.analysis.onset import Release, Since

_MOST: Final = 5_000  # requests of each kind that are compared
_USUAL: Final = (0.5, 0.95)


@dataclass(frozen=True)
class Explained:
    """A group of breaches, what distinguishes it from the other requests of its route, and since when it is."""

    group: Group
    hit: Contrast | None
    since: Since | None  # None: since before the window


class Usual(NamedTuple):
    """How long good requests of one route take in a stage, or in all (None), ms."""

    stage: str | None
    median_ms: float
    p95_ms: float


class One(NamedTuple):
    """One request among those of its route: what good ones take, and the breaches that are like it."""

    usual: tuple[Usual, ...]
    alike: Explained | None
    breaches: int  # of the route, alike or not


def ask(source: Source, most: int) -> tuple[list[Explained], int]:
    """Return the largest groups of breaches, at most `most`, and how many there are."""
    found = breach_details.ask(source, most)
    if not found.groups:
        return [], 0
    made = cases.ask(source, _MOST)
    released = onset.ask(source, made.stored, made)
    return [_explained(group, made, released) for group in found.groups], found.different


def ask_one(source: Source, kind: tuple[str | None, ...] | None) -> One:
    """Return what good requests take, and the breaches of one stage, cause and line of code: None, for no breach."""
    made = cases.ask(source, _MOST)
    groups = breach_details.ask(source).groups if kind is not None else ()
    group = next((one for one in groups if (one.stage, one.cause, one.code) == kind), None)
    alike = None if group is None else _explained(group, made, onset.ask(source, made.stored, made))
    return One(tuple(_usual(made)), alike, sum(one.breaches for one in groups))


def _usual(made: Cases) -> Iterator[Usual]:
    took: dict[str | None, list[float]] = {}
    for row, is_bad in zip(made.rows, made.breached.tolist(), strict=True):
        if not is_bad:
            took.setdefault(None, []).append(row["duration_ms"])
            for stage, ms in zip(row["stage_names"], row["stage_ms"], strict=True):
                took.setdefault(stage, []).append(ms)
    for stage, each in took.items():
        if len(each) >= LEAST:
            yield Usual(stage, *np.quantile(each, _USUAL).tolist())


def _explained(group: Group, made: Cases, released: Sequence[Release]) -> Explained:
    of_route = [place for place, of in enumerate(made.strata) if of == (group.service, group.route)]
    rows = [made.rows[place] for place in of_route]
    kind = (group.stage, group.cause, group.code)
    labels = [
        bool(is_bad) and (row["stage"], row["cause"], row["code"]) == kind
        for row, is_bad in zip(rows, made.breached[of_route], strict=True)
    ]
    if not any(labels):  # none of it is in the sample
        return Explained(group, None, None)
    attributes = {key: [column[place] for place in of_route] for key, column in made.attributes.items()}
    found = search(attributes, labels, made.weights[of_route].tolist()).contrasts
    # What followed from a request, or happened to serve it, hit nobody.
    hit = next((one for one in found if rank_of(one.values)[0] < RESPONSE), None)
    requests = np.arange(len(rows)) if hit is None else hit.requests
    return Explained(group, hit, onset.since_of(requests, rows, labels, released))
