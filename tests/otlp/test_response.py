"""Responses are read without protobuf's classes, and mean what those read in them."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import DebugInfo, RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from stagetrace.otlp.export.response import grpc_failure, grpc_success

NO_OTLP = "it responded OK with something that is no OTLP"
WHOLE = st.builds(
    lambda rejected, text: serialized(partial_success={"rejected_spans": rejected, "error_message": text}),
    st.integers(-(2**63), 2**63 - 1),
    st.text(max_size=20),
)
UNKNOWN_FIELDS = b"\x9d\x06abcd\x99\x06abcdefgh\xc0\x3e\x07\xd2\x3e\x03abc"  # of each wire type


def serialized(**fields: Any) -> bytes:
    return ExportTraceServiceResponse(**fields).SerializeToString()


def expected(body: bytes) -> tuple[int, str] | None:
    try:
        partial = ExportTraceServiceResponse.FromString(body).partial_success
    except DecodeError:
        return None
    return max(0, partial.rejected_spans), partial.error_message.partition("\n")[0][:200]


@given(WHOLE, WHOLE)
def test_rejected_spans_and_the_reason_are_those_of_protobuf(one: bytes, other: bytes) -> None:
    for body in (one, one + other, one + UNKNOWN_FIELDS, UNKNOWN_FIELDS + one, b""):
        outcome = grpc_success(body)
        assert outcome.delivered
        assert (outcome.rejected, outcome.reason) == expected(body)


@given(st.binary(max_size=40) | st.builds(lambda body, cut: body[:cut], WHOLE, st.integers(0, 30)))
def test_what_is_no_message_is_no_otlp(body: bytes) -> None:
    """Protobuf also knows groups, which no response has, and refuses texts in unknown fields by more rules."""
    outcome = grpc_success(body)
    assert outcome.delivered or outcome.reason == NO_OTLP
    if outcome.delivered and (known := expected(body)) is not None:
        assert (outcome.rejected, outcome.reason) == known


@pytest.mark.parametrize("body", [b"\xff\xff\xff", b"\x0a\x05a", b"\x0a", b"\x0a\x02\x12\x05", b"\x0a\x03\x12\x01\xff"])
def test_rubbish_is_no_otlp(body: bytes) -> None:
    assert expected(body) is None
    assert (grpc_success(body).delivered, grpc_success(body).reason) == (False, NO_OTLP)


def delay(seconds: int, nanos: int) -> RetryInfo:
    info = RetryInfo()
    info.retry_delay.seconds, info.retry_delay.nanos = seconds, nanos
    return info


@given(st.integers(-(2**40), 2**40), st.integers(-(10**9) + 1, 10**9 - 1), st.text(max_size=9))
def test_the_wait_is_that_of_protobuf(seconds: int, nanos: int, text: str) -> None:
    status = Status(code=8, message=text)
    status.details.add().Pack(DebugInfo(detail=text))
    status.details.add().Pack(delay(seconds, nanos))
    wait_s = min(max(seconds + nanos / 1e9, 0.0), 600.0)
    alone = delay(seconds, nanos).SerializeToString()
    for trailers in (
        {"grpc-status-details-bin": status.SerializeToString()},
        {"google.rpc.retryinfo-bin": alone},
    ):
        outcome = grpc_failure("RESOURCE_EXHAUSTED", "", trailers, ())
        assert (outcome.retryable, outcome.wait_s) == (True, wait_s)


@given(st.binary(max_size=40))
def test_rubbish_in_a_status_is_no_wait(rubbish: bytes) -> None:
    for name in ("grpc-status-details-bin", "google.rpc.retryinfo-bin"):
        assert 0 <= grpc_failure("UNAVAILABLE", "", {name: rubbish}, ("UNAVAILABLE",)).wait_s <= 600
