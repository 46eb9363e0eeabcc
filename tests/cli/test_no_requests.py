"""Traces without a span of kind SERVER, of batch jobs and of other senders: the newest root stands for the request."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from answers.made import EVER, MS, NOON, Made, as_json, messages
from cli.running import answered, cli
from messages import leaves
from stagetrace.store.local.store import LocalStore

if TYPE_CHECKING:
    from pathlib import Path

MADE = [
    Made(number, NOON + number * MS, {"load": 3.0, "fit": 40.0}, "jobs", name=f"job {number}", with_stage_spans=True)
    for number in range(1, 4)
]
NEWEST = f"{3:032x}"
NOTE = "no span here is a request (of kind SERVER); the newest root is job 3 of jobs"


@pytest.fixture(scope="module", params=["file", "local"])
def jobs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store of three traces of jobs, whose roots are INTERNAL spans, and a file of them."""
    (message,) = messages(MADE)
    for _, _, span in leaves(message):
        span.kind = span.SPAN_KIND_INTERNAL
    folder = tmp_path_factory.mktemp("jobs")
    if request.param == "file":
        path = folder / "spans.jsonl"
        path.write_text(json.dumps(as_json(message)) + "\n")
        return path
    with LocalStore.open(folder / "store") as opened:
        opened.append(message.SerializeToString())
    return folder / "store"


def test_the_latest_trace_is_that_of_the_newest_root_and_says_so(jobs: Path) -> None:
    for service in ([], ["--service", "jobs"]):
        done = cli("trace", "latest", "--store", str(jobs), "--json", *service)
        assert (done.returncode, json.loads(done.stdout)["trace_id"]) == (0, NEWEST)
        assert done.stderr == f"stagetrace: {NOTE}\n"
    missing = cli("trace", "latest", "--store", str(jobs), "--service", "nobody")
    assert missing.returncode == 2
    assert cli("trace", "latest", "--breached", "--store", str(jobs)).returncode == 2


@pytest.mark.parametrize("options", [["--trace", "latest"], []])
def test_its_critical_path_is_the_bottleneck(jobs: Path, options: list[str]) -> None:
    found = answered("bottleneck", *EVER, "--store", jobs, *options)
    assert found["sentence"] == (
        f"{NOTE[:1].upper()}{NOTE[1:]}: jobs fit is 93 % of the critical path of jobs job 3, 40.00 ms of 43.00 ms."
    )
    assert found["trace_id"] == NEWEST
    assert [one["name"] for one in found["critical_path"]] == ["load", "fit"]
    assert options or (found["requests"], found["stages"]) == (0, [])


def test_requests_names_the_trace_that_can_be_looked_at(jobs: Path) -> None:
    done = cli("requests", *EVER, "--store", str(jobs))
    assert (done.returncode, done.stdout) == (0, "No requests.\n")
    assert done.stderr == f"stagetrace: {NOTE}: stagetrace trace {NEWEST}\n"
    filtered = cli("requests", *EVER, "--store", str(jobs), "--since", "2026-04-01")
    assert re.fullmatch(r"No requests since .*\n", filtered.stdout)
    assert filtered.stderr == ""
