"""`stagetrace up --sla`: a service misses its objective, the webhook hears of it, and of its end; kill -9 included."""

from __future__ import annotations

import re
import secrets
import signal
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from backend.alert_receiver import alert_receiver
from backend.processes import until
from backend.running import MS, Up, fail_to_start, post, run_up
from backends import Collector, free_port, run_alertmanager, run_prometheus
from cli.running import printed
from conftest import need
from messages import add_scope, put
from stagetrace.backend.alerts import notify, saved
from stagetrace.backend.alerts.watcher import Watcher
from stagetrace.backend.counters import Counters
from stagetrace.errors import StoreError
from stagetrace.policy.policy import Policy
from stagetrace.rules.alerts import FIRING, PENDING, RESOLVED, Alert, Labels, Told
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.formats import FORMATS
from stagetrace.store.local.store import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

POLICY = """
version: 1
objectives:
  - {name: predict, match: {route: POST /predict}, within: 50ms, target: 90%, window: 10m}
  - {name: embed, match: {route: POST /embed}, within: 50ms, target: 90%, window: 10m}
alerts:
  burn: [{factor: 2, long: 20s, short: 4s}]
  min_requests: 5
  labels: {team: ml}
"""
S = 10**9
FIRES = 'stagetrace_alerts{objective="predict", severity="page", state="firing"}'
SENT = 'stagetrace_alert_messages_total{result="sent"}'


def spans(count: int, verdict: str, objective: str = "predict", start_ns: int | None = None) -> bytes:
    """Return an export of requests of 60 ms that one objective has just judged; without a verdict, none has."""
    message = ExportTraceServiceRequest()
    scope = add_scope(message, "shop")
    for _ in range(count):
        start = time.time_ns() - 60 * MS if start_ns is None else start_ns
        span = scope.spans.add(
            trace_id=secrets.token_bytes(16),
            span_id=secrets.token_bytes(8),
            name=f"POST /{objective}",
            kind=2,
            start_time_unix_nano=start,
            end_time_unix_nano=start + 60 * MS,
        )
        put(span, {"http.request.method": "POST", "http.route": f"/{objective}"})
        if verdict:
            put(span, {"sla.objective": objective, "sla.verdict": verdict, "sla.breached": verdict == "breach"})
    serialized: bytes = message.SerializeToString()
    return serialized


def send(up: Up, verdict: str, objective: str = "predict") -> None:
    post(up, spans(10, verdict, objective)).raise_for_status()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "sla.yaml"
    path.write_text(POLICY)
    return path


@pytest.mark.usefixtures("services")
def test_a_webhook_hears_when_an_objective_is_missed_and_when_it_no_longer_is_across_kill_9(
    policy: Path, tmp_path: Path
) -> None:
    with alert_receiver() as hook:
        flags = (f"--sla={policy}", f"--webhook={hook.url}/s3cret/path")
        with run_up(tmp_path, *flags) as up:
            assert (up.ready["objectives"], up.ready["alerts_to"]) == (2, [hook.url])
            assert up.metric(FIRES) == 0

            def fires() -> bool:
                send(up, "breach")
                send(up, "good", "embed")
                time.sleep(0.2)
                return bool(hook.posted)

            until(fires)
            assert hook.alerts() == [("firing", "predict")]
            assert up.metric(FIRES) == 1
            board = httpx.get(f"{up.url('query_http_port')}/board/alerts").raise_for_status().text
            assert "shop: 100% of the requests in 20s missed predict; 10% may" in board
            until(lambda: any(saved.load(tmp_path / "data").told.values()))
            up.process.send_signal(signal.SIGKILL)
            up.process.wait()
        with run_up(tmp_path, *flags) as up:
            assert hook.alerts() == [("firing", "predict")]

            def ends() -> bool:
                send(up, "good")
                time.sleep(0.2)
                return len(hook.posted) > 1

            until(ends)
            assert hook.alerts() == [("firing", "predict"), ("resolved", "predict")]
            assert hook.posted[1].document["alerts"][0]["labels"]["team"] == "ml"
            assert up.metric(FIRES) == 0
            policy.write_text(POLICY.replace("name: embed", "name: other"))
            metrics = f"{up.url('query_http_port')}/metrics"
            until(lambda: 'stagetrace_alerts{objective="other"' in httpx.get(metrics).text)
    assert "s3cret" not in (tmp_path / "up.log").read_text()


@pytest.mark.usefixtures("services")
def test_slo_and_the_page_show_the_alerts_that_up_evaluates_and_no_others(policy: Path, tmp_path: Path) -> None:
    """Those of its policy, whoever asks the folder; where `up` evaluates none, none. No receiver is in the folder."""
    data = tmp_path / "data"
    policy.write_text(f"{POLICY.replace('20s, short: 4s', '10m, short: 5m')}  webhook: http://127.0.0.1:9/s3cret\n")

    def shown(up: Up) -> tuple[list[str], list[str]]:
        """Return the alerts of `slo`, and those of the board's objectives."""
        page = httpx.get(f"{up.url('query_http_port')}/board/objectives").raise_for_status().text
        told = printed("slo", "--long", "--store", data, code=1).splitlines()
        return [one for one in told if "Alert" in one], re.findall(r"alert: [^<]*", page)

    with run_up(tmp_path, f"--sla={policy}") as up:
        send(up, "breach")
        until(
            lambda: (
                "100% of the requests in 10m missed predict"
                in httpx.get(f"{up.url('query_http_port')}/board/alerts").text
            )
        )
        told = "has a burn rate of 10 in 10m and 10 in 5m (alert at 2)."
        assert shown(up) == (
            [f"Alert: /predict (objective predict) of service shop {told}"],
            ["alert: burn rate over 2 in 10m and in 5m"],
        )
    assert "s3cret" not in (data / saved.POLICY_FILE).read_text()
    with run_up(tmp_path) as up:
        assert shown(up) == ([], [])


@pytest.mark.usefixtures("backends")
def test_the_real_alertmanager_has_one_alert_that_prometheus_and_up_both_report(policy: Path, tmp_path: Path) -> None:
    """Both evaluate the same rules: their labels are the same. It is resolved once both say so."""
    need("prometheus")
    need("alertmanager")
    counts = Counter({"good": 0, "breach": 0})
    series = 'sla_requests_total{job="shop", sla_objective="predict", sla_verdict="'
    rules = FORMATS["prometheus"].render(Policy.load(str(policy)), RulesOptions())
    with alert_receiver() as hook:
        hook.page = lambda: "".join(f'{series}{verdict}"}} {count}\n' for verdict, count in counts.items())
        scraped = Collector(otlp_grpc="", otlp_http="", metrics=f"{hook.url}/metrics", pid=0)
        with (
            run_alertmanager(tmp_path, hook.url) as alertmanager,
            run_prometheus(tmp_path, scraped, free_port(), rules=rules, alertmanager=alertmanager) as prometheus,
            run_up(tmp_path, f"--sla={policy}", f"--alertmanager={alertmanager}") as up,
        ):

            def alerts() -> list[Any]:
                found: list[Any] = httpx.get(f"{alertmanager}/api/v2/alerts").raise_for_status().json()
                return found

            def report(verdict: str) -> tuple[bool, bool]:
                """Report more requests, and return whether Prometheus and up have an alert that fires."""
                send(up, verdict)
                counts[verdict] += 10
                time.sleep(0.2)
                known = httpx.get(f"{prometheus}/api/v1/alerts").json()["data"]["alerts"]
                return bool(known), up.metric(FIRES) == 1

            until(lambda: report("breach") == (True, True) and up.metric(SENT) >= 1)
            sent = re.compile(r"^prometheus_notifications_sent_total\{.*\} [1-9]", re.MULTILINE)
            until(lambda: sent.search(httpx.get(f"{prometheus}/metrics").text) and alerts())
            (alert,) = alerts()
            assert alert["fingerprint"] == notify.fingerprint(tuple(alert["labels"].items()))
            assert alert["labels"]["team"] == "ml"
            assert alert["annotations"]["summary"].startswith("shop: 100% of the requests in 20s missed predict")
            until(lambda: report("good") == (False, False) and not alerts())
            until(lambda: ("resolved", "predict") in hook.alerts())
            assert {len(one.document["alerts"]) for one in hook.posted} == {1}


class Clock:
    """The clocks of a machine."""

    def __init__(self) -> None:
        self.now, self.passed = time.time_ns(), 1_000 * S

    def time_ns(self) -> int:
        return self.now

    def clock_gettime_ns(self, _which: int) -> int:
        return self.passed

    def monotonic(self) -> float:
        return self.passed / S

    def goes_on(self, seconds: float) -> None:
        self.now += round(seconds * S)
        self.passed += round(seconds * S)


class Watched:
    """A watcher over a store, looking when a test wants it to."""

    def __init__(self, folder: Path, clock: Clock, policy: Policy) -> None:
        self.clock = clock
        self.policy = policy
        self.counters = Counters()
        self.store = LocalStore.open(folder)
        self.watcher = Watcher(folder, self.store.reader, lambda: self.policy, [], self.counters)

    def look(self, after_s: float = 5) -> dict[str, tuple[str, bool]]:
        """Look after a while; return state by objective, and whether the look could tell."""
        self.clock.goes_on(after_s)
        self.watcher.look()
        return {dict(one.labels)["sla_objective"]: (one.state, one.is_known) for one in self.watcher.alerts()}

    def look_at_good(self, looks: int) -> dict[str, tuple[str, bool]]:
        """Look so many times, each two seconds after good requests: once these have gone on for 4 s, an alert ends."""
        for _ in range(looks):
            self.send("good", ago_s=0)
            found = self.look(2)
        return found

    def send(self, verdict: str, objective: str = "predict", ago_s: float = 1) -> None:
        self.store.append(spans(10, verdict, objective, self.clock.now - round(ago_s * S)))


@contextmanager
def watched(folder: Path, clock: Clock, text: str = POLICY) -> Iterator[Watched]:
    found = Watched(folder, clock, Policy.read(text, "sla.yaml"))
    with found.store:
        yield found
        found.watcher.save()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("stagetrace.backend.alerts.watcher.time", found)
    return found


KNOWN, OPEN = (FIRING, True), (FIRING, False)


def test_time_in_which_nothing_was_evaluated_counts_as_two_intervals(tmp_path: Path, clock: Clock) -> None:
    """A machine that slept adds no more to how long a condition has held."""
    with watched(tmp_path / "data", clock) as one:
        one.send("breach")
        assert one.look(0) == {"predict": KNOWN}
        one.send("breach", ago_s=-599)
        assert one.look(600) == {"predict": KNOWN}
        (alert,) = one.watcher.alerts()
        assert alert.held_s == 2 * one.watcher._plan.interval_s < 600


@pytest.mark.parametrize("error", [StoreError("the disk is gone"), RuntimeError("a fault of the database")])
def test_an_alert_stays_as_it_is_while_the_store_cannot_be_read(
    error: Exception, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise error

    with watched(tmp_path / "data", clock) as one:
        one.send("breach")
        assert one.look(0) == {"predict": KNOWN}
        with monkeypatch.context() as patch:
            patch.setattr("stagetrace.backend.alerts.watcher.count", fails)
            assert one.look(600) == {"predict": OPEN}
        assert one.counters.value("alert_looks", "failed") == 1
        assert one.look() == {"predict": (RESOLVED, True)}


def test_what_no_service_has_judged_is_judged_by_the_policy(tmp_path: Path, clock: Clock) -> None:
    """It allows 50 ms; the alert outlives a restart, after which all requests of its windows are judged again."""
    with watched(tmp_path / "data", clock) as one:
        one.send("")
        assert one.look(0) == {"predict": KNOWN}
    with watched(tmp_path / "data", clock) as one:
        assert one.look(1) == {"predict": KNOWN}
        assert one.counters.value("alert_replayed_requests", "judged") == 10
        one.send("good", ago_s=0)
        assert one.look(4) == {"predict": KNOWN}
        assert one.look_at_good(1) == {"predict": KNOWN}
        assert one.look_at_good(2) == {"predict": (RESOLVED, True)}


def test_a_policy_that_changes_ends_alerts_that_it_no_longer_has(tmp_path: Path, clock: Clock) -> None:
    """One whose alerts could never fire leaves the one before in force. A new name is that of a new alert."""
    with watched(tmp_path / "data", clock) as one:
        one.send("breach")
        one.send("breach", "embed")
        assert one.look(0) == {"predict": KNOWN, "embed": KNOWN}
        one.policy = Policy.read(POLICY.replace("factor: 2", "factor: 20"), "sla.yaml")
        assert one.look(1) == {"predict": KNOWN, "embed": KNOWN}
        one.policy = Policy.read(POLICY.replace("name: embed", "name: other"), "sla.yaml")
        assert one.look(1) == {"predict": KNOWN, "embed": (RESOLVED, True), "other": KNOWN}


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    labels: Labels = (("a", "größer"), ("b", "\\"))
    alerts = [
        Alert(f"rule {one}", (*labels, ("c", one)), labels, one, 1.5, 7, 9) for one in (PENDING, FIRING, RESOLVED)
    ]
    told = {"key": {labels: Told(labels, labels, 3, 2.5)}}
    found = saved.Saved({one.labels: one for one in alerts}, told)
    saved.save(tmp_path, found)
    assert saved.load(tmp_path) == found
    assert (tmp_path / saved.ALERTS_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 2}',
        '{"version": 1, "alerts": [{"state": "firing"}]}',
        '{"version": 1, "alerts": 7, "told": []}',
        '{"version": 1, "alerts": [], "told": {"key": [[]]}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_is_damaged_is_reported_and_alerts_begin_anew(
    tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / saved.ALERTS_FILE).write_text(text)
    assert saved.load(tmp_path) == saved.Saved()
    assert "cannot be read, and alerts begin anew" in capfd.readouterr().err


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.write_text("{}")
    (folder / saved.ALERTS_FILE).symlink_to(elsewhere)
    assert saved.load(folder) == saved.Saved()
    saved.save(folder, saved.Saved())
    assert elsewhere.read_text() == "{}"


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--webhook", "https://h/"], "alerts have a receiver, and no objectives"),
        (["--sla", "* within 1s", "--webhook", "h/s3cret"], "--webhook: it is no address of a receiver over HTTP"),
        (["--sla", "* within 1s for 90%"], "can never fire"),
        (["--sla", "nowhere.yaml"], "nowhere.yaml"),
        (["--sla", "* within"], "nothing follows `within`"),
    ],
)
def test_what_cannot_be_watched_is_refused_at_the_start(tmp_path: Path, flags: list[str], problem: str) -> None:
    refused = fail_to_start("--data", str(tmp_path / "data"), *flags)
    assert problem in refused
    assert "s3cret" not in refused
    assert not (tmp_path / "data").exists()
