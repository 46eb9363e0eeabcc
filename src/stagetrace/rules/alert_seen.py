"""What the counts of one moment say of each alert of a policy: the rules that Prometheus gets, evaluated here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from stagetrace.rules import burn
from stagetrace.rules.alert_state import Labels, Seen
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.expand import expanded
from stagetrace.rules.prometheus_alerts import SILENT_S, alert_rules
from stagetrace.sla.objective import SERVICE_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

_JOB, _OBJECTIVE, _SEGMENT = "job", "sla_objective", "sla_segment"
_NAME: Final = "alertname"


class Group(NamedTuple):
    """The requests of one service that one objective judged; of one segment, or of all where that is None."""

    namespace: str
    service: str
    objective: str
    segment: str | None = None

    @property
    def job(self) -> str:
        """Return the service as Prometheus has it: behind its namespace, where it has one."""
        return f"{self.namespace}/{self.service}" if self.namespace else self.service


# By the length of a window in seconds; None: of a sample of requests of which nothing can be said.
Counted: TypeAlias = "Mapping[Group, Mapping[float, burn.Counts | None]]"


class Watched(NamedTuple):
    """One rule: the condition of one alert, of an objective or of its segments."""

    rule: str  # what tells it from others
    objective: Objective
    alert: burn.Alert | None  # None: that there is no data
    is_segmented: bool
    texts: dict[str, Any]  # the rule as Prometheus gets it
    no_data_s: float = 0

    @property
    def windows(self) -> tuple[float, ...]:
        """Return in which windows requests have to be counted."""
        return (self.no_data_s / 2, SILENT_S) if self.alert is None else self.alert.windows


def watched(policy: Policy) -> list[Watched]:
    """Return all rules of a policy. Raise RulesError where one could never fire."""
    found = []
    for objective in burn.judged(policy):
        no_data_s = policy.alerts_of(objective).no_data_s
        alerts = burn.alerts(objective, policy.alerts_of(objective))
        levels = (False, True) if objective.segment_by else (False,)
        kinds: list[tuple[burn.Alert | None, bool]] = [(alert, level) for alert in alerts for level in levels]
        kinds += [(None, False)] if no_data_s else []
        rules = alert_rules(objective, alerts, policy, RulesOptions())
        for (alert, level), rule in zip(kinds, rules, strict=True):
            # All that its labels follow from: after a change of the policy the alerts of the rule before it end.
            name = json.dumps([objective.name, level, rule["alert"], rule["labels"]])
            found.append(Watched(name, objective, alert, level, rule, no_data_s))
    return found


def windows(rules: list[Watched]) -> tuple[float, ...]:
    """Return the windows of all rules, in seconds, the shortest first."""
    return tuple(sorted({window for one in rules for window in one.windows}))


def seen(rules: list[Watched], counts: Counted) -> list[Seen]:
    """Return what is to be said of each alert by the requests of its windows, which end now."""
    groups: dict[tuple[str, bool], list[Group]] = {}
    for group in counts:
        groups.setdefault((group.objective, group.segment is not None), []).append(group)
    found: list[Seen] = []
    for one in rules:
        of = [
            group
            for group in groups.get((one.objective.name, one.is_segmented), ())
            if all(about.holds(group.service) for about in one.objective.conditions if about.key == SERVICE_KEY)
        ]
        look = _no_data if one.alert is None else _burning
        found += look(one, of, counts)
    return found


def _burning(one: Watched, groups: list[Group], counts: Counted) -> Iterator[Seen]:
    alert = one.alert
    assert alert is not None  # noqa: S101
    for group in groups:
        windows = {window: counts[group].get(window, burn.Counts()) for window in alert.windows}
        known = {window: of for window, of in windows.items() if of is not None}
        if len(known) < len(windows):
            yield _seen(one, group, None, 0)
            continue
        short, long = known[alert.short_s].ratio, known[alert.long_s].ratio
        # Nothing shows that a fault is over: `burn.is_burning` leaves the alert as it is then.
        is_open = short is None and long is not None
        yield _seen(one, group, None if is_open else burn.is_burning(alert, known), long or 0, keep_s=alert.short_s)


def _no_data(one: Watched, groups: list[Group], counts: Counted) -> Iterator[Seen]:
    half = one.no_data_s / 2
    known = [group for group in groups if _has_any(counts[group].get(SILENT_S, burn.Counts()))]
    if not known:
        yield _seen(one, Group("", "", one.objective.name), holds=True, value=0, for_s=half)
    for group in known:
        is_judged = _has_any(counts[group].get(half, burn.Counts()))
        yield _seen(one, group, not is_judged, 0, half)


def _has_any(counts: burn.Counts | None) -> bool:
    """Return whether any request was judged; of how many that was the share, need not be known."""
    return counts is None or counts.judged > 0


def _seen(one: Watched, group: Group, holds: bool | None, value: float, for_s: float = 0, keep_s: float = 0) -> Seen:
    series = {_JOB: group.job, _OBJECTIVE: group.objective, _SEGMENT: group.segment or ""}
    own = {name: expanded(text, series, value) for name, text in one.texts["labels"].items()}
    labels = {**series, **own, _NAME: one.texts["alert"]}
    annotations = {name: expanded(text, series, value) for name, text in one.texts["annotations"].items()}
    return Seen(one.rule, _sorted(labels), holds, for_s, _sorted(annotations), keep_s)


def _sorted(texts: Mapping[str, str]) -> Labels:
    """Return labels by name; one without a value is none."""
    return tuple(sorted((name, text) for name, text in texts.items() if text))
