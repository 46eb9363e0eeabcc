"""Alerts as `stagetrace up` evaluates them: which fire, their life, their texts, the messages that are due. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias
from urllib.parse import quote_plus

from stagetrace.policy.objective import SERVICE_KEY
from stagetrace.rules import burn, promql
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.prometheus import SILENT_S, alert_rules

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from stagetrace.policy.objective import Objective
    from stagetrace.policy.policy import Policy

# --- The life of alerts: a pure function of what looks found, and of the time that passed between them.
#
# No time of day decides anything: how long a condition has held is a sum of the times between looks, so a clock that is
# set changes nothing.

PENDING: Final = "pending"  # its condition holds, and not for long enough yet
FIRING: Final = "firing"
RESOLVED: Final = "resolved"  # it was firing, and its condition no longer holds

Labels: TypeAlias = "tuple[tuple[str, str], ...]"  # sorted by name: what distinguishes an alert from others


class Seen(NamedTuple):
    """What one look found of an alert; `holds` is None where that is unknown.

    `rule` is the rule that it follows from, which has one alert for each set of labels.
    """

    rule: str
    labels: Labels
    holds: bool | None
    for_s: float = 0  # how long the condition has to hold
    annotations: Labels = ()
    keep_s: float = 0  # how long it must not hold until a firing alert is resolved


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that is active, or was. `is_known`: whether the last look could tell if its condition holds."""

    rule: str
    labels: Labels
    annotations: Labels
    state: str
    held_s: float  # how long its condition has held, by the looks that could tell
    started_unix_nano: int  # when it began to fire; before, when its condition began to hold. No two times are the same
    ended_unix_nano: int = 0  # where it is resolved
    is_known: bool = True
    quiet_s: float | None = None  # how long the condition of a firing one has not held; None: it holds


def advance(
    alerts: Mapping[Labels, Alert], seen: Sequence[Seen], unknown: Collection[str], elapsed_s: float, now_unix_nano: int
) -> dict[Labels, Alert]:
    """Return the alerts after a look, which came `elapsed_s` after the one before.

    - An alert whose condition holds is pending, and fires once that has held for `for_s`. What is unknown neither adds
      to that time nor ends it.
    - A firing one is resolved once its condition has not held for `keep_s`, or one at the edge of its threshold would
      come and go. Unknown leaves it firing, and does not add to that time.
    - An alert of which a look reports nothing is unknown if its rule is one of `unknown`, else its condition does not
      hold: no request of its windows is left, or the policy no longer has its rule.
    """
    of_labels = {
        labels: Seen(one.rule, labels, None if one.rule in unknown else False, annotations=one.annotations)
        for labels, one in alerts.items()
    }
    of_labels.update({one.labels: one for one in seen})
    after = (_after(alerts.get(labels), one, elapsed_s, now_unix_nano) for labels, one in of_labels.items())
    return {one.labels: one for one in after if one is not None}


def _after(alert: Alert | None, seen: Seen, elapsed_s: float, now: int) -> Alert | None:
    """Return an alert after a look at it; None where it is inactive, and was."""
    if seen.holds:
        return _holding(alert, seen, elapsed_s, now)
    if alert is None or alert.state == RESOLVED:
        return alert
    if seen.holds is None:
        return replace(alert, rule=seen.rule, is_known=False)
    if alert.state == PENDING:
        return None
    quiet_s = 0.0 if alert.quiet_s is None else alert.quiet_s + elapsed_s
    if quiet_s < seen.keep_s:
        return replace(alert, rule=seen.rule, is_known=True, quiet_s=quiet_s)
    annotations = seen.annotations or alert.annotations
    return replace(
        alert, state=RESOLVED, annotations=annotations, ended_unix_nano=max(now, alert.started_unix_nano), is_known=True
    )


def _holding(alert: Alert | None, seen: Seen, elapsed_s: float, now: int) -> Alert:
    if alert is None or alert.state == RESOLVED:
        state, held_s = FIRING if seen.for_s <= 0 else PENDING, 0.0
        started = now if alert is None or now != alert.started_unix_nano else now + 1
    else:
        held_s = alert.held_s + elapsed_s
        state = FIRING if alert.state == FIRING or held_s >= seen.for_s else PENDING
        started = now if state != alert.state else alert.started_unix_nano
    return Alert(seen.rule, seen.labels, seen.annotations, state, held_s, started)


# --- Which messages a receiver of alerts has to get: a pure comparison of the alerts with what it was told before.
#
# A message that cannot be sent is not queued: the next comparison finds what has to be sent by then. So each change is
# sent once, however often the sending fails, and a receiver that was away gets the state as it is, not its history.


class Message(NamedTuple):
    """That an alert is firing, or resolved; `ended_unix_nano` is 0 while it fires."""

    labels: Labels
    annotations: Labels
    started_unix_nano: int
    ended_unix_nano: int = 0
    is_repeated: bool = False  # its receiver knows already

    @property
    def status(self) -> str:
        """Return FIRING or RESOLVED."""
        return RESOLVED if self.ended_unix_nano else FIRING


@dataclass(frozen=True, slots=True)
class Told:
    """That a receiver knows of a firing alert, and how long ago it was told last."""

    labels: Labels
    annotations: Labels
    started_unix_nano: int
    since_s: float = 0


def due(
    alerts: Mapping[Labels, Alert],
    told: Mapping[Labels, Told],
    repeat_s: float,
    now_unix_nano: int,
    silent: Collection[Labels] = (),
) -> list[Message]:
    """Return what the receiver has to be told now.

    That is: what fires and it does not know, or was told `repeat_s` ago, unless it is `silent`; and of what it knows,
    that it fires no longer.
    """
    found = []
    for labels in dict.fromkeys((*told, *alerts)):
        alert, known = alerts.get(labels), told.get(labels)
        if alert is not None and alert.state == FIRING:
            is_known = known is not None and known.started_unix_nano == alert.started_unix_nano
            if labels not in silent and (known is None or not is_known or known.since_s >= repeat_s):
                found.append(Message(labels, alert.annotations, alert.started_unix_nano, is_repeated=is_known))
        elif known is not None:
            found.append(_resolved(alert, known, now_unix_nano))
    return found


def _resolved(alert: Alert | None, known: Told, now: int) -> Message:
    if alert is not None and alert.state == RESOLVED and alert.started_unix_nano == known.started_unix_nano:
        return Message(known.labels, alert.annotations, known.started_unix_nano, alert.ended_unix_nano)
    return Message(known.labels, known.annotations, known.started_unix_nano, max(now, known.started_unix_nano))


def delivered(told: Mapping[Labels, Told], messages: Sequence[Message]) -> dict[Labels, Told]:
    """Return what the receiver knows after it has taken these messages."""
    found = dict(told)
    for one in messages:
        if one.status == FIRING:
            found[one.labels] = Told(one.labels, one.annotations, one.started_unix_nano)
        else:
            found.pop(one.labels, None)
    return found


def aged(told: Mapping[Labels, Told], elapsed_s: float) -> dict[Labels, Told]:
    """Return what a receiver was told, `elapsed_s` later."""
    return {labels: replace(one, since_s=one.since_s + elapsed_s) for labels, one in told.items()}


def untold(before: Mapping[Labels, Alert], after: Mapping[Labels, Alert], told: Mapping[Labels, Told]) -> int:
    """Return how many alerts ended between two looks before the receiver had been told that they fire."""
    return sum(
        alert.state == FIRING
        and _firing_since(after.get(labels)) != alert.started_unix_nano
        and (labels not in told or told[labels].started_unix_nano != alert.started_unix_nano)
        for labels, alert in before.items()
    )


def _firing_since(alert: Alert | None) -> int | None:
    return None if alert is None or alert.state != FIRING else alert.started_unix_nano


# --- The labels and annotations of a rule with the values of one alert, as Prometheus expands the templates in them.
#
# It knows the templates that `prometheus` writes, and no others.

_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_TEMPLATE: Final = re.compile(
    r"\{\{ with \$labels\.(?P<tested>\w+) \}\}(?P<body>.*?)\{\{ end \}\}"
    r"|\{\{ \$labels\.(?P<label>\w+) \}\}"
    rf"|\{{\{{ reReplaceAll (?P<pattern>{_STRING}) (?P<by>{_STRING}) \$labels\.(?P<replaced>\w+) \| urlquery \}}\}}"
    r"|(?P<value>\{\{ \$value \| humanizePercentage \}\})"
    r'|(?P<literal>\{\{ "\{\{" \}\})',
    re.DOTALL,
)


def expanded(template: str, labels: Mapping[str, str], value: float) -> str:
    """Return the text that Prometheus makes of a template, for an alert with these labels and this value."""

    def put(match: re.Match[str]) -> str:
        if match["label"]:
            return labels.get(match["label"], "")
        if match["tested"]:
            found = labels.get(match["tested"], "")
            return expanded(match["body"], labels, value).replace("{{ . }}", found) if found else ""
        if match["replaced"]:
            pattern, by = (json.loads(match[name]) for name in ("pattern", "by"))
            return quote_plus(re.sub(pattern, by, labels.get(match["replaced"], "")))
        return "{{" if match["literal"] else f"{100 * value:.4g}%"

    return _TEMPLATE.sub(put, template)


# --- What the counts of one moment say of each alert of a policy: the rules that Prometheus gets, evaluated here.

_NAME: Final = "alertname"
_JOB, _OBJECTIVE, _SEGMENT = "job", "sla_objective", "sla_segment"


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


def watched(policy: Policy, page: str = "") -> list[Watched]:
    """Return all rules of a policy, whose alerts link to the `page`. Raise RulesError where one could never fire."""
    found = []
    for objective in burn.judged(policy):
        no_data_s = policy.alerts_of(objective).no_data_s
        alerts = burn.alerts(objective, policy.alerts_of(objective))
        levels = promql.levels(objective)
        kinds: list[tuple[burn.Alert | None, bool]] = [(one, at is promql.SEGMENTS) for one in alerts for at in levels]
        kinds += [(None, False)] if no_data_s else []
        rules = alert_rules(objective, alerts, policy, RulesOptions(page=page))
        for (alert, is_segmented), rule in zip(kinds, rules, strict=True):
            # All that its labels follow from: after a change of the policy the alerts of the rule before it end.
            name = json.dumps([objective.name, is_segmented, rule["alert"], rule["labels"]])
            found.append(Watched(name, objective, alert, is_segmented, rule, no_data_s))
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
