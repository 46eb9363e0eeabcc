"""The life of alerts: a pure function of what looks found, and of the time that passed between them.

No time of day decides anything: how long a condition has held is a sum of the times between looks, so a clock that is
set changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

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
    of_labels = {labels: _unreported(alert, unknown) for labels, alert in alerts.items()}
    of_labels.update({one.labels: one for one in seen})
    after = (_after(alerts.get(labels), one, elapsed_s, now_unix_nano) for labels, one in of_labels.items())
    return {one.labels: one for one in after if one is not None}


def _unreported(alert: Alert, unknown: Collection[str]) -> Seen:
    return Seen(alert.rule, alert.labels, None if alert.rule in unknown else False, annotations=alert.annotations)


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
