"""`stagetrace breaches --group`: breaches that are alike, as one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from answers.made import EVER, MS, NOON, Made, lines, store
from cli.running import answered, cli, printed

if TYPE_CHECKING:
    from pathlib import Path

IN_PREDICT, IN_LOAD = "app.py:41 in predict", "app.py:7 in load"


def _breach(number: int, over_ms: float, code: str | None, **more: Any) -> Made:
    """Return a breach that began so many seconds after noon as its number has it."""
    attributes = {"sla.breach.code": code}
    return Made(
        number, NOON + number * 1000 * MS, {"inference": 50 + over_ms}, within_ms=50, attributes=attributes, **more
    )


SPANS = [
    _breach(1, 30, IN_PREDICT, cause="lock_wait"),
    _breach(2, 10, IN_PREDICT, cause="lock_wait"),
    _breach(3, 80, IN_PREDICT, cause="lock_wait"),
    _breach(4, 20, IN_PREDICT, cause="gc"),
    _breach(5, 20, IN_LOAD, cause="lock_wait"),
    _breach(6, 40, IN_LOAD, cause="lock_wait"),
    _breach(7, 20, None, cause="lock_wait"),
    _breach(8, 20, IN_PREDICT, cause="lock_wait", route="/rank"),
    _breach(9, 20, IN_PREDICT, cause="lock_wait", service="search"),
    _breach(10, 20, IN_PREDICT, cause="lock_wait", stage="preprocess"),
    Made(11, NOON, within_ms=50),
]
LARGEST = {
    "service": "shop",
    "route": "/predict",
    "stage": "inference",
    "cause": "lock_wait",
    "code": IN_PREDICT,
    "breaches": 3,
    "first_unix_nano": NOON + 1000 * MS,
    "last_unix_nano": NOON + 3000 * MS,
    "median_overrun_ms": 30.0,
    "worst_overrun_ms": 80.0,
    "worst_trace_id": f"{3:032x}",
}


@pytest.fixture(scope="module", params=["local", "file"])
def spans(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    return store(folder / "store", SPANS) if request.param == "local" else lines(folder / "spans.jsonl", SPANS)


def test_breaches_that_are_alike_are_one_group(spans: Path) -> None:
    """One that differs in service, route, stage, cause or line is of another; the largest come first."""
    found = answered("breaches", "--group", "--store", spans, *EVER)
    assert found["complete"]
    assert (found["requests"], found["missed"], found["different"]) == (11, 10, 7)
    first, second, *others = found["groups"]
    assert first == LARGEST
    assert (second["code"], second["breaches"], second["worst_overrun_ms"]) == (IN_LOAD, 2, 40.0)
    kinds = [(one["service"], one["route"], one["stage"], one["cause"], one["code"], one["breaches"]) for one in others]
    assert kinds == [
        ("shop", "/predict", "preprocess", "lock_wait", IN_PREDICT, 1),
        ("search", "/predict", "inference", "lock_wait", IN_PREDICT, 1),
        ("shop", "/rank", "inference", "lock_wait", IN_PREDICT, 1),
        ("shop", "/predict", "inference", "lock_wait", None, 1),
        ("shop", "/predict", "inference", "gc", IN_PREDICT, 1),
    ]


def test_a_line_of_code_selects_among_the_groups(spans: Path) -> None:
    found = answered("breaches", "--group", "--code", "app.py:7", "--store", spans, *EVER)
    assert [(one["code"], one["breaches"]) for one in found["groups"]] == [(IN_LOAD, 2)]
    assert (found["missed"], found["different"], found["complete"]) == (2, 1, True)


def test_a_limit_is_of_groups_and_what_it_cuts_off_is_reported(spans: Path) -> None:
    at = ("--group", "--store", spans, *EVER, "--limit", "1")
    done = cli("breaches", "--json", *map(str, at))
    reason = "limit 1 reached, there are 6 smaller groups"
    assert (done.returncode, done.stderr) == (0, f"stagetrace: INCOMPLETE: {reason}\n")
    assert f'"complete": false, "reason": "{reason}", "requests": 11' in done.stdout
    said = printed("breaches", *at)
    assert "These are the largest 1 of 7 groups; --limit 7 shows all.\n" in said


def test_people_see_line_count_and_times(spans: Path) -> None:
    said = printed(
        "breaches", "--group", "--store", spans, *EVER, "--service", "shop", "--route", "/predict"
    ).splitlines()
    assert said[0].startswith("8 of 9 judged requests missed their objective, ")
    head, largest = said[4], said[5]
    assert head.split("  ")[0] == "breaches"
    for text in ("inference (lock_wait)", IN_PREDICT, "30.00 ms", "80.00 ms", "12:00:01", "12:00:03"):
        assert text in largest
    assert said[-1] == f"See the worst of the largest group: stagetrace trace {3:032x} --store {spans}"


def test_groups_fail_as_the_list_does(tmp_path: Path, spans: Path) -> None:
    assert cli("breaches", "--group", "--fail", "--store", str(spans), *EVER).returncode == 1
    good = lines(tmp_path / "good.jsonl", [Made(1, within_ms=50)])
    found = answered("breaches", "--group", "--fail", "--store", good)
    assert (found["groups"], found["different"], found["missed"]) == ([], 0, 0)
