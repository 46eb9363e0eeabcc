"""The policy: objectives in order, and which of them a request is judged by. Read from one line, or from a file."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from stagetrace.policy import inline
from stagetrace.policy.alert_options import AlertOptions
from stagetrace.policy.objective import BAGGAGE
from stagetrace.system.bounded import BoundedCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from stagetrace.policy.objective import Objective

MAX_REMEMBERED = 16_384  # routes that are no templates, or made up by clients, are without end
MAX_REMEMBERED_VALUES = 1_024  # of one route
FILES = (".yaml", ".yml", ".json")
NO_ALERTS = AlertOptions()


def absent(key: str) -> str | None:  # noqa: ARG001
    """Return the value of a key for a request of which nothing is known but its method and route."""
    return None


def file_named(text: str) -> str | None:
    """Return the path that a text is in place of an inline policy: one word with an ending of FILES, or a file's."""
    text = text.strip()
    is_path = text.lower().endswith(FILES) and len(text.split()) == 1
    return text if is_path or os.path.isfile(text) else None  # noqa: PTH113 -- raises for no text


@dataclass(frozen=True, slots=True)
class Policy:
    """Objectives in order; the first that matches a request judges it, and the next ones too as long as one continues.

    `problems`: the rules that cannot be read. `source`: the file that it was read from.
    """

    objectives: tuple[Objective, ...]
    problems: tuple[str, ...] = ()
    # `objectives`, and the rules that cannot be read, as far as it is known which requests they match.
    _rules: tuple[Objective, ...] = field(default=(), repr=False, compare=False)
    _found: BoundedCache[tuple[str | None, str], _OfRoute] = field(
        default_factory=lambda: BoundedCache(MAX_REMEMBERED), init=False, repr=False, compare=False
    )
    alerts: AlertOptions = NO_ALERTS
    source: str = field(default="", compare=False)
    # The keys of all conditions and segments: what has to be known of a request beside method and route.
    keys: tuple[str, ...] = field(default=(), init=False, repr=False, compare=False)
    reads: bool = field(default=False, init=False, repr=False, compare=False)  # whether anything has to be known
    reads_baggage: bool = field(default=False, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find what has to be known of requests."""
        keys = tuple(dict.fromkeys(key for one in self.objectives for key in (*one.keys, *one.segment_by)))
        object.__setattr__(self, "keys", keys)
        object.__setattr__(self, "reads", bool(keys) or any(one.deadline for one in self.objectives))
        object.__setattr__(self, "reads_baggage", any(key.startswith(BAGGAGE) for key in keys))

    @classmethod
    def parse(cls, text: str) -> Policy:
        """Read an inline policy of which every rule can be read.

        Raises:
            PolicyError: with the first rule that cannot, what is wrong in it, and how to write it.
        """
        return cls(inline.parse(text))

    @classmethod
    def readable(cls, text: str) -> Policy:
        """Read of an inline policy what can be read.

        Raises:
            PolicyError: where no rule can, as `parse` does.
        """
        return cls(*inline.readable(text))

    @classmethod
    def read(cls, text: str, where: str) -> Policy:
        """Read the text of a policy file; `where` is the name of the file, also in messages.

        Raises:
            PolicyFileError: with all that is wrong, by line and column.
        """
        from stagetrace.policy.policy_file import document

        found = document(text, where)
        return cls(found.objectives, alerts=found.alerts, source=where)

    @classmethod
    def load(cls, text: str) -> Policy:
        """Read an inline policy, or the file that `text` names (`file_named`).

        Raises:
            PolicyError: with what is wrong, and how to write it.
        """
        path = file_named(text)
        if path is None:
            return cls.parse(text)
        from stagetrace.policy.policy_file import content, decoded

        return cls.read(decoded(content(path), path), path)

    def alerts_of(self, objective: Objective) -> AlertOptions:
        """Return the alerts of an objective: its own, or those of the policy."""
        return self.alerts if objective.alerts is None else objective.alerts

    def objective(self, method: str | None, route: str) -> Objective | None:
        """Return the first objective of a request of which no more is known; None also for one that cannot be read."""
        return next(iter(self.applying(method, route)), None)

    def applying(
        self, method: str | None, route: str, value: Callable[[str], str | None] = absent
    ) -> tuple[Objective, ...]:
        """Return the objectives that judge a request; `value` returns what it has for the key of a condition.

        Empty where none matches, or the first one that does cannot be read.
        """
        key = (method, route)
        of_route = self._found.get(key) or self._find(key)
        if not of_route.keys:
            return of_route.always
        values = tuple(map(value, of_route.keys))
        found = of_route.by_values.get(values)
        if found is None:
            held = of_route.holding(dict(zip(of_route.keys, values, strict=True)))
            found = of_route.by_values[values] = _chain(held)
        return found

    def candidates(self, method: str | None, route: str) -> Sequence[Objective]:
        """Return the objectives that may judge a request, whatever it has for the keys of their conditions."""
        key = (method, route)
        return (self._found.get(key) or self._find(key)).rules

    def _find(self, key: tuple[str | None, str]) -> _OfRoute:
        found = self._found[key] = _of_route([one for one in self._rules or self.objectives if one.matches(*key)])
        return found


class _OfRoute(NamedTuple):
    """The rules that match a method and route. `keys` of their conditions; without any, `always` is what judges."""

    rules: Sequence[Objective]
    keys: tuple[str, ...]
    always: tuple[Objective, ...]
    by_values: BoundedCache[tuple[str | None, ...], tuple[Objective, ...]]
    # Places of rules, by a condition that names one value, so that a thousand tenants cost what one does.
    by_value: Mapping[tuple[str, str | None], Sequence[int]]
    others: Sequence[int]

    def holding(self, values: Mapping[str, str | None]) -> Iterator[Objective]:
        """Yield the rules whose conditions hold, in order."""
        named = (place for pair in values.items() for place in self.by_value.get(pair, ()))
        for place in sorted((*self.others, *named)):
            rule = self.rules[place]
            if all(condition.holds(values[condition.key]) for condition in rule.conditions):
                yield rule


def _of_route(rules: list[Objective]) -> _OfRoute:
    keys = tuple(dict.fromkeys(key for one in rules for key in one.keys))
    always = () if keys else _chain(rules)
    uses = Counter(condition for rule in rules for condition in rule.conditions)
    by_value: dict[tuple[str, str | None], list[int]] = {}
    others = []
    for place, rule in enumerate(rules):
        named = [one for one in rule.conditions if "*" not in one.glob]
        if named:
            key, text = min(named, key=lambda one: uses[one])
            by_value.setdefault((key, text), []).append(place)
        else:
            others.append(place)
    return _OfRoute(rules, keys, always, BoundedCache(MAX_REMEMBERED_VALUES), by_value, others)


def _chain(rules: Iterable[Objective]) -> tuple[Objective, ...]:
    """Return the rules that judge, of those that match: up to the first that does not continue."""
    found: list[Objective] = []
    bases: set[str] = set()
    for rule in rules:
        base = rule.base or rule.name
        if base in bases:
            continue
        if rule.problem is not None:
            break
        bases.add(base)
        found.append(rule)
        if not rule.continues:
            break
    return tuple(found)
