"""Which messages a receiver of alerts has to get: a pure comparison of the alerts with what it was told before.

A message that cannot be sent is not queued: the next comparison finds what has to be sent by then. So each change is
sent once, however often the sending fails, and a receiver that was away gets the state as it is, not its history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from stagetrace.rules.alert_state import FIRING, RESOLVED, Alert, Labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
    alerts: Mapping[Labels, Alert], told: Mapping[Labels, Told], repeat_s: float, now_unix_nano: int
) -> list[Message]:
    """Return what the receiver has to be told now.

    That is: what fires and it does not know, or was told `repeat_s` ago; and of what it knows, that it fires no longer.
    """
    found = []
    for labels in dict.fromkeys((*told, *alerts)):
        alert, known = alerts.get(labels), told.get(labels)
        if alert is not None and alert.state == FIRING:
            is_known = known is not None and known.started_unix_nano == alert.started_unix_nano
            if known is None or not is_known or known.since_s >= repeat_s:
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
