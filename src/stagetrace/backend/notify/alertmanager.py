"""Posts alerts to an Alertmanager, by version 2 of its API, as often as Prometheus does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from stagetrace.backend.notify import shape
from stagetrace.backend.notify.http_post import Target

if TYPE_CHECKING:
    from stagetrace.rules.alert_messages import Message

PATH: Final = "/api/v2/alerts"
REPEAT_S: Final = 60.0
_ENDS_AFTER: Final = 4  # times the interval: what fires ends by itself if nobody says so any more, as Prometheus has it
_MOST_ALERTS: Final = 500  # of one request
_NS: Final = 10**9


class Alertmanager:
    """A receiver, as `base.Receiver` specifies. It groups, silences and repeats by its own configuration."""

    name = "alertmanager"

    def __init__(self, url: str, token: str, page: str, interval_s: float) -> None:
        """Post to the Alertmanager at a URL, with a bearer token where one is given.

        `page`: the URL of the page, to which alerts link; `interval_s`: from one look at the alerts to the next.
        """
        self._target = Target(url.rstrip("/").removesuffix(PATH) + PATH, token)
        self.shown, self.key = self._target.shown, self._target.key
        self.repeat_s = REPEAT_S
        self._lasts_ns = round(_ENDS_AFTER * max(REPEAT_S, interval_s) * _NS)
        self._page = page

    def batches(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Yield the messages, as many as one request may have."""
        for at in range(0, len(messages), _MOST_ALERTS):
            yield list(messages[at : at + _MOST_ALERTS])

    def post(self, batch: Sequence[Message], now_unix_nano: int) -> None:
        """Post alerts. Raise NotTaken."""
        found = [self._alert(one, now_unix_nano) for one in batch]
        self._target.post(json.dumps(found, ensure_ascii=False).encode())

    def _alert(self, one: Message, now: int) -> dict[str, Any]:
        return {
            "labels": dict(one.labels),
            "annotations": dict(one.annotations),
            "startsAt": shape.at(one.started_unix_nano),
            "endsAt": shape.at(one.ended_unix_nano or now + self._lasts_ns),
            "generatorURL": self._page,
        }
