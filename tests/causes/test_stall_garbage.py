"""Sampling keeps nothing of a request alive: neither its variables, nor its coroutines, nor its record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services import asgi_command, recorded, run_service
from stagetrace import semconv

if TYPE_CHECKING:
    from pathlib import Path

    from sink import Sink

pytestmark = pytest.mark.usefixtures("services")

PATHS = ("/wait", "/cancelled", "/cancelled_from_outside", "/several", "/fails", "/blocks")


def left_by_requests(folder: Path, sink: Sink, switch: str) -> tuple[dict[str, Any], list[str]]:
    """Return what the requests have left, and the lines of code that the spans of late ones have."""
    env = recorded(sink.endpoint, "* within 10ms", STAGETRACE_STALLS=switch, OTEL_BSP_SCHEDULE_DELAY="50")
    codes = []
    with run_service(folder, argv=asgi_command("uvicorn", "leaving"), env=env, ready="/state") as service:
        for path in PATHS:
            trace_id, response = service.call("GET", path)
            assert response.status_code == (500 if path == "/fails" else 200)
            codes.append(str(sink.request(trace_id).entry.attributes.get(semconv.SLA_BREACH_CODE)))
        return service.client.get("/state").json(), codes


def test_sampling_leaves_nothing_that_would_not_be_left_without(sink: Sink, tmp_path: Path) -> None:
    """Of requests that await, block, give work to threads, fail, and are cancelled."""
    sampled, codes = left_by_requests(tmp_path, sink, "1")
    plain, without = left_by_requests(tmp_path, sink, "0")
    assert set(without) == {"None"}
    assert {code.rpartition(" ")[2] for code in codes} >= {"wait", "work"}
    assert sampled["kept"] == {"large": 0, "in_flight": 1, "working": 0}  # that of `/state` itself
    assert plain["kept"] == {"large": 0, "in_flight": 0, "working": 0}
    assert sampled["garbage"] == plain["garbage"]
    assert (sampled["is_watched"], plain["is_watched"]) == (True, False)
