"""Notifications through Apprise: an e-mail over real SMTP, a request over real HTTP, what Slack and PagerDuty get."""

from __future__ import annotations

import json
import logging
import socketserver
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import requests

from backend.alert_receiver import alert_receiver
from backend.processes import until
from backend.running import fail_to_start, run_up
from backend.test_alerts import POLICY, send
from backend.test_notify import NOW, S
from stagetrace.backend.alerts.notifications import Notifications, body, title
from stagetrace.backend.alerts.notify import NotTaken
from stagetrace.backend.options import BackendError
from stagetrace.rules.alerts import Labels, Message

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# Apprise loads it on Python 3.11 and 3.12.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
LABELS: Labels = (
    ("alertname", "SlaErrorBudgetBurn"),
    ("long_window", "1h"),
    ("service", "shop"),
    ("severity", "page"),
    ("short_window", "5m"),
    ("sla_objective", "predict"),
)
TEXTS: Labels = (
    ("description", "Its budget is spent within 2 days."),
    ("summary", "shop: 5% of the requests in 1h missed predict"),
    ("traces", "http://127.0.0.1:16686/breaches?service=shop"),
)
FIRING = Message(LABELS, TEXTS, NOW - 60 * S)
ENDED = FIRING._replace(ended_unix_nano=NOW)


def test_a_title_is_the_same_when_an_alert_has_ended() -> None:
    """Incidents go by it."""
    assert title(FIRING) == title(ENDED) == "predict of shop: SlaErrorBudgetBurn (page, 1h and 5m)"
    assert body(FIRING).splitlines() == [
        "FIRING: shop: 5% of the requests in 1h missed predict",
        "Its budget is spent within 2 days.",
        "http://127.0.0.1:16686/breaches?service=shop",
    ]
    assert body(ENDED) == "RESOLVED: shop: 5% of the requests in 1h missed predict"
    hostile = FIRING._replace(labels=(("service", "a\nb\u202e"), ("sla_objective", "x")))
    assert title(hostile) == "x of a\\nb\\u202e: "


class Mailbox(socketserver.StreamRequestHandler):
    """A server of SMTP that takes each message."""

    received: list[str]

    def handle(self) -> None:
        self._say("220 here")
        while line := self.rfile.readline().decode().strip():
            word = line[:4].upper()
            if word == "DATA":
                self._say("354 go on")
                lines = []
                while (one := self.rfile.readline().decode().rstrip("\r\n")) != ".":
                    lines.append(one)
                self.received.append("\n".join(lines))
            self._say("221 bye" if word == "QUIT" else "250 ok")
            if word == "QUIT":
                return

    def _say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


@contextmanager
def mailbox() -> Iterator[tuple[int, list[str]]]:
    received: list[str] = []
    server = socketserver.ThreadingTCPServer(
        ("127.0.0.1", 0), type("Mailbox", (Mailbox,), {"received": received}), bind_and_activate=True
    )
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1], received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def notify(url: str, *messages: Message) -> None:
    receiver = Notifications(url)
    for batch in receiver.batches(messages):
        receiver.post(batch, NOW)


@pytest.mark.thorough
def test_an_e_mail_is_sent_for_each_alert() -> None:
    with mailbox() as (port, received):
        notify(f"mailto://127.0.0.1:{port}?to=ops@example.org&from=up@example.org", FIRING, ENDED)
    assert len(received) == 2
    assert "To: ops@example.org" in received[0]
    assert "predict of shop: SlaErrorBudgetBurn (page, 1h and 5m)" in received[0].replace("\n ", " ")
    assert "FIRING: shop: 5% of the requests" in received[0]
    assert "RESOLVED: shop: 5% of the requests" in received[1]


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Give what is posted to services that only the Internet has."""
    found: list[tuple[str, Any]] = []

    def post(_session: requests.Session, method: str, url: str, data: Any = None, **_more: Any) -> requests.Response:
        assert method.upper() == "POST"
        found.append((url, json.loads(data)))
        response = requests.Response()
        response.status_code = 202 if "pagerduty" in url else 200
        response._content = b"ok"  # as Slack does
        return response

    monkeypatch.setattr(requests.Session, "request", post)
    return found


def test_slack_gets_the_text(posted: list[tuple[str, Any]]) -> None:
    notify("slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/#alerts", FIRING)
    url, document = posted[0]
    assert url == "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"
    text = json.dumps(document)
    assert "predict of shop: SlaErrorBudgetBurn (page, 1h and 5m)" in text
    assert "http://127.0.0.1:16686/breaches?service=shop" in text


@pytest.mark.thorough
def test_an_incident_of_pagerduty_ends_with_its_alert(posted: list[tuple[str, Any]]) -> None:
    other = FIRING._replace(labels=(*LABELS[:3], ("severity", "ticket"), *LABELS[4:]))
    notify("pagerduty://A1BRTD4JD@TIiajkdnlazkcOXrIdevi7FQ", FIRING, other, ENDED)
    (_, first), (_, second), (_, last) = posted
    assert [one["event_action"] for one in (first, second, last)] == ["trigger", "trigger", "resolve"]
    assert first["dedup_key"] == last["dedup_key"] != second["dedup_key"]


def test_one_that_fails_or_does_not_end_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing of its URL is in an error or a log."""
    caplog.set_level(logging.INFO)
    with alert_receiver() as receiver:
        receiver.respond = lambda _handler: 500
        url = f"json://user:s3cret@{receiver.url.removeprefix('http://')}/hidden/path"
        service = Notifications(url)
        with pytest.raises(NotTaken, match="it did not take the message"):
            service.post([FIRING], NOW)
        assert len(receiver.posted) == 1
        ended = threading.Event()
        receiver.respond = lambda _handler: 200 if ended.wait(20) else 500
        slow = Notifications(url, deadline_s=0.3)
        with pytest.raises(NotTaken, match=r"no whole response within 0.3 s"):
            slow.post([FIRING], NOW)
        ended.set()
    assert service.shown == "JSON"
    assert "s3cret" not in caplog.text + str(service.key)
    assert "hidden" not in caplog.text


def test_a_url_that_is_none_ends_the_start_without_being_shown(tmp_path: Path) -> None:
    with pytest.raises(BackendError) as refused:
        Notifications("nonsense://s3cret/path")
    assert "nonsense://..." in str(refused.value)
    assert "s3cret" not in str(refused.value)
    env = {"STAGETRACE_NOTIFY": "slack://T1/s3cret"}
    told = fail_to_start("--data", str(tmp_path), "--sla", "* within 1s", env=env)
    assert "STAGETRACE_NOTIFY has a URL, slack://..., that Apprise cannot use" in told
    assert "s3cret" not in told


@pytest.mark.usefixtures("services")
def test_up_notifies_of_its_alerts_with_links_to_its_own_page(tmp_path: Path) -> None:
    """The page has Jaeger's port where it is not told otherwise: that makes no link to Jaeger of it."""
    policy = tmp_path / "sla.yaml"
    policy.write_text(POLICY)
    with mailbox() as (port, received), alert_receiver() as hook:
        env = {"STAGETRACE_NOTIFY": f"mailto://127.0.0.1:{port}?to=a@example.org&from=b@example.org"}
        with run_up(tmp_path, f"--sla={policy}", f"--webhook={hook.url}", env=env) as up:
            assert up.ready["alerts_to"] == [hook.url, "mailto://..."]

            def is_told() -> bool:
                send(up, "breach")
                return bool(received and hook.posted)

            until(is_told)
            link = hook.posted[0].document["alerts"][0]["annotations"]["traces"]
            own = up.url("query_http_port")
            assert link == f"{own}/breaches?service=shop&judged-by=predict&since=1m"
            assert httpx.get(link).status_code == 200
            assert "FIRING" in received[0]
