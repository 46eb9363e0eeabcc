"""What a refusal quotes of its request: little, printable, and never more than the trailers of gRPC take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import grpc
import httpx
import pytest

from backend.running import JSON, post, raw_call
from stagetrace.backend.refusal import INTERNAL, MALFORMED, Refused, short, status
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from backend.running import Up

pytestmark = pytest.mark.usefixtures("services")

LONG = "\x1b]0;x\x07\u202e" + "\U0001f600" * 20_000
MOST = 450  # characters
TRAILERS = 8192  # bytes that clients take


@pytest.mark.parametrize("name", ["query.duration_min", "query.attributes", "query.num_traces"])
def test_a_query_over_http_is_quoted_briefly(up: Up, name: str) -> None:
    now = "2026-03-01T12:00:00Z"
    given = {"query.start_time_min": now, "query.start_time_max": now, name: LONG[:1000]}
    response = httpx.get(f"{up.query}/traces", params=given)
    message = response.json()["error"]["message"]
    assert response.status_code == 400
    assert len(message) <= MOST
    assert message.replace("\n", "").isprintable()


def test_a_query_over_grpc_is_quoted_briefly(up: Up) -> None:
    body = api_v3.GetTraceRequest(trace_id=LONG).SerializeToString()
    with pytest.raises(grpc.RpcError) as refused:
        raw_call(up.target("query_grpc_port"), api_v3.path("GetTrace"), body)
    assert refused.value.code() is grpc.StatusCode.UNKNOWN
    details = refused.value.details() or ""
    assert 100 < len(details) <= MOST
    assert details.isprintable()


@pytest.mark.parametrize(
    "body", [{LONG: 1}, {"resourceSpans": [{LONG: 1}]}, {"resourceSpans": [{"scopeSpans": [{"spans": [{LONG: 1}]}]}]}]
)
def test_an_export_is_quoted_briefly(up: Up, body: object) -> None:
    found = post(up, json.dumps(body).encode(), JSON).json()
    message = found.get("message") or found.get("partialSuccess", {}).get("errorMessage", "")
    assert len(message) <= MOST


def test_trailers_hold_the_longest_message() -> None:
    refused = Refused(MALFORMED, LONG.replace("\x1b", ""))
    in_message = len(refused.message.encode()) * len("%F0")
    assert in_message + len(status(refused).SerializeToString()) * 4 // 3 <= TRAILERS
    assert short("a" * 400) == "a" * 400
    assert Refused(INTERNAL, "the back end failed").message == "the back end failed"
