"""A gRPC service's requests in the local store: their route is the method that was called."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from backend.processes import until
from instrumentation.grpc_client import run_service
from services import recorded
from stagetrace.store import Selection, open_store

if TYPE_CHECKING:
    from pathlib import Path

    from backend.running import Up

pytestmark = pytest.mark.usefixtures("services")

ROUTE = "ml.Scorer/Predict"


@pytest.mark.parametrize("app", ["grpc_threads", "grpc_aio"])
def test_requests_and_breaches_of_a_grpc_service_have_their_method_as_route(app: str, up: Up, tmp_path: Path) -> None:
    since = time.time_ns()
    env = recorded(up.url("grpc_port"), f"{ROUTE} within 10ms; * within 20s", OTEL_BSP_SCHEDULE_DELAY="50")
    with run_service(tmp_path, app, env) as service:
        trace_id, got = service.call("Predict", {"inference_s": 0.05})
        service.call("See")
        assert got.code == "OK"
        meant = Selection(since, time.time_ns(), route=ROUTE)
        with open_store(up.ready["data"]) as reader:
            until(lambda: reader.breaches(replace(meant, route=None)).breaches)  # a route is unknown before it is there
            found = reader.breaches(meant).breaches
            with reader.relations(meant) as relations:
                requests = list(relations.select("SELECT trace_id, route FROM requests")[1])
    assert [(one.trace_id, one.route, one.name) for one in found] == [(trace_id, ROUTE, ROUTE)]
    assert requests == [(trace_id, ROUTE)]
