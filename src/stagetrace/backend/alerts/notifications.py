"""Tells people of alerts through Apprise: Slack, PagerDuty, e-mail and whatever else it has a URL for."""

from __future__ import annotations

import hashlib
import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from stagetrace.backend.alerts.notify import DEADLINE_S, NOT_TAKEN, WEBHOOK_REPEAT_S, Attempts
from stagetrace.backend.options import BackendError
from stagetrace.rules.alerts import FIRING
from stagetrace.system.packages import requirement
from stagetrace.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stagetrace.rules.alerts import Message

_PAGERDUTY: Final = "pagerduty"


class Notifications:
    """A receiver, as `notify.Receiver` specifies: one notification for each alert that changed."""

    name = "notification"

    def __init__(self, url: str, repeat_s: float = WEBHOOK_REPEAT_S, deadline_s: float = DEADLINE_S) -> None:
        """Notify by a URL of Apprise, all of which may be secret. Raise BackendError where it is none."""
        self._service = _service(url)
        self.shown = str(self._service.service_name)
        self.key = hashlib.sha256(url.encode()).hexdigest()[:16]
        self.repeat_s = repeat_s
        self._attempts = Attempts(deadline_s)

    def batches(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Yield each message by itself: the incident of one alert ends with that."""
        for one in messages:
            yield [one]

    def post(self, batch: Sequence[Message], now_unix_nano: int) -> None:  # noqa: ARG002 -- of the contract
        """Notify of an alert. Raise NotTaken."""
        for one in batch:
            self._attempts.make(partial(self._try, one))

    def _try(self, one: Message) -> list[str]:
        """Return why it was not taken; nothing if it was. Apprise says no more, but in its log, with secrets."""
        kind = "failure" if one.status == FIRING else "success"
        is_taken = self._service.notify(title=title(one), body=body(one), notify_type=kind)
        return [] if is_taken else [NOT_TAKEN]


def title(one: Message) -> str:
    """Return what the alert is about, which is the same when it fires and when it has ended: incidents go by it."""
    labels = dict(one.labels)
    of = ", ".join(filter(None, (labels.get("service"), labels.get("sla_segment"))))
    windows = " and ".join(filter(None, (labels.get("long_window"), labels.get("short_window"))))
    facts = ", ".join(filter(None, (labels.get("severity"), windows)))
    text = f"{labels.get('sla_objective', '')}{f' of {of}' if of else ''}: {labels.get('alertname', '')}"
    return printable(f"{text}{f' ({facts})' if facts else ''}")


def body(one: Message) -> str:
    """Return what it says, and the links."""
    texts = dict(one.annotations)
    lines = [f"{one.status.upper()}: {texts.get('summary', '')}"]
    lines += [
        texts[name] for name in ("description", "traces", "runbook_url") if one.status == FIRING and texts.get(name)
    ]
    return "\n".join(map(printable, lines))


def _service(url: str) -> Any:
    try:
        from apprise import Apprise, AppriseAsset
    except ImportError:
        raise BackendError(f"STAGETRACE_NOTIFY needs apprise\npip install {requirement('notify')}") from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # it names URLs with their secrets
    asset = AppriseAsset(app_id="stagetrace", app_desc="stagetrace", app_url="", image_url_mask="", image_url_logo="")
    # Without it, an incident of PagerDuty stays open once its alert has ended.
    more = "?action=map" if urlsplit(url).scheme == _PAGERDUTY and "?" not in url else ""
    found = Apprise.instantiate(url + more, asset=asset, suppress_exceptions=True)
    if found is None:
        scheme = url.partition("://")[0][:20]
        raise BackendError(
            f"STAGETRACE_NOTIFY has a URL, {scheme}://..., that Apprise cannot use\n"
            "https://appriseit.com/services/ has the form for each service: slack://TOKEN_A/TOKEN_B/TOKEN_C"
        )
    return found
