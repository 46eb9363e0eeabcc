"""Receivers of alerts over real sockets: what they get, and that none of their faults harms anything."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from backend.alert_receiver import AlertReceiver, alert_receiver
from backend.processes import until
from stagetrace.backend.alerts import notify
from stagetrace.backend.alerts.notify import (
    MOST_A_MINUTE,
    SIGNATURE,
    TIMESTAMP,
    Alertmanager,
    NotTaken,
    Outbox,
    Target,
    Webhook,
)
from stagetrace.backend.counters import Counters
from stagetrace.rules.alerts import FIRING, RESOLVED, Alert, Labels, Message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from http.server import BaseHTTPRequestHandler
    from pathlib import Path

S = 10**9
NOW = 1_795_887_324_860_592_686
PAGE = "http://127.0.0.1:16686/"


def labels(objective: str = "predict", **more: str) -> Labels:
    return tuple(sorted({"alertname": "A", "job": "shop", "sla_objective": objective, **more}.items()))


def message(objective: str = "predict", ended: int = 0, **more: str) -> Message:
    return Message(labels(objective, **more), (("summary", "5% missed it"),), NOW - 60 * S, ended)


def alerts(*objectives: str, state: str = FIRING) -> dict[Labels, Alert]:
    return {
        labels(one): Alert("rule", labels(one), (), state, 0, NOW, NOW if state == RESOLVED else 0)
        for one in objectives
    }


@pytest.fixture
def receiver() -> Iterator[AlertReceiver]:
    with alert_receiver() as found:
        yield found


def webhook(url: str, token: str = "", secret: str = "") -> Webhook:
    return Webhook(url, token, secret, PAGE)


def post(receiver: Webhook | Alertmanager, *messages: Message) -> None:
    for batch in receiver.batches(messages):
        receiver.post(batch, NOW)


def test_a_webhook_gets_what_alertmanagers_webhooks_get(receiver: AlertReceiver) -> None:
    """One request for each objective, whole, in the form of version 4."""
    gold, other = message(severity="page"), message(severity="ticket", ended=NOW)
    post(webhook(f"{receiver.url}/hook?a=b"), gold, message("embed"), other)
    assert [one.path for one in receiver.posted] == ["/hook?a=b"] * 2
    group = {"alertname": "A", "job": "shop", "sla_objective": "predict"}
    about = {"annotations": {"summary": "5% missed it"}, "startsAt": "2026-11-28T17:34:24.860Z", "generatorURL": PAGE}
    assert receiver.posted[0].document == {
        "version": "4",
        "groupKey": '{}:{alertname="A", job="shop", sla_objective="predict"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "stagetrace",
        "groupLabels": group,
        "commonLabels": group,
        "commonAnnotations": {"summary": "5% missed it"},
        "externalURL": PAGE,
        "alerts": [
            {
                "status": "firing",
                "labels": {**group, "severity": "page"},
                "endsAt": "0001-01-01T00:00:00Z",
                "fingerprint": notify.fingerprint(gold.labels),
                **about,
            },
            {
                "status": "resolved",
                "labels": {**group, "severity": "ticket"},
                "endsAt": "2026-11-28T17:35:24.860Z",
                "fingerprint": notify.fingerprint(other.labels),
                **about,
            },
        ],
    }
    post(webhook(receiver.url), other)
    assert receiver.posted[2].document["status"] == "resolved"


def test_a_webhook_can_check_who_sent_a_message(receiver: AlertReceiver) -> None:
    post(webhook(receiver.url, "t0ken", "s3cret"), message("größer"))
    (one,) = receiver.posted
    assert one.headers["authorization"] == "Bearer t0ken"
    stamp = one.headers[TIMESTAMP.lower()]
    digest = hmac.new(b"s3cret", stamp.encode() + b"." + one.body, hashlib.sha256).hexdigest()
    assert one.headers[SIGNATURE.lower()] == f"sha256={digest}"
    assert stamp == str(NOW // S)


def test_an_alertmanager_gets_alerts_that_end_by_themselves(receiver: AlertReceiver) -> None:
    for url in (receiver.url, f"{receiver.url}/", f"{receiver.url}/api/v2/alerts"):
        post(Alertmanager(url, "t0ken", PAGE, 30.0), message(), message("embed", ended=NOW))
    for one in receiver.posted:
        assert one.path == "/api/v2/alerts"
        assert one.headers["authorization"] == "Bearer t0ken"
        assert [each["endsAt"] for each in one.document] == ["2026-11-28T17:39:24.860Z", "2026-11-28T17:35:24.860Z"]
        assert one.document[0]["labels"] == dict(message().labels)


def test_no_file_of_credentials_is_read_and_those_of_a_url_are_sent_and_not_shown(
    receiver: AlertReceiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    post(webhook(receiver.url), message())
    with_user = receiver.url.replace("://", "://user:pass@")
    post(webhook(with_user), message())
    assert "authorization" not in receiver.posted[0].headers
    assert receiver.posted[1].headers["authorization"] == "Basic dXNlcjpwYXNz"
    assert Target(with_user).shown == receiver.url


def why(url: str, deadline_s: float = 5.0) -> str:
    """Return why a receiver did not take a message, which never has what is secret of its address."""
    with pytest.raises(NotTaken) as caught:
        Target(url, "", deadline_s).post(b"{}")
    assert "s3cret" not in str(caught.value)
    return str(caught.value)


def test_a_redirect_is_not_followed(receiver: AlertReceiver) -> None:
    with alert_receiver() as elsewhere:
        receiver.headers = {"location": elsewhere.url}
        receiver.respond = lambda handler: int(handler.path.rpartition("/")[2])
        for status in (301, 302, 307, 308):
            found = why(f"{receiver.url}/s3cret/{status}")
            assert found.startswith(f"it responded with {status}, which is not followed")
        assert elsewhere.posted == []


def test_a_receiver_that_fails_is_named_by_its_fault(receiver: AlertReceiver) -> None:
    receiver.respond = lambda _handler: 503
    assert why(f"{receiver.url}/s3cret") == "it responded with 503"
    receiver.respond = hang_up
    assert why(f"{receiver.url}/s3cret")
    assert why(f"{receiver.url.replace('http:', 'https:')}/s3cret").startswith("TLS failed: ")
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        assert why(f"http://127.0.0.1:{bound.getsockname()[1]}/s3cret") == "Connection refused"
    assert why("http://no-such-host.invalid/s3cret")


def hang_up(handler: BaseHTTPRequestHandler) -> int:
    """Respond with nothing."""
    handler.connection.shutdown(socket.SHUT_RDWR)
    return 0


def drip(handler: BaseHTTPRequestHandler) -> int:
    """Respond with a header that does not end, a byte at a time: no timeout of a socket sees that."""
    ended = threading.Event()
    try:
        while not ended.wait(0.05):
            handler.wfile.write(b"X")
    except OSError:
        return 0
    return 0


def test_a_receiver_that_never_finishes_takes_a_bounded_time_and_few_threads(
    receiver: AlertReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.respond = drip
    monkeypatch.setattr(notify, "_MOST_STUCK", 2)
    target = Target(receiver.url, "", 0.2)
    reasons = []
    for _ in range(3):
        with pytest.raises(NotTaken) as caught:
            target.post(b"{}")
        reasons.append(str(caught.value))
    late = "no whole response within 0.2 s"
    assert reasons == [late, late, "2 earlier requests to it have not ended"]


@pytest.mark.parametrize(
    ("url", "token", "problem"),
    [
        ("hooks.example.org/a", "", "no address of a receiver over HTTP: write https://host/path"),
        ("ftp://hooks.example.org", "", "no address of a receiver"),
        ("https://", "", "no address of a receiver"),
        ("http://host:99999/", "", "it is no address"),
        ("http://[::1/", "", "it is no address"),
        (
            "http://hooks.example.org/",
            "t",
            "the token would be readable on the way to hooks.example.org: write https://",
        ),
    ],
)
def test_an_address_to_which_nothing_can_be_posted_is_refused(url: str, token: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        notify.check_url(url, token)
    assert notify.check_url("http://127.0.0.1:9093", "t") == "http://127.0.0.1:9093"


class Running:
    """An outbox that runs, with what it counts."""

    def __init__(self, receiver: Any, told: dict[Labels, Any] | None = None) -> None:
        self.counters = Counters()
        self.saved = 0
        self.box = Outbox(receiver, told or {}, self.counters, self._save)
        self.box.start()

    def _save(self) -> None:
        self.saved += 1

    def count(self, result: str) -> int:
        return self.counters.value("alert_messages", result)


def test_a_receiver_that_was_away_hears_of_things_as_they_are_by_then(
    receiver: AlertReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "_FIRST_PAUSE_S", 0.05)
    receiver.respond = lambda _handler: 500
    running = Running(webhook(receiver.url))
    running.box.offer(alerts("predict", "embed"), 0)
    until(lambda: running.count("failed") >= 4)
    running.box.offer(alerts("predict"), 30)
    assert running.count("dropped") == 1
    failed = len(receiver.posted)
    receiver.respond = lambda _handler: 200
    until(lambda: running.count("sent"))
    running.box.offer(alerts("predict", state=RESOLVED), 30)
    until(lambda: running.count("sent") == 2)
    running.box.stop(5)
    heard = [pair for pair in receiver.alerts()[failed:] if pair[1] == "predict"]
    assert heard[-2:] == [("firing", "predict"), ("resolved", "predict")]
    assert heard.count(("resolved", "predict")) == 1
    assert running.saved == 2


def test_what_was_told_before_a_restart_is_not_told_again(receiver: AlertReceiver) -> None:
    before = Running(webhook(receiver.url))
    before.box.offer(alerts("predict", "embed"), 0)
    until(lambda: before.count("sent") == 2)
    before.box.stop(5)
    after = Running(webhook(receiver.url), before.box.last_posted())
    after.box.offer(alerts("predict", "other"), 30)
    until(lambda: after.count("sent") == 2)
    after.box.stop(5)
    assert sorted(receiver.alerts()[2:]) == [("firing", "other"), ("resolved", "embed")]


def test_a_receiver_gets_a_bounded_number_of_requests_and_the_rest_waits(receiver: AlertReceiver) -> None:
    running = Running(webhook(receiver.url))
    running.box.offer(alerts(*map(str, range(MOST_A_MINUTE + 20))), 0)
    until(lambda: running.count("limited") >= 20)
    running.box.stop(5)
    assert len(receiver.posted) == MOST_A_MINUTE == running.count("sent")
    assert running.box.waiting == 20


def test_a_receiver_that_blocks_delays_nobody_who_offers_alerts(receiver: AlertReceiver) -> None:
    let_go = threading.Event()
    receiver.respond = lambda _handler: 200 if let_go.wait(60) else 0
    running = Running(webhook(receiver.url))
    running.box.offer(alerts("predict"), 0)
    until(lambda: receiver.posted)
    for number in range(1_000):  # in a moment, or the time limit of tests ends this one
        running.box.offer(alerts("predict", str(number)), 30)
    let_go.set()
    until(lambda: ("firing", "999") in receiver.alerts())
    running.box.stop(5)
    assert json.loads(receiver.posted[-1].body)["alerts"]
