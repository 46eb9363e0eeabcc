"""Silences: no receiver hears of an objective for a time, by the command and by the board's button."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from backend.alert_receiver import alert_receiver
from backend.processes import until
from backend.running import environment, run_up
from backend.test_alerts import FIRES, POLICY, send
from page.serving import TOKEN
from stagetrace.backend.alerts import silences
from stagetrace.backend.alerts.silences import Silence
from stagetrace.errors import StoreError
from stagetrace.rules.alerts import FIRING, RESOLVED, Alert, Labels, Told, due

if TYPE_CHECKING:
    from pathlib import Path

    from backend.running import Up

S = 10**9
NOW = 1_795_887_324 * S
FORM = "application/x-www-form-urlencoded"


def labels(objective: str = "predict", service: str = "shop") -> Labels:
    return (("service", service), ("sla_objective", objective))


def test_a_silence_is_of_an_objective_and_of_one_service_or_all(tmp_path: Path) -> None:
    silences.put(tmp_path, "predict", "", 60, NOW)
    silences.put(tmp_path, "embed", "shop", 120, NOW)
    found = silences.read(tmp_path, NOW)
    assert found == [Silence("predict", "", NOW + 60 * S), Silence("embed", "shop", NOW + 120 * S)]
    assert silences.of(labels("predict", "any"), found) == found[0]
    assert silences.of(labels("embed", "shop"), found) == found[1]
    assert silences.of(labels("embed", "other"), found) is None
    assert silences.read(tmp_path, NOW + 60 * S) == found[1:]


def test_a_silence_is_set_anew_ended_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silences.put(tmp_path, "predict", "", 60, NOW)
    silences.put(tmp_path, "predict", "", 30, NOW)
    assert [one.until_unix_nano for one in silences.read(tmp_path, NOW)] == [NOW + 30 * S]
    silences.put(tmp_path, "predict", "", 0, NOW)
    assert silences.read(tmp_path, NOW) == []
    for wrong in ({"seconds": -1.0}, {"seconds": 31 * 86_400.0}, {"seconds": float("nan")}, {"objective": ""}):
        with pytest.raises(StoreError):
            silences.put(tmp_path, **{"objective": "a", "service": "", "seconds": 1.0, "now_unix_nano": NOW, **wrong})  # type: ignore[arg-type]
    monkeypatch.setattr(silences, "MOST", 2)
    for name, seconds in (("a", 30), ("b", 10), ("c", 20)):
        silences.put(tmp_path, name, "", seconds, NOW)
    assert [one.objective for one in silences.read(tmp_path, NOW)] == ["c", "a"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'[["a", "b"]]', b'{"a": 1}', b"\xff"])
def test_a_file_that_cannot_be_read_silences_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / silences.FILE).write_bytes(content)
    assert silences.read(tmp_path, NOW) == []


def test_of_a_silent_alert_only_its_end_is_told() -> None:
    """To whom its beginning was; and once the silence is over, that it fires."""
    fires = {labels(): Alert("r", labels(), (), FIRING, 60, NOW)}
    told = {labels(): Told(labels(), (), NOW, since_s=1e6)}
    assert due(fires, {}, 60, NOW, {labels()}) == []
    assert due(fires, told, 60, NOW, {labels()}) == []
    assert len(due(fires, {}, 60, NOW)) == 1
    ended = {labels(): Alert("r", labels(), (), RESOLVED, 60, NOW, NOW + S)}
    assert [one.status for one in due(ended, told, 60, NOW, {labels()})] == [RESOLVED]
    assert due(ended, {}, 60, NOW, {labels()}) == []


def silence(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "stagetrace.cli.main", "silence", *arguments, "--store", str(folder / "data")]
    return subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def fire(up: Up) -> None:
    def fires() -> bool:
        send(up, "breach")
        time.sleep(0.2)
        return up.metric(FIRES) == 1

    until(fires)


@pytest.mark.usefixtures("services")
def test_the_command_silences_what_up_posts_and_ends_it(tmp_path: Path) -> None:
    """It outlives a restart; it is set while no back end runs, too."""
    policy = tmp_path / "sla.yaml"
    policy.write_text(POLICY)
    with alert_receiver() as hook:
        flags = (f"--sla={policy}", f"--webhook={hook.url}")
        with run_up(tmp_path, *flags) as up:
            done = silence(tmp_path, "predict", "--for", "2h", "--json")
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["until_unix_nano"] > time.time_ns() + 7000 * S
            wrong = silence(tmp_path, "predikt")
            assert (wrong.returncode, "there are predict, embed" in wrong.stderr) == (2, True)
            fire(up)
            board = httpx.get(f"{up.url('query_http_port')}/board/alerts").text
            assert "silent until" in board
        with run_up(tmp_path, *flags) as up:
            fire(up)
            time.sleep(1.5)  # some more looks
            assert hook.posted == []
            assert silence(tmp_path, "predict", "--end").returncode == 0

            def is_told() -> bool:
                send(up, "breach")
                time.sleep(0.2)
                return bool(hook.posted)

            until(is_told)
            assert hook.alerts()[0] == ("firing", "predict")
        assert silence(tmp_path, "embed").returncode == 0
        assert [one.objective for one in silences.read(tmp_path / "data", time.time_ns())] == ["embed"]


@pytest.mark.usefixtures("services")
def test_the_buttons_form_is_taken_from_our_own_page_alone(tmp_path: Path) -> None:
    """With the session of a login, or where there is no token; and never as a link."""
    policy = tmp_path / "sla.yaml"
    policy.write_text(POLICY)
    form = {"objective": "predict", "service": "", "seconds": "3600", "next": "/board?since=1h"}
    with run_up(tmp_path, f"--sla={policy}", f"--token={TOKEN}") as up:
        own = up.url("query_http_port")
        url = f"{own}/board/silence"
        logged_in = httpx.post(f"{own}/login", data={"token": TOKEN, "next": "/"}, headers={"origin": own})
        cookies = dict(logged_in.cookies)
        assert cookies
        for status, session, headers in (
            (401, {}, {"origin": own}),
            (403, cookies, {}),  # no page is named
            (403, cookies, {"origin": "http://evil.test"}),
            (403, cookies, {"origin": own, "sec-fetch-site": "cross-site"}),
        ):
            with httpx.Client(cookies=session, headers=headers) as client:
                assert client.post(url, data=form).status_code == status, (status, headers)
        with httpx.Client(cookies=cookies, headers={"origin": own}) as client:
            assert client.get(url).status_code == 405
            for wrong in ({"seconds": "x"}, {"seconds": "99999999"}, {"objective": "nobody's"}, {"seconds": ""}):
                refused = client.post(url, data={**form, **wrong})
                assert refused.status_code == 400, wrong
            assert silences.read(tmp_path / "data", time.time_ns()) == []
            done = client.post(url, data=form)
            assert (done.status_code, done.headers["location"]) == (303, "/board?since=1h")
            assert client.post(url, data={**form, "next": "//evil.test/"}).headers["location"] == "/"
    assert [one.objective for one in silences.read(tmp_path / "data", time.time_ns())] == ["predict"]
