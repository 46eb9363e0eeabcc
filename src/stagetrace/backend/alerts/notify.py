"""The receivers of alerts: their contract, Alertmanager and a webhook, and the thread that tells each of them."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import urlsplit

from stagetrace.backend.counters import ThrottledLog
from stagetrace.rules.alerts import FIRING, RESOLVED, Message, Told, aged, delivered, due, untold
from stagetrace.system.access import is_loopback

if TYPE_CHECKING:
    from stagetrace.backend.counters import Counters
    from stagetrace.rules.alerts import Alert, Labels


class NotTaken(Exception):  # noqa: N818 -- what happened, not a fault of ours
    """A receiver did not take messages; the text says why, and holds neither a path nor a secret."""


class Receiver(Protocol):
    """Takes messages. It is asked by one thread, and may block it for a bounded time."""

    name: str
    """What kind it is, for logs and counters."""

    shown: str
    """Its address without path and credentials."""

    key: str
    """What identifies this receiver at this address."""

    repeat_s: float
    """After how long an alert that still fires is posted again."""

    def batches(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Yield the messages in parts, each of which is sent as one request."""
        ...

    def post(self, batch: Sequence[Message], now_unix_nano: int) -> None:
        """Send a part. Raise NotTaken, after which it is sent again later."""
        ...


# --- Posting JSON to a receiver: bounded in time whatever it does, without redirects, no secret of it in any error.

TIMEOUT_S: Final = 10.0  # to connect, and until more of the response comes
DEADLINE_S: Final = 20.0  # for all of it
_MOST_STUCK: Final = 4  # posts that have not ended by their deadline


NOT_TAKEN: Final = "it did not take the message"


class Attempts:
    """Makes attempts in threads, each for a bounded time: one that does not end is left alone. Used by one thread."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._stuck: list[threading.Thread] = []

    def make(self, attempt: Callable[[], list[str]]) -> None:
        """Make an attempt, which returns why it failed, or nothing. Raise NotTaken."""
        self._stuck = [one for one in self._stuck if one.is_alive()]
        if len(self._stuck) >= _MOST_STUCK:
            raise NotTaken(f"{len(self._stuck)} earlier requests to it have not ended")
        why: list[str] = []
        thread = threading.Thread(target=lambda: why.extend(attempt()), name="stagetrace-post", daemon=True)
        thread.start()
        # A timeout of a socket begins anew with each byte that comes.
        thread.join(self._deadline_s)
        if thread.is_alive():
            self._stuck.append(thread)
            raise NotTaken(f"no whole response within {self._deadline_s:g} s")
        if why:
            raise NotTaken(why[0])


class Target:
    """Where to post. Used by one thread at a time."""

    def __init__(self, url: str, token: str = "", deadline_s: float = DEADLINE_S) -> None:
        """Post to a URL, of which only scheme, host and port are ever shown: its path may be a secret."""
        parts = urlsplit(url)
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self.key = hashlib.sha256(url.encode()).hexdigest()[:16]
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._basic = (parts.username or "", parts.password or "") if parts.username else None
        self._headers = {"Content-Type": "application/json", "User-Agent": "stagetrace"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._attempts = Attempts(deadline_s)

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Post a JSON document. Raise NotTaken."""
        self._attempts.make(lambda: self._try(body, headers or {}))

    def _try(self, body: bytes, headers: dict[str, str]) -> list[str]:
        """Return why it was not taken; nothing if it was."""
        import requests

        try:
            with requests.post(
                self._url,
                data=body,
                headers={**self._headers, **headers},
                auth=self._credentials,
                timeout=TIMEOUT_S,
                allow_redirects=False,
                stream=True,  # its body is nothing to us, however long it is
            ) as response:
                status = response.status_code
        except (OSError, ValueError) as error:  # those of requests are OSErrors, too
            return [reason(error)]
        if 200 <= status < 300:  # noqa: PLR2004
            return []
        redirect = ", which is not followed: name the address to which it redirects" if 300 <= status < 400 else ""  # noqa: PLR2004
        return [f"it responded with {status}{redirect}"]

    def _credentials(self, request: Any) -> Any:
        """Return a request with those of the URL; a function, since otherwise those of ~/.netrc are taken."""
        from requests.auth import HTTPBasicAuth

        return request if self._basic is None else HTTPBasicAuth(*self._basic)(request)


def reason(error: BaseException) -> str:
    """Return what went wrong with a connection, without its URL, which texts of libraries have."""
    import requests

    if isinstance(error, requests.Timeout):
        return f"no response within {TIMEOUT_S:g} s"
    innermost, seen = error, {id(error)}
    while (inner := _inner(innermost)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        innermost = inner
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS failed: {getattr(innermost, 'verify_message', '') or type(innermost).__name__}"
    return (isinstance(innermost, OSError) and innermost.strerror) or type(innermost).__name__


def _inner(error: BaseException) -> BaseException | None:
    first = error.args[0] if error.args else None
    found = getattr(error, "reason", None), first, error.__cause__, error.__context__
    return next((one for one in found if isinstance(one, BaseException)), None)


def check_url(url: str, token: str) -> str:
    """Return a URL to which alerts can be posted. Raise ValueError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"it is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("it is no address of a receiver over HTTP: write https://host/path")
    if token and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError(f"the token would be readable on the way to {parts.hostname}: write https://")
    return url


NEVER: Final = "0001-01-01T00:00:00Z"  # Go's zero time: the end of what fires
_OFFSET, _PRIME, _SEPARATOR = 14_695_981_039_346_656_037, 1_099_511_628_211, b"\xff"

# --- Posts alerts to a webhook, in the JSON of Alertmanager's webhook receiver (version 4): docs/objectives.md.

# --- Posts alerts to an Alertmanager, by version 2 of its API, as often as Prometheus does.

_NS: Final = 10**9


def rfc3339(unix_nano: int) -> str:
    """Return a time in RFC 3339, to the millisecond."""
    return f"{datetime.fromtimestamp(unix_nano // _NS, timezone.utc):%Y-%m-%dT%H:%M:%S}.{unix_nano % _NS // 10**6:03}Z"


def fingerprint(labels: Labels) -> str:
    """Return Prometheus' fingerprint of labels: FNV-1a, of 64 bits."""
    found = _OFFSET
    for byte in b"".join(part.encode() + _SEPARATOR for label in sorted(labels) for part in label):
        found = (found ^ byte) * _PRIME % 2**64
    return f"{found:016x}"


def common(sets: Iterable[Labels]) -> dict[str, str]:
    """Return the labels that all sets have with the same value."""
    first, *others = map(dict, sets)
    return {name: value for name, value in first.items() if all(one.get(name) == value for one in others)}


def only(labels: Labels, names: Iterable[str]) -> Mapping[str, str]:
    """Return the labels with these names."""
    return {name: value for name, value in labels if name in names}


PATH: Final = "/api/v2/alerts"
ALERTMANAGER_REPEAT_S: Final = 60.0
_ENDS_AFTER: Final = 4  # times the interval: what fires ends by itself if nobody says so any more, as Prometheus has it
_MOST_ALERTS_OF_ALERTMANAGER: Final = 500  # of one request


class Alertmanager:
    """A receiver, as `base.Receiver` specifies. It groups, silences and repeats by its own configuration."""

    name = "alertmanager"

    def __init__(self, url: str, token: str, page: str, interval_s: float) -> None:
        """Post to the Alertmanager at a URL, with a bearer token where one is given.

        `page`: the URL of the page, to which alerts link; `interval_s`: from one look at the alerts to the next.
        """
        self._target = Target(url.rstrip("/").removesuffix(PATH) + PATH, token)
        self.shown, self.key = self._target.shown, self._target.key
        self.repeat_s = ALERTMANAGER_REPEAT_S
        self._lasts_ns = round(_ENDS_AFTER * max(ALERTMANAGER_REPEAT_S, interval_s) * _NS)
        self._page = page

    def batches(self, messages: Sequence[Message]) -> Iterator[list[Message]]:
        """Yield the messages, as many as one request may have."""
        for at in range(0, len(messages), _MOST_ALERTS_OF_ALERTMANAGER):
            yield list(messages[at : at + _MOST_ALERTS_OF_ALERTMANAGER])

    def post(self, batch: Sequence[Message], now_unix_nano: int) -> None:
        """Post alerts. Raise NotTaken."""
        found = [self._alert(one, now_unix_nano) for one in batch]
        self._target.post(json.dumps(found, ensure_ascii=False).encode())

    def _alert(self, one: Message, now: int) -> dict[str, Any]:
        return {
            "labels": dict(one.labels),
            "annotations": dict(one.annotations),
            "startsAt": rfc3339(one.started_unix_nano),
            "endsAt": rfc3339(one.ended_unix_nano or now + self._lasts_ns),
            "generatorURL": self._page,
        }


SIGNATURE: Final = "X-Stagetrace-Signature"
TIMESTAMP: Final = "X-Stagetrace-Timestamp"
GROUP_BY: Final = ("alertname", "job", "sla_objective")
WEBHOOK_REPEAT_S: Final = 4 * 3600.0
_MOST_ALERTS_OF_WEBHOOK: Final = 100  # of one request


class Webhook:
    """A receiver, as `base.Receiver` specifies: one request for each objective of which alerts have changed."""

    name = "webhook"

    def __init__(self, url: str, token: str, secret: str, page: str, repeat_s: float = WEBHOOK_REPEAT_S) -> None:
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
            groups.setdefault(json.dumps(only(one.labels, GROUP_BY)), []).append(one)
        for group in groups.values():
            for at in range(0, len(group), _MOST_ALERTS_OF_WEBHOOK):
                yield group[at : at + _MOST_ALERTS_OF_WEBHOOK]

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
    group = only(batch[0].labels, GROUP_BY)
    return {
        "version": "4",
        "groupKey": "{}:{" + ", ".join(f"{name}={json.dumps(value)}" for name, value in group.items()) + "}",
        "truncatedAlerts": 0,
        "status": FIRING if any(one.status == FIRING for one in batch) else RESOLVED,
        "receiver": "stagetrace",
        "groupLabels": group,
        "commonLabels": common(one.labels for one in batch),
        "commonAnnotations": common(one.annotations for one in batch),
        "externalURL": page,
        "alerts": [
            {
                "status": one.status,
                "labels": dict(one.labels),
                "annotations": dict(one.annotations),
                "startsAt": rfc3339(one.started_unix_nano),
                "endsAt": rfc3339(one.ended_unix_nano) if one.ended_unix_nano else NEVER,
                "generatorURL": page,
                "fingerprint": fingerprint(one.labels),
            }
            for one in batch
        ],
    }


# --- Tells one receiver of the alerts, in a thread of its own: bounded in its rate, and tried again where it fails.

MOST_A_MINUTE: Final = 60  # requests to one receiver
_FIRST_PAUSE_S: Final = 1.0  # after a failure; twice as long after each further one
_LONGEST_PAUSE_S: Final = 60.0
_LOG_S: Final = 60.0
_MINUTE_S: Final = 60.0


class Outbox:
    """Compares the newest alerts with what the receiver was told. `_state` guards all below it.

    `save` is called once the receiver has been told something.
    """

    def __init__(
        self, receiver: Receiver, told: Mapping[Labels, Told], counters: Counters, save: Callable[[], None]
    ) -> None:
        self.receiver = receiver
        self._counters = counters
        self._save = save
        self._log = ThrottledLog(_LOG_S)
        self._sent: list[float] = []  # when, within the last minute; of its thread alone
        self._state = threading.Condition()
        self._told = dict(told)
        self._alerts: Mapping[Labels, Alert] = {}
        self._silent: Collection[Labels] = ()
        self._is_new = self._closing = False
        self._waiting = 0
        self._thread = threading.Thread(target=self._work, name=f"stagetrace-{receiver.name}", daemon=True)

    def start(self) -> None:
        """Send in a thread of its own."""
        self._thread.start()

    def offer(self, alerts: Mapping[Labels, Alert], elapsed_s: float, silent: Collection[Labels] = ()) -> None:
        """Take the alerts of the newest look, `elapsed_s` after the one before; of `silent` ones nothing is sent."""
        with self._state:
            lost = untold(
                {labels: one for labels, one in self._alerts.items() if labels not in self._silent}, alerts, self._told
            )
            self._alerts, self._silent = alerts, silent
            self._told = aged(self._told, elapsed_s)
            self._is_new = True
            self._state.notify_all()
        self._counters.add("alert_messages", "dropped", lost)

    def last_posted(self) -> dict[Labels, Told]:
        """Return what the receiver knows."""
        with self._state:
            return dict(self._told)

    @property
    def waiting(self) -> int:
        """Return how many messages have not been delivered."""
        return self._waiting

    def stop(self, within_s: float) -> None:
        """End, but for a request that does not: that ends with the process."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        self._thread.join(within_s)

    def _work(self) -> None:
        pause_s = 0.0
        while True:
            with self._state:
                until = time.monotonic() + pause_s
                while not self._closing and (not self._is_new or time.monotonic() < until):
                    self._state.wait(max(0.01, until - time.monotonic()) if self._is_new else None)
                if self._closing:
                    return
                messages = due(self._alerts, self._told, self.receiver.repeat_s, time.time_ns(), self._silent)
                self._is_new = False
            try:
                is_done = self._send(messages)
            except Exception as error:  # noqa: BLE001 -- the thread goes on: the next look finds what is left to send
                self._log.error("send", f"alerts could not be sent: {type(error).__name__}: {error}")
                is_done = False
            pause_s = 0.0 if is_done else min(max(_FIRST_PAUSE_S, 2 * pause_s), _LONGEST_PAUSE_S)
            if not is_done:
                with self._state:
                    self._is_new = True

    def _send(self, messages: list[Message]) -> bool:
        """Send what the rate allows, and return whether that was everything."""
        self._waiting = len(messages)
        is_done = True
        for batch in self.receiver.batches(messages):
            with self._state:
                if self._closing:
                    return False
            if not self._may_send():
                self._counters.add("alert_messages", "limited", len(batch))
                self._log.warning("rate", f"{self._name} gets more than {MOST_A_MINUTE} requests a minute: some wait")
                is_done = False
                continue
            try:
                self.receiver.post(batch, time.time_ns())
            except NotTaken as error:
                self._counters.add("alert_messages", "failed", len(batch))
                self._log.warning("taken", f"{self._name} did not take an alert, which is sent again: {error}")
                is_done = False
                continue
            with self._state:
                self._told = delivered(self._told, batch)
            self._waiting -= len(batch)
            self._counters.add("alert_messages", "sent", len(batch))
            self._save()
        return is_done

    @property
    def _name(self) -> str:
        return f"the {self.receiver.name} at {self.receiver.shown}"

    def _may_send(self) -> bool:
        now = time.monotonic()
        self._sent = [one for one in self._sent if one > now - _MINUTE_S]
        if len(self._sent) >= MOST_A_MINUTE:
            return False
        self._sent.append(now)
        return True
