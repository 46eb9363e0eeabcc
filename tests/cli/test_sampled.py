"""A real service that samples, a real `stagetrace up`: what the commands say of how many requests there were."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from backend.running import run_up
from cli.running import answered, printed
from services import recorded, run_service
from sink import run_sink
from stagetrace.store.local.counts import read

if TYPE_CHECKING:
    from backend.running import Up

pytestmark = pytest.mark.usefixtures("services")

REQUESTS, EACH = 400, 36  # one of so many is slow
SAMPLER = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
BREACHES = -(-REQUESTS // EACH)


def drive(folder: Path, up: Up, **env: str) -> str:
    """Let a service serve 400 requests, 12 of which are too slow; return what it said."""
    policy = "GET /plain within 10m; GET /child within 1us; * excluded"
    env = recorded(up.url("grpc_port"), policy, OTEL_SERVICE_NAME="sampling", **SAMPLER, **env)
    with run_service(folder, "semantics", env=env) as service:
        for number in range(REQUESTS):
            path = "/child" if number % EACH == 0 else "/plain"
            service.client.get(path).raise_for_status()
        service.stop()
        return service.log


def routes(up: Up) -> dict[str, Any]:
    answer = answered("watch", "--store", up.ready["data"], "--since", "1h")
    assert answer["complete"]
    return {one["route"]: one for one in answer["routes"]}


def test_the_counter_makes_it_exact(tmp_path: Path) -> None:
    with run_up(tmp_path) as up:
        log = drive(tmp_path, up)
        assert f"{BREACHES} broke their" in log or f"{BREACHES} missed their" in log
        found = routes(up)
        counted = [one for one in read(Path(up.ready["data"]), 0, time.time_ns()) if one.service == "sampling"]
    assert [one.is_exact for one in counted] == [True]
    totals: Counter[str] = Counter()
    for (route, _, verdict), count in counted[0].counts.items():
        totals[f"{route} {verdict}"] += count
    assert (totals["/plain good"], totals["/child breach"]) == (REQUESTS - BREACHES, BREACHES)
    plain, child = found["/plain"], found["/child"]
    assert (plain["requests"], plain["judged"], plain["breaches"]) == (REQUESTS - BREACHES, REQUESTS - BREACHES, 0)
    assert plain["stored"] < 100
    assert (plain["counted"], plain["estimated"], plain["attainment"]) == (True, False, 1.0)
    assert (child["requests"], child["breaches"], child["stored"]) == (BREACHES, BREACHES, BREACHES)
    assert (child["attainment"], child["attainment_95"]) == (0.0, [0.0, 0.0])


def test_without_the_counter_it_is_estimated_and_is_reported(tmp_path: Path) -> None:
    with run_up(tmp_path) as up:
        drive(tmp_path, up, OTEL_METRICS_EXPORTER="none")
        found = routes(up)
        assert read(Path(up.ready["data"]), 0, time.time_ns()) == []
        where = ("--store", up.ready["data"], "--since", "1h")
        shown, stages, breaches = (printed(*verb.split(), *where) for verb in ("watch", "stages --long", "breaches"))
        as_json = answered("breaches", "--each", *where)
    plain, child = found["/plain"], found["/child"]
    assert plain["requests"] == 10 * plain["stored"]
    assert (plain["counted"], plain["estimated"], plain["sampling_known"]) == (False, True, True)
    assert (child["breaches"], child["stored"]) == (BREACHES, BREACHES)
    assert child["attainment_95"][0] == 0 < child["attainment_95"][1]
    estimated = f"~ sampling /plain: estimated from {plain['stored']} sampled requests"
    assert estimated in shown
    assert estimated in stages
    assert f"~{plain['requests']}" in stages
    judged = plain["requests"] + BREACHES
    assert f"{BREACHES} of ~{judged} judged requests missed their objective" in breaches
    assert (as_json["judged"], as_json["missed"], as_json["estimated"]) == (judged, BREACHES, True)


def test_a_receiver_that_takes_no_metrics_is_no_trouble(tmp_path: Path) -> None:
    """As Jaeger: it is not said, and costs no span."""
    with run_sink() as sink:
        env = recorded(sink.endpoint, "* within 1us", **SAMPLER)
        with run_service(tmp_path, "semantics", env=env) as service:
            for _ in range(5):
                service.client.get("/plain").raise_for_status()
            service.stop()
            log = service.log
        assert sum(span.attributes.get("http.route") == "/plain" for span in sink.spans) == 5
    assert "metric" not in log.lower()
    assert "Traceback" not in log
