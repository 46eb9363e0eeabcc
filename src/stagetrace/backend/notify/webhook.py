"""Posts alerts to a webhook, in the JSON of Alertmanager's webhook receiver (version 4): docs/objectives.md."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from stagetrace.backend.notify import shape
from stagetrace.backend.notify.http_post import Target
from stagetrace.rules.alert_state import FIRING, RESOLVED

if TYPE_CHECKING:
    from stagetrace.rules.alert_messages import Message

SIGNATURE: Final = "X-Stagetrace-Signature"
TIMESTAMP: Final = "X-Stagetrace-Timestamp"
GROUP_BY: Final = ("alertname", "job", "sla_objective")
REPEAT_S: Final = 4 * 3600.0
_MOST_ALERTS: Final = 100  # of one request
_NS: Final = 10**9


class Webhook:
    """A receiver, as `base.Receiver` specifies: one request for each objective of which alerts have changed."""

    name = "webhook"

    def __init__(self, url: str, token: str, secret: str, page: str, repeat_s: float = REPEAT_S) -> None:
        """Post to a URL, with a bearer token, and signed by a secret, where these are given.

        `page`: the URL of the page, which messages have.
        """
        self._target = Target(url, token)
        self.shown, self.key = self._target.shown, self._target.key
        self.repeat_s = repeat_s
        self._secret = secret.encode()
        self._page = page

    def batches(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Yield the messages by objective."""
        groups: dict[str, list[Message]] = {}
        for one in messages:
            groups.setdefault(json.dumps(shape.only(one.labels, GROUP_BY)), []).append(one)
        for group in groups.values():
            for at in range(0, len(group), _MOST_ALERTS):
                yield group[at : at + _MOST_ALERTS]

    def post(self, batch: Sequence[Message], now_unix_nano: int) -> None:
        """Post alerts of one objective. Raise NotTaken."""
        body = json.dumps(document(batch, self._page), ensure_ascii=False).encode()
        headers = {}
        if self._secret:
            stamp = str(now_unix_nano // _NS)
            digest = hmac.new(self._secret, f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
            headers = {TIMESTAMP: stamp, SIGNATURE: f"sha256={digest}"}
        self._target.post(body, headers)


def document(batch: Sequence[Message], page: str) -> dict[str, Any]:
    """Return the document that is posted."""
    group = shape.only(batch[0].labels, GROUP_BY)
    return {
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in group.items()) + "}",
        "truncatedAlerts": 0,
        "status": FIRING if any(one.status == FIRING for one in batch) else RESOLVED,
        "receiver": "stagetrace",
        "groupLabels": group,
        "commonLabels": shape.common(one.labels for one in batch),
        "commonAnnotations": shape.common(one.annotations for one in batch),
        "externalURL": page,
        "alerts": [
            {
                "status": one.status,
                "labels": dict(one.labels),
                "annotations": dict(one.annotations),
                "startsAt": shape.at(one.started_unix_nano),
                "endsAt": shape.at(one.ended_unix_nano) if one.ended_unix_nano else shape.NEVER,
                "generatorURL": page,
                "fingerprint": shape.fingerprint(one.labels),
            }
            for one in batch
        ],
    }
