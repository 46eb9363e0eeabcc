"""`stagetrace drift` over stores and files of made requests whose changes are known."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from answers.made import EVER, NOON, Made, lines, reading, store
from cli.running import COMMAND, answered, environment, printed
from stagetrace.analysis import drift
from stagetrace.analysis.onset import Release
from stagetrace.analysis.series import Track, Tracks
from stagetrace.cli.drift import view
from stagetrace.output.units import UTC

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

asked = partial(answered, "drift", *EVER, "--store")
HOUR = 3600 * 10**9
MINUTE = 60 * 10**9


def requests(
    factor: Callable[[float], float], *, count: int = 6000, hours: float = 6, first: int = 1, **more: Any
) -> Iterator[Made]:
    """Yield requests at equal distances whose inference takes `factor(hour)` times as long as usual."""
    random = np.random.default_rng(count + first)
    for number in range(count):
        hour = number / count * hours
        stages = {
            "preprocess": float(random.lognormal(1, 0.3)),
            "inference": float(random.lognormal(3, 0.3)) * factor(hour),
        }
        yield Made(number + first, NOON + round(hour * HOUR), stages, **more)


def step(hour: float) -> float:
    return 1.5 if hour >= 3.5 else 1.0


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose route /predict gets slower at 15:30, and whose /embed stays as it is."""
    made = [*requests(step), *requests(lambda _: 0.5, count=3000, first=10_001, route="/embed", name="POST /embed")]
    return store(tmp_path_factory.mktemp("drift") / "store", made)


def test_a_step_is_found_with_its_stage_and_nothing_else(stepped: Path) -> None:
    """When, from what to what, in which stage: against the distribution that the requests were drawn from."""
    found = asked(stepped, code=1)
    assert {change["route"] for change in found["changes"]} == {"POST /predict"}
    assert {change["stage"] for change in found["changes"]} == {None, "inference"}
    by_name = {change["series"]: change for change in found["changes"]}
    for change in by_name.values():
        assert change["kind"] == "step"
        assert change["ongoing"] is True
        assert abs(change["at_unix_nano"] - (NOON + 3.5 * HOUR)) <= 10 * MINUTE
        assert change["q_value"] < 0.01
        assert change["slope_ms_per_h"] is None
    middle = by_name["POST /predict inference p50"]
    assert middle["before_ms"] == pytest.approx(np.exp(3), rel=0.02)
    assert middle["after_ms"] == pytest.approx(1.5 * np.exp(3), rel=0.02)
    tail = by_name["POST /predict inference p95"]
    assert tail["before_ms"] == pytest.approx(np.exp(3 + 0.3 * 1.645), rel=0.03)
    assert tail["relative"] == pytest.approx(0.5, abs=0.05)
    of = f"{len({change['series'] for change in found['changes']})} of {len(found['series'])} series"
    said = r"p9[59] of POST /predict stepped up from \d\d\.\d\d ms to \d\d\.\d\d ms \(\+\d\d %\) at 15:[23]\d UTC, "
    assert re.fullmatch(rf"{said}in its stage inference; {of} changed\.", found["sentence"])


def test_the_picture_marks_the_change(stepped: Path) -> None:
    """Text has a table, a series with a mark, and what a day of data cannot tell."""
    text = printed("drift", "--long", "--store", stepped, *EVER, code=1)
    assert "POST /predict inference p50" in text
    assert re.search(r"▲ \+\d\d %", text)
    assert "a daily pattern looks like drift" in text


def test_faster_is_no_bad_answer(tmp_path: Path) -> None:
    """Exit code 0, and the step down is told."""
    folder = store(tmp_path / "store", requests(lambda hour: 1 / step(hour)))
    found = asked(folder)
    assert "stepped down" in found["sentence"]


def test_what_is_over_is_no_bad_answer(tmp_path: Path) -> None:
    """It was slow for an hour: told, and exit code 0, for the newest level is the faster one."""
    folder = store(tmp_path / "store", requests(lambda hour: 2.0 if 2 <= hour < 3 else 1.0))
    found = asked(folder)
    marks = [change["at_unix_nano"] for change in found["changes"] if change["series"] == "POST /predict p50"]
    assert [mark - NOON for mark in marks] == pytest.approx([2 * HOUR, 3 * HOUR], abs=5 * MINUTE)


def test_nothing_changed(tmp_path: Path) -> None:
    """The answer says which step would have been seen."""
    folder = store(tmp_path / "store", requests(lambda _: 1.0))
    found = asked(folder)
    assert found["changes"] == []
    assert re.fullmatch(
        r"No change in \d+ series over 6 h \(a step of \d+ % or more would have been seen in each\)\.",
        found["sentence"],
    )
    middle = next(one for one in found["series"] if one["series"] == "POST /predict p50")
    assert 0.05 <= middle["detectable"] <= 0.1
    found = asked(store(tmp_path / "more", requests(lambda hour: 1.15 if hour > 4.5 else 1.0)), code=None)
    assert "POST /predict p50" in {change["series"] for change in found["changes"]}


def test_a_slow_growth_is_a_slope(tmp_path: Path) -> None:
    """From the second hour on, by 30 % an hour: one slope, its beginning and its ms an hour, and no step."""
    folder = store(tmp_path / "store", requests(lambda hour: 1 + 0.3 * max(hour - 2, 0)))
    found = asked(folder, code=1)
    (change,) = [change for change in found["changes"] if change["series"] == "POST /predict inference p50"]
    assert change["kind"] == "slope"
    assert abs(change["at_unix_nano"] - NOON - 2 * HOUR) <= HOUR
    assert change["slope_ms_per_h"] == pytest.approx(0.3 * np.exp(3), rel=0.25)
    assert "has grown" in found["sentence"]


def test_a_release_is_a_moment_that_takes_less_evidence_than_one_that_is_sought() -> None:
    """A fifth more with a release, in noise in which no moment stands out; without the release nothing is said."""
    values = 30 * np.exp(np.random.default_rng(2).normal(0, 0.3, 200)) * np.where(np.arange(200) < 100, 1, 1.2)
    track = Track("shop", "POST /predict", None, None, "p50", NOON, MINUTE, tuple(map(float, values)), 2_000)
    release = Release(NOON + 100 * MINUTE, "shop", "service.version", "2.1.0")
    assert not drift.look([track])[0].changes
    (change,) = drift.look([track], [release])[0].changes
    assert (change.release, change.at_unix_nano) == (release, release.at_unix_nano)
    assert change.relative == pytest.approx(0.2, abs=0.1)
    assert not drift.look([replace(track, values=tuple(map(float, values[:100])))], [release])[0].changes


def test_a_walk_that_rises_is_said_with_its_slope() -> None:
    """A random walk has no moment at which it began: its slope is said instead of nothing, and is no bad answer."""
    values = 40 * np.exp(-np.cumsum(np.random.default_rng(7).normal(0.001, 0.02, 360)))
    track = Track("shop", "POST /predict", None, None, "p95", NOON, MINUTE, tuple(map(float, values)), 36_000)
    looked = drift.look([track])
    found = Tracks((track,), 36_000, NOON, NOON + 6 * HOUR, 1, 0, 0, 0, 0, sampled=False, unknown=False, within={})
    assert not looked[0].changes
    assert not drift.is_worse(looked[0])
    assert re.fullmatch(
        r"No change in 1 series over 6 h \(a step of \d+ % or more would have been seen in each\), but p95 of "
        r"POST /predict rises by \d\.\d\d ms an hour, from 4\d\.\d\d ms to [67]\d\.\d\d ms, without a moment at which "
        r"that began\.",
        view.sentence(found, looked, UTC),
    )
    flat = replace(track, values=tuple(map(float, 40 + np.random.default_rng(7).normal(0, 4, 360))))
    assert drift.look([flat])[0].trend is None


def test_least(stepped: Path) -> None:
    """Only changes of a practical size are told."""
    assert asked(stepped, "--least", "70%")["changes"] == []


def test_a_pattern_of_days_is_taken_out(tmp_path: Path) -> None:
    """Four days, slow each afternoon, and a step on the third: the step alone."""

    def factor(hour: float) -> float:
        return (1.6 if 13 <= hour % 24 < 18 else 1.0) * (1.4 if hour >= 62 else 1.0)

    folder = store(tmp_path / "store", requests(factor, count=20_000, hours=96))
    found = asked(folder, code=1)
    marks = [change["at_unix_nano"] for change in found["changes"] if change["series"] == "POST /predict p50"]
    assert [mark - NOON for mark in marks] == pytest.approx([62 * HOUR], abs=HOUR)
    daily = next(one for one in found["series"] if one["series"] == "POST /predict p50")
    assert daily["pattern_s"] == [86_400]
    days = requests(lambda hour: 1.6 if 13 <= hour % 24 < 18 else 1.0, count=20_000, hours=96)
    without = store(tmp_path / "same", days)
    assert asked(without)["changes"] == []


def test_a_clock_that_was_off_hides_nothing(tmp_path: Path) -> None:
    """Requests of 1970, of 1971 and of negative length are counted and said."""
    odd = [Made(90_000 + n, at, duration_ms=5.0) for n, at in enumerate((HOUR, 9000 * HOUR))]
    back = [Made(91_000 + n, NOON + n * MINUTE, {}, duration_ms=-3.0) for n in range(7)]
    found = asked(store(tmp_path / "store", [*requests(step), *odd, *back]), code=1)
    assert (found["outside"], found["negative"]) == (2, 7)
    change = next(one for one in found["changes"] if one["series"] == "POST /predict p50")
    assert abs(change["at_unix_nano"] - NOON - 3.5 * HOUR) <= 10 * MINUTE


def test_too_few_requests(tmp_path: Path) -> None:
    """It says how many would be enough, and which routes have too few; some dozens are looked at one by one."""
    found = asked(store(tmp_path / "few", requests(step, count=30)))
    assert found["sentence"].startswith("Not enough data: 30 requests over")
    assert "a route with 40 or more" in found["sentence"]
    found = asked(store(tmp_path / "dozens", requests(step, count=100)), code=1)
    assert re.match(
        r"p50 of POST /predict stepped up from \S+ ms to \S+ ms \(\+\d+ %\) at 15:3\d UTC", found["sentence"]
    )
    rare = requests(step, count=20, first=20_001, route="/rare", name="POST /rare")
    found = asked(store(tmp_path / "rare", [*requests(step, count=2000), *rare]), code=None)
    assert found["not_looked_at"] == {"too_few_requests": 1, "beyond_the_largest": 0}


def test_a_file_and_two_models(tmp_path: Path) -> None:
    """Of a file all is read; series are apart by model, and the sentence says which changed."""
    made = [
        *requests(step, count=3000, model="churn"),
        *requests(lambda _: 1.0, count=3000, first=10_001, model="rank"),
    ]
    found = answered("drift", "--store", lines(tmp_path / "spans.jsonl", made), code=None)
    assert {change["model"] for change in found["changes"]} == {"churn"}
    assert "(model churn)" in found["sentence"]


def test_quantiles_of_the_reduction(tmp_path: Path) -> None:
    """Against numpy over all values: out of bins 2 % wide to a few thousandths, and equal values exactly."""
    made = list(requests(step, count=3000))
    folder = store(tmp_path / "store", [*made, Made(50_000, NOON, {}, route="/one", duration_ms=7.25)])
    values = {"origin": NOON, "width": HOUR, "least": 1}
    with reading(folder) as relations:
        rows = relations.reduce("quantiles_over_time", ["path"], **values)
    ours = {(row["path"], row["part"], row["bucket"]): row for row in rows}
    for hour in range(6):
        took = [one.took_ms for one in made if hour <= (one.start_unix_nano - NOON) / HOUR < hour + 1]
        row = ours["/predict", "request", hour]
        assert (row["stored"], row["requests"]) == (len(took), len(took))
        for name, q in (("p50_ms", 0.5), ("p95_ms", 0.95), ("p99_ms", 0.99)):
            assert row[name] == pytest.approx(np.quantile(took, q, method="hazen"), rel=0.005)
    assert [ours["/one", "request", 0][name] for name in ("p50_ms", "p95_ms", "p99_ms")] == [7.25] * 3


def test_sampled_requests_count_for_as_many_as_they_stand_for(tmp_path: Path) -> None:
    """Fast ones at one in ten beside all breaches: the median is that of the fast ones."""
    fast = [Made(n, NOON, {"inference": 10 + n / 100}, probability=0.1, within_ms=50) for n in range(1, 101)]
    slow = [Made(n, NOON, {"inference": 90.0 + n / 100}, probability=0.1, within_ms=50) for n in range(101, 301)]
    folder = store(tmp_path / "store", [*fast, *slow])
    with reading(folder) as relations:
        (row,) = relations.reduce("quantiles_over_time", origin=NOON, width=HOUR, least=1)[:1]
    assert row["stored"] == 300
    assert row["requests"] == pytest.approx(1200)
    assert row["p50_ms"] == pytest.approx(10.6, abs=0.02)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "_PAUSE_S", 0.01)


@contextmanager
def receiver(statuses: Iterable[int]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Run a server that takes alarms; it answers with these statuses in turn, and then with 200."""
    taken: list[dict[str, Any]] = []
    left = iter(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(next(left, 200))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/s3cret", taken
        server.shutdown()
        thread.join()


def test_a_watch_reports_each_new_alarm_once(tmp_path: Path) -> None:
    """A folder that is written to meanwhile, a webhook on a real socket that fails at first, and Ctrl-C."""
    folder = tmp_path / "store"
    made = list(requests(step, count=4000))
    quiet = [one for one in made if one.start_unix_nano < NOON + 3 * HOUR]
    store(folder, quiet)
    options = ("--watch", "--interval", "0.3", "--json")
    with receiver([500]) as (url, taken):
        command = [*COMMAND, "drift", "--store", str(folder), *EVER, *options, "--webhook", url]
        with subprocess.Popen(
            command, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            assert process.stdout is not None
            try:
                assert "Ctrl-C ends" in process.stderr.readline()
                store(folder, made[len(quiet) :])
                alarm = json.loads(process.stdout.readline())
                deadline = time.monotonic() + 30
                while len(taken) < 2 and time.monotonic() < deadline:
                    time.sleep(0.05)
                process.send_signal(signal.SIGINT)
                rest, errors = process.communicate(timeout=30)
                assert process.returncode == 0
            finally:
                process.kill()
    assert "stepped up" in alarm["sentence"]
    told = [alarm, *map(json.loads, rest.splitlines())]
    names = [one["series"] for one in told]
    assert len(names) == len(set(names))
    assert taken[0] == taken[1] == alarm
    assert "s3cret" not in errors


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("statuses", "tries"), [([500, 503], 3), ([404], 1), ([500] * 3, 3)])
def test_a_webhook_tries_three_times(statuses: list[int], tries: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What a server refuses is final, what it fails at is tried again; a failure is said without the URL's path."""
    with receiver(statuses) as (url, taken):
        hook = view.Webhook(url)
        hook.post({"series": "one"})
    assert len(taken) == tries
    failed = statuses[-1] == 404 or len(statuses) == 3
    assert hook.failed == failed
    errors = capsys.readouterr().err
    assert ("did not take an alarm: it responded" in errors) == failed
    assert "s3cret" not in errors


@pytest.mark.usefixtures("quick")
def test_a_webhook_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Failures are counted, and the watch goes on."""
    hook = view.Webhook("http://127.0.0.1:9/s3cret")
    hook.post({})
    hook.post({})
    assert "2 alarms not posted so far" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_a_webhook_that_speaks_no_http(capsys: pytest.CaptureFixture[str]) -> None:
    """What no server of HTTP would answer is a failure like any other."""

    def answer(listening: socket.socket) -> None:
        for _ in range(3):
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"hello\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,), daemon=True)
        thread.start()
        hook = view.Webhook(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        hook.post({})
        thread.join()
    assert hook.failed == 1
    assert "did not take an alarm: hello" in capsys.readouterr().err
