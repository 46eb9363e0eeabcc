"""No answer prints more than 20 lines of 100 columns unasked, however much there is to say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from answers.made import EVER, MS, NOON, Made, store
from cli.running import cli
from stagetrace.cli.registry import ANSWERS

if TYPE_CHECKING:
    from pathlib import Path

LINES, WIDTH = 20, 100
SHORT = {
    **{verb: [] for verb in ANSWERS},
    "cost": ["--price", "per_hour=1"],
    "segments": ["--by", "tenant.id"],
    "breaches": [],
    "stages": [],
    "why": [],
    "sla suggest": ["--target", "95%"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of 40 routes of 3 services, each with an objective, and of 60 tenants; one release is slower."""
    made = [
        Made(
            number,
            NOON + number * 500 * MS,
            {"preprocess": 3.0 + number % 5, "inference": 20.0 + number % 7 + 40 * (number > 900 and number % 3 == 0)},
            service=f"service-{number % 3}",
            route=f"/a/rather/long/route/{number % 40}",
            name=f"POST /a/rather/long/route/{number % 40}",
            model="ranker",
            version="2" if number > 900 else "1",
            within_ms=50,
            objective=f"POST /a/rather/long/route/{number % 40} within 50ms",
            cause="compute" if number % 2 else "io_wait",
            attributes={"tenant.id": f"tenant-{number % 60}", "sla.breach.code": f"app.py:{number % 50} in predict"},
            resource={"service.version": "1.1" if number > 900 else "1.0", "service.instance.id": f"i{number % 4}"},
        )
        for number in range(1, 1801)
    ]
    return store(tmp_path_factory.mktemp("short") / "store", made)


@pytest.mark.thorough
@pytest.mark.parametrize("verb", SHORT)
def test_an_answer_is_short_unless_it_shall_be_long(verb: str, folder: Path) -> None:
    until = ("--until", "2026-03-02") if verb in ("slo", "report", "cost") else ()
    asked = (*verb.split(" ", 1), "--store", folder, *EVER, *until, *SHORT[verb])
    lines = cli(*map(str, asked), COLUMNS=str(WIDTH)).stdout.splitlines()
    assert lines
    assert sum(-(-max(1, len(line)) // WIDTH) for line in lines) <= LINES
    if verb == "why":  # it is short as it is
        return
    assert len(cli(*map(str, asked), "--long", COLUMNS=str(WIDTH)).stdout.splitlines()) > len(lines)
