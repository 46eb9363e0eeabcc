"""`stagetrace what-if` over stores: what it answers, what it refuses, and a service that gets a worker more."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from benchmarks.what_if.evaluate import compared
from benchmarks.what_if.record import base, main

from answers.made import EVER, MS, NOON, Made, store
from cli.running import answered, cli, printed, refused

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WORK_MS = 10


def requests(count: int = 1200, service: str = "shop", first: int = 1) -> Iterator[Made]:
    """Yield requests of a process that takes one at a time, at 80 % of what it takes."""
    chance, arrive, free = random.Random(first), 0.0, 0.0
    for number in range(first, first + count):
        arrive += chance.expovariate(0.8 / WORK_MS)
        begin, work = max(arrive, free), chance.gammavariate(4, WORK_MS / 4)
        free = begin + work
        yield Made(
            number,
            NOON + round(arrive * MS),
            {"queue": begin - arrive, "preprocess": 0.2 * work, "inference": 0.8 * work},
            service=service,
            within_ms=50,
            with_stage_spans=True,
            stage_attributes={"queue": {"queue.reason": "socket"}},
            resource={"service.instance.id": "one", "stagetrace.process.cpus": 4.0},
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(store(tmp_path_factory.mktemp("what-if") / "store", requests()))


def test_a_change_alone_and_with_others(folder: str) -> None:
    found = answered(
        "what-if", *EVER, "--store", folder, "--workers", "2", "--rate", "x1.1", "--stage", "inference -50%", "--json"
    )
    assert found["complete"] is True
    assert found["refusal"] is None
    assert found["waits_reproduced"] == pytest.approx(1, abs=0.1)
    p99 = {one["change"]: one["percentiles_ms"]["p99"] for one in found["changes"]}
    assert list(p99) == ["2 workers", "load x1.1", "inference -50 %", "2 workers, load x1.1, inference -50 %"]
    now = found["recorded"]["percentiles_ms"]["p99"]["value"]
    assert p99["2 workers"]["value"] < now / 2 < now < p99["load x1.1"]["value"]
    for one in p99.values():
        assert one["low"] <= one["value"] <= one["high"]
    assert found["sentence"].startswith("With 2 workers, load x1.1, inference -50 %: p99 of service shop ")
    assert found["changes"][0]["breaches"]["value"] < found["recorded"]["breaches"]["value"]
    assert found["changes"][0]["use"]["each worker"] == pytest.approx(0.4, abs=0.05)


def test_it_is_short_and_says_what_to_run_next(folder: str) -> None:
    lines = printed("what-if", *EVER, "--store", folder, COLUMNS="100").splitlines()
    assert len(lines) <= 20
    assert lines[0].startswith("With 2 workers: p99 of service shop ")
    assert lines[-1].startswith("Next: stagetrace capacity ")
    assert "The model: 1 worker, each at work for one request at a time" in printed(
        "what-if", *EVER, "--store", folder, "--long"
    )


def test_the_least_change(folder: str) -> None:
    found = answered("what-if", *EVER, "--store", folder, "--find", "p99 < 60ms", "--json")
    assert found["changes"]
    assert all(one["percentiles_ms"]["p99"]["value"] < 60 for one in found["changes"])
    nothing = answered("what-if", *EVER, "--store", folder, "--find", "p99 < 1ms", "--json")
    assert nothing["changes"] == []
    assert nothing["sentence"] == "No single change that was tried reaches p99 < 1ms for service shop."


def test_what_cannot_be_told_is_no_answer(tmp_path: Path) -> None:
    both = [*requests(100), *requests(100, "api", 1000)]
    folder = str(store(tmp_path / "store", both))
    done = cli("what-if", *EVER, "--store", folder, "--workers", "2")
    assert done.returncode == 2
    assert "A model is of one service, and there are 2: api, shop." in done.stdout
    few = cli("what-if", *EVER, "--store", folder, "--service", "api", "--workers", "2")
    assert few.returncode == 2
    assert "100 requests are stored, and a model needs 500. What would help: " in few.stdout
    part = cli("what-if", *EVER, "--store", folder, "--service", "api", "--route", "/predict")
    assert part.returncode == 2
    assert "only some of its requests are selected" in part.stdout


@pytest.mark.parametrize(
    ("option", "why"),
    [
        (("--rate", "fast"), "'fast' is no rate; write x1.5"),
        (("--stage", "inference"), "'inference' is no change of a stage; write 'inference -20%'"),
        (("--stage", "inference -120%"), "is no change of a stage"),
        (("--move", "POST /embed"), "moves nothing; write 'POST /embed off the loop'"),
        (("--find", "p42 < 1ms"), "is no goal; write 'breaches < 1 %' or 'p99 < 100ms'"),
        (("--find", "breaches < 1ms"), "is no goal"),
        (("--threads", "8"), "no request waited for a thread of a pool"),
        (("--without", "tokenize"), "no request has stage 'tokenize'"),
    ],
)
def test_what_is_wrong_is_said(folder: str, option: tuple[str, str], why: str) -> None:
    assert why in refused("what-if", *EVER, "--store", folder, *option)


@pytest.mark.heavy
def test_a_worker_more_does_what_was_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the demo's service: predicted from one worker, then run with two."""
    assert base("ticket_router").workers == 1
    before, after = (tmp_path / f"ticket_router-{name}-70" for name in ("base", "workers2"))
    ids = f"{before.name},{after.name}"
    monkeypatch.setattr("sys.argv", ["record", "--folder", str(tmp_path), "--cells", ids])
    main()
    row = compared(before, after, runs=8)
    assert row["refusal"] is None
    # Half of the way from what was to what came is far more than chance.
    assert abs(row["p95"] - row["p95_actual"]) < abs(row["p95_before"] - row["p95_actual"]) / 2
