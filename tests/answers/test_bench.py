"""`stagetrace bench` against real services of known capacity, and over stores of their spans."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from answers.loaded import watched, worker
from answers.made import MS, NOON, Made, lines, store
from cli.running import COMMAND, answered, cli, environment, printed, refused, time_of
from stagetrace.analysis import bench
from stagetrace.analysis.bench_objective import Objective
from stagetrace.cli.bench import load_run
from stagetrace.cli.bench.load_run import Bench, join
from stagetrace.cli.bench.options import sender
from stagetrace.cli.bench.view import Report, answer
from stagetrace.cli.main import parser_for
from stagetrace.load import base as target

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")


def benched(code: int, *arguments: str, **changes: str) -> Any:
    return answered("bench", *arguments, code=code, **changes)


QUICK = ("--duration", "1s", "--warmup", "0.2s")


@pytest.mark.smoke
def test_a_valid_run_gives_what_the_objective_asks() -> None:
    with worker() as url:
        made = benched(0, url, "--rate", "600", *QUICK, "--objective", "p99:20s")
    expected = {"complete": True, "rate": 600, "valid": True, "requests": 600, "failed": 0, "failures": {}}
    assert {key: made[key] for key in expected} == expected
    assert made["needed_queries"] == 459
    assert made["objective"] == {"objective": "p99:20000ms", "percentile": 0.99, "limit_ms": 20000, "verdict": "kept"}
    p50, p99 = made["quantiles"]["p50"], made["quantiles"]["p99"]
    assert 0 < p50 <= p99 <= made["quantiles_at_most"]["p99"] <= made["max_ms"]
    assert made["sentence"].startswith("At 600 requests/s p99 keeps the objective of 20000 ms: ")
    assert (made["stages"], made["joined"], made["found"]) == ({}, 0, None)
    assert any("no store" in note for note in made["notes"])


def test_a_stall_of_the_server_is_in_the_quantiles() -> None:
    """1 s of 3 stalls at 100 requests/s: a third of all requests wait, up to 1 s, and p90 is 0.7 s by arithmetic.

    A generator that waited for responses would have seen one slow request of some 200.
    """
    with worker(0.0, stall_s=1.0, stalls_at=100) as url:
        made = benched(1, url, "--rate", "100", "--duration", "3s", "--warmup", "0s", "--objective", "p90:500ms")
    assert made["requests"] == 300
    assert made["max_ms"] >= 1000
    assert made["over"] >= 50
    assert made["quantiles"]["p90"] >= 690
    assert made["objective"]["verdict"] == "broken"
    assert "p90 breaks the objective of 500 ms" in made["sentence"]


def test_too_few_requests_are_not_enough_data_and_the_number_needed_is() -> None:
    with worker() as url:
        made = benched(1, url, "--rate", "50", *QUICK, "--objective", "p99:20s")
    assert (made["valid"], made["needed_queries"], made["quantiles_at_most"]["p99"]) == (False, 459, None)
    assert "50 requests are too few: 459 would be enough" in made["sentence"]


def test_responses_of_another_status_are_failures_and_slower_than_all_others() -> None:
    with worker(status=503) as url:
        made = benched(1, url, "--rate", "100", *QUICK)
        expected = benched(1, url, "--rate", "100", *QUICK, "--expect", "200,503")
    assert (made["failed"], made["failures"], made["quantiles"]["p50"]) == (100, {"status 503": 100}, None)
    assert any("no request was answered as expected" in reason for reason in made["reasons"])
    assert (expected["failed"], expected["failures"]) == (0, {})


def test_the_highest_rate_of_one_worker_that_sleeps_20_ms_is_found() -> None:
    """Its capacity is 50/s: p50 within 300 ms holds below, and above the backlog grows until it breaks."""
    with worker(0.02) as url:
        options = ("--find", "p50:300ms", "--rate", "20", "--duration", "2s", "--warmup", "0.1s", "--json")
        done = cli("bench", url, *options)
    found = json.loads(done.stdout)
    rate, (low, high) = found["found"]["rate"], found["found"]["interval"]
    assert done.returncode == (1 if low is None else 0)
    assert found["valid"] is (low is not None)
    assert (low or 0) <= rate <= (high or inf)
    assert 25 <= rate <= 60
    assert (low or 0) <= 55
    assert (high or inf) >= 45
    assert f"p50 keeps 300 ms up to {rate:.4g} requests/s" in found["sentence"]
    assert len(found["steps"]) > 2
    assert found["rate"] == rate


def test_a_search_whose_time_is_up_names_what_it_has_not_shown() -> None:
    with worker() as url:
        made = benched(1, url, "--find", "p99:20s", "--rate", "40", "--warmup", "0s", "--max-time", "1s")
    assert made["complete"] is False
    assert "give it more by --max-time" in made["reason"]
    assert made["sentence"] == "The rate at which p99 keeps 20000 ms is unknown: none was tried for long enough."
    assert made["found"] == {"rate": None, "interval": [None, None]}


@pytest.mark.parametrize(("late", "steps"), [(1, 3), (9, 3)])
def test_a_step_for_which_the_generator_was_late_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, late: int, steps: int
) -> None:
    """Once; after three such steps the search ends."""
    calls: list[float] = []

    def measured(sends: Any, rate: float, *given: Any) -> Any:
        calls.append(rate)
        return replace(bench.step(sends, rate, *given), is_late=len(calls) <= late)

    monkeypatch.setattr(load_run, "step", measured)
    options = ("--find", "p50:20s", "--rate", "40", "--max-rate", "40", "--duration", "0.3s", "--warmup", "0s")
    with worker() as url:
        made = benched(0 if late == 1 else 1, url, *options)
    assert calls == [40.0] * steps
    assert made["found"]["rate"] == (40 if late == 1 else None)
    assert made["complete"] is (late == 1)


def test_several_rates_show_up_to_which_the_objective_is_kept() -> None:
    with worker(0.02) as url:
        made = benched(0, url, "--rates", "20,150", "--duration", "1.5s", "--warmup", "0s", "--objective", "p50:400ms")
    assert [step["verdict"] for step in made["steps"]] == ["kept", "broken"]
    assert made["rate"] == 20
    assert made["sentence"].startswith("p50 keeps 400 ms up to 20 requests/s; at 150 requests/s p50 breaks")


def test_poisson_arrivals_and_a_cycle_of_bodies(tmp_path: Path) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_text('{"x": 1}\n\n{"x": 2}\n')
    with worker() as url:
        options = ("--arrivals", "poisson", "--seed", "3", "--bodies", str(bodies), "-H", "x-key: 1")
        made = benched(1, url, "--rate", "100", *QUICK, *options)
    assert made["arrivals"] == "poisson"
    assert made["requests"] != 100  # as the seed has it
    assert made["failed"] == 0


def test_recorded_requests_are_replayed_as_far_apart_as_they_were(tmp_path: Path) -> None:
    recorded = [Made(number, NOON + at * MS, {"inference": 5.0}) for number, at in enumerate((0, 400, 500, 2000), 1)]
    other = Made(9, NOON + 100 * MS, {"inference": 5.0}, route="/other")
    folder = str(store(tmp_path / "store", [*recorded, other]))
    options = ("--replay", "--store", folder, "--since", time_of(NOON), "--route", "/predict", "--wait", "10ms")
    with worker() as url:
        made = benched(1, url, *options, "--speed", "4")
        short = benched(1, url, *options, "--speed", "4", "--duration", "0.2s")
    assert (made["requests"], made["arrivals"]) == (4, "replay")
    assert made["rate"] == pytest.approx(3 / 0.5)
    assert short["requests"] == 3


def test_the_servers_stages_are_joined_by_trace_id(tmp_path: Path) -> None:
    """A store that gets, after the run, spans with the ids that the requests carried: here made of them."""
    with worker(0.02) as url:
        argv = ["bench", url, "--rate", "100", *QUICK, "--objective", "p50:200ms"]
        args = parser_for("bench").parse_args(argv)
        result = Bench(args, sender(args), lambda *_: None).run(100)
    one = result.steps[0]
    requests = []
    for number, trace_id in enumerate(one.trace_ids):
        took = float(one.latency_ms[number]) - 3
        made = Made(number + 1, result.since_unix_nano + number, {"queue": max(0.0, took - 20), "inference": 20.0})
        requests.append((trace_id, made))
    folder = _with_ids(tmp_path, requests)
    joined = join(folder, result, 10.0, lambda *_: None)
    assert len(joined.found) == 100
    assert joined.note is None
    made_answer = answer(Report(result, Objective(0.5, 200), joined), {}, None, [])
    assert made_answer.is_bad
    excess = made_answer.keys["excess"]
    assert excess["shares"]["queue"] > 0.9
    assert " % of the excess is queue" in made_answer.sentence
    assert made_answer.keys["stages"]["inference"]["p50"] == pytest.approx(20)
    assert made_answer.keys["joined"] == 100


def _with_ids(tmp_path: Path, requests: list[tuple[str, Made]]) -> str:
    """Return a file of spans with these trace ids."""
    path = lines(tmp_path / "spans.jsonl", [made for _, made in requests])
    text = path.read_text()
    for number, (trace_id, _) in enumerate(requests, 1):
        text = text.replace(f'"{number:032x}"', f'"{trace_id}"')
    path.write_text(text)
    return str(path)


def test_a_store_without_spans_of_the_requests_is_reported(tmp_path: Path) -> None:
    folder = str(store(tmp_path / "store", [Made(1, NOON, {"inference": 5.0})]))
    with worker() as url:
        made = benched(1, url, "--rate", "20", *QUICK, "--store", folder, "--wait", "50ms")
    assert made["stages"] == {}
    assert any("got no spans of these requests" in note for note in made["notes"])


def test_a_run_is_compared_with_a_baseline_and_a_gate_fails_where_it_is_surely_slower(tmp_path: Path) -> None:
    home = {"XDG_DATA_HOME": str(tmp_path)}
    with worker() as url:
        benched(1, url, "--rate", "100", *QUICK, "--save", "before", **home)
        same = benched(1, url, "--rate", "100", *QUICK, "--against", "before", "--gate", "p50:+100000%", **home)
    with worker(0.009) as url:
        slower = benched(1, url, "--rate", "100", *QUICK, "--against", "before", "--gate", "p50:+10%", **home)
    assert same["comparison"]["is_slower"] is False
    assert same["sentence"].partition(" Against the baseline before: p50 ")[2].count(" %") == 3  # and intervals
    median = next(one for one in slower["comparison"]["quantiles"] if one["q"] == "p50")
    assert median["b_ms"] > 9
    assert median["interval"][0] <= median["difference"] <= median["interval"][1]
    assert slower["comparison"]["is_slower"] is (median["interval"][0] > 0.1)
    kept = json.loads((tmp_path / "stagetrace-bench" / "before.json").read_text())
    assert len(kept["latency_ms"]) == 100
    assert not (tmp_path / "stagetrace").exists()  # which would look like a store


def test_more_requests_than_can_be_planned_are_refused_before_one_is_sent() -> None:
    with worker() as url:
        said = refused("bench", url, "--rate", "1000000", "--duration", "60")
    assert said == (
        "stagetrace: 60,000,000 requests are more than bench sends at one rate (2,000,000)\n"
        "give a lower --rate, or a shorter --duration\n"
    )


def test_what_is_not_installed_is_reported_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "find_spec", lambda name: None if name == "httptools" else True)
    said = refused("bench", "http://localhost:1/")
    assert said.startswith("stagetrace: bench needs httptools\npip install ")
    assert "[bench]" in said


def test_a_header_cannot_begin_another_one() -> None:
    assert "none may have" in refused("bench", "http://localhost:1/", "-H", "a: b\r\nc: d")


@pytest.mark.parametrize("form", ["text", "markdown", "html"])
def test_each_form_begins_with_the_sentence(form: str) -> None:
    with worker() as url:
        shown = printed("bench", url, "--rate", "50", *QUICK, "--long", "--format", form, code=1)
    assert "At 50 requests/s p50 is" in shown
    assert "latency from the intended start" in shown


def test_ctrl_c_stops_sending_and_gives_what_there_is() -> None:
    with watched() as (url, until_asked):
        argv = [*COMMAND, "bench", url, "--rate", "100", "--duration", "60s", "--warmup", "0s", "--json"]
        process = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert until_asked() == "asked\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    made = json.loads(output)
    assert made["complete"] is False
    assert 0 < made["requests"] < 6000
    assert f"interrupted after {made['requests']} of 6000 requests" in made["reason"]
    assert "Traceback" not in errors
