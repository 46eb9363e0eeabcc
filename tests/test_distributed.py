"""The three services of examples/distributed: each judges its own requests, and a breach is followed to its owner."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from backend.processes import until
from backend.running import environment, run_up
from backends import CONFIG
from cli.running import answered
from stagetrace.analysis.breach_details import owner_of
from stagetrace.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.usefixtures("services")

ROOT = CONFIG.parent
PAGE = (ROOT / "docs" / "distributed.md").read_text()
SERVICES = {"gateway", "features", "scorer"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("distributed")
    with run_up(folder) as up:
        env = environment({"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{up.target()}"})
        run = [sys.executable, str(ROOT / "examples" / "distributed" / "run.py")]
        done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        TRACES.update(dict(re.findall(r"^(.*): stagetrace trace (\w+)$", done.stdout, re.MULTILINE)))
        yield f"local://{folder / 'data'}"


TRACES: dict[str, str] = {}


def trace_of(store: str, what: str) -> list[dict[str, Any]]:
    """Return the spans of one of the example's requests, once those of all three services are there."""

    def spans() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = answered("trace", TRACES[what], "--store", store)["spans"]
        return found

    until(lambda: sum(one["kind"] == "SERVER" for one in spans()) == len(SERVICES))
    return spans()


def breach_of(store: str, what: str) -> Mapping[str, Any]:
    """Return the gateway's breach in the trace of one of the example's requests, once it is there."""

    def whole() -> list[dict[str, Any]]:
        listed = answered("breaches", "--each", "--store", store, "--service", "gateway")["breaches"]
        return [one for one in listed if one["trace_id"] == TRACES[what] and one["owner"]["complete"]]

    until(whole)
    return whole()[0]


def test_a_trace_is_one_tree_of_three_services(store: str) -> None:
    spans = trace_of(store, "an ordinary one")
    entries = {one["service"]: one for one in spans if one["kind"] == "SERVER"}
    calls = {one["attributes"].get("rpc.method", "http"): one for one in spans if one["kind"] == "CLIENT"}
    stages = {one["span_id"]: one for one in spans if "ml.stage" in one["attributes"]}
    assert set(entries) == SERVICES
    assert entries["features"]["parent_span_id"] == calls["http"]["span_id"]
    assert entries["scorer"]["parent_span_id"] == calls["shop.Scorer/Score"]["span_id"]
    for call in calls.values():
        above = stages[call["parent_span_id"]]
        assert (above["service"], above["name"]) == ("gateway", "handler")
        assert above["parent_span_id"] == entries["gateway"]["span_id"]


def test_each_service_judges_its_own_promise(store: str) -> None:
    spans = trace_of(store, "all items at once")
    promised = {one["service"]: one["attributes"]["sla.objective"] for one in spans if one["kind"] == "SERVER"}
    assert promised == {
        "gateway": "GET /recommend/{user} within 250ms",
        "features": "GET /features/{user} within 50ms",
        "scorer": "shop.Scorer/Score within 100ms",
    }


@pytest.mark.parametrize(
    ("what", "service", "stage"),
    [
        ("a user who is not in the features' cache", "features", "handler"),
        ("all items at once", "scorer", "inference"),
        ("features at the far end of a long line", "gateway", "wire"),
    ],
)
def test_a_breach_is_followed_down_to_who_owns_the_time(store: str, what: str, service: str, stage: str) -> None:
    breach = breach_of(store, what)
    assert (breach["stage"], breach["cause"]) == ("handler", "downstream")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", breach["peer"])
    assert breach["peer"] in breach["evidence"]
    assert (breach["owner"]["service"], breach["owner"]["stage"]) == (service, stage)
    assert breach["path"][0]["service"] == "gateway"
    reported = re.findall(r"([\d.]+) ms (queue|compute|other work)|(network) took ([\d.]+)", breach["evidence"])
    took = {kind or network: float(ms or network_ms) for ms, kind, network, network_ms in reported}
    assert max(took, key=lambda kind: took[kind]) == {"handler": "other work", "wire": "network"}.get(stage, "compute")
    if stage == "wire":
        assert breach["owner"]["peer"] == "features"
        assert breach["owner"]["duration_ms"] >= 400 * 0.9
    else:
        assert breach["owner"]["duration_ms"] >= (500 * 0.9 if service == "features" else 50)


def test_a_downstream_trace_that_is_missing_is_reported(store: str) -> None:
    """As if the feature service were not traced: the store lacks its spans."""
    breach_of(store, "features at the far end of a long line")
    with open_store(store) as reader:
        spans = list(reader.trace(TRACES["a user who is not in the features' cache"]).spans)
    gateway = next(one for one in spans if one.kind == "SERVER" and one.service == "gateway")
    owner = owner_of(gateway, [one for one in spans if one.service != "features"])
    assert owner.reason is not None
    assert owner.reason.endswith("which gateway waited for, has left no trace here")


def test_the_query_of_the_docs_gives_the_time_on_the_wire(store: str) -> None:
    (query,) = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    breach_of(store, "features at the far end of a long line")
    answer = answered("query", query, "--store", store)
    rows = [dict(zip(answer["columns"], row, strict=True)) for row in answer["rows"]]
    wires = {(row["caller"], row["called"]): row for row in rows}
    assert set(wires) == {("gateway", "features"), ("gateway", "scorer")}
    assert wires["gateway", "features"]["calls"] == len(TRACES) + 1
    assert wires["gateway", "features"]["max_ms"] >= 400 * 0.9
