"""What the response of a receiver means by the OTLP specification: pure functions, for gRPC and HTTP."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

HTTP_RETRYABLE: Final = frozenset((429, 502, 503, 504))
# Refused for the token or the address, not for the spans: with other settings the receiver may take them.
HTTP_MISDIRECTED: Final = frozenset((401, 403, 404, 407))
GRPC_MISDIRECTED: Final = frozenset(("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"))
LONGEST_WAIT_S: Final = 600.0  # a receiver whose clock is wrong shall not silence us for a year
_LONGEST_REASON: Final = 200


def load() -> None:
    """Import what the functions below need: under gevent, threads of ours must not import anything."""
    import opentelemetry.proto.collector.trace.v1.trace_service_pb2  # noqa: F401


class Outcome(NamedTuple):
    """What became of one request to a receiver."""

    delivered: bool
    rejected: int = 0  # of the delivered spans, those that the receiver did not store: never to be sent again
    retryable: bool = False  # not delivered, and the same request could be delivered later
    misdirected: bool = False  # not delivered, and other settings could help
    wait_s: float = 0.0  # how long the receiver asks to be left alone
    reason: str = ""

    @property
    def remedy(self) -> str:
        """What a person may do about it."""
        if self.misdirected:
            return "Set OTEL_EXPORTER_OTLP_PROTOCOL, _ENDPOINT, _HEADERS or _CERTIFICATE to what can be used"
        if self.retryable:
            return "Start a Collector there, or set OTEL_EXPORTER_OTLP_ENDPOINT"
        return "The receiver's log may say why"


class Trouble(NamedTuple):
    """Why the last batch was not delivered whole, and since when (seconds since 1970) that has been so."""

    reason: str
    since: float


def grpc_success(body: bytes) -> Outcome:
    """Return what a response with status OK means; `body` is the serialized response."""
    try:
        return _accepted(_response(body))
    except Exception:  # noqa: BLE001 -- protobuf's C and Python variants raise different ones
        return Outcome(delivered=False, reason="it responded OK with something that is no OTLP")


def grpc_failure(code: str, details: str, trailers: Mapping[str, Any], retryable: Collection[str]) -> Outcome:
    """Return what a status other than OK means; `code` is its name, `retryable` the names of those to be tried again.

    RESOURCE_EXHAUSTED is retryable only where the receiver says with RetryInfo that it will recover.
    """
    wait_s = _retry_info(trailers)
    can_retry = wait_s is not None if code == "RESOURCE_EXHAUSTED" else code in retryable
    misdirected = code in GRPC_MISDIRECTED
    return Outcome(
        delivered=False,
        retryable=can_retry,
        misdirected=misdirected,
        wait_s=_bounded(wait_s),
        reason=_short(f"{code}: {details}"),
    )


def _retry_info(trailers: Mapping[str, Any]) -> float | None:
    """Return the seconds of a RetryInfo, from the standard details of a status or alone, or None."""
    from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
    from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

    found: RetryInfo | None = None
    try:
        if "grpc-status-details-bin" in trailers:
            for detail in Status.FromString(trailers["grpc-status-details-bin"]).details:
                if detail.Is(RetryInfo.DESCRIPTOR):
                    found = RetryInfo.FromString(detail.value)
        elif "google.rpc.retryinfo-bin" in trailers:
            found = RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"])
    except Exception:  # noqa: BLE001 -- as above
        return None
    return None if found is None else found.retry_delay.seconds + found.retry_delay.nanos / 1e9


def http_outcome(status: int, reason: str, headers: Mapping[str, str], body: bytes) -> Outcome:
    """Return what an HTTP response means."""
    if not 200 <= status < 300:  # noqa: PLR2004 -- a redirection delivers nothing
        can_retry = status in HTTP_RETRYABLE
        wait_s = _bounded(_retry_after(headers.get("retry-after"))) if can_retry else 0.0
        misdirected = status in HTTP_MISDIRECTED
        text = _short(f"HTTP {status} {reason}")
        return Outcome(delivered=False, retryable=can_retry, misdirected=misdirected, wait_s=wait_s, reason=text)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body:
        return Outcome(delivered=True)  # not as specified, but common
    if kind == "text/html":
        return Outcome(delivered=False, reason=f"it responded {status} with a page: this is no OTLP receiver")
    try:
        return _accepted_json(json.loads(body)) if "json" in kind else _accepted(_response(body))
    except Exception:  # noqa: BLE001 -- the status says that it took the spans, whatever the body is
        return Outcome(delivered=True)


def _response(body: bytes) -> ExportTraceServiceResponse:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    return ExportTraceServiceResponse.FromString(body)


def _accepted(response: ExportTraceServiceResponse) -> Outcome:
    partial = response.partial_success
    return Outcome(delivered=True, rejected=max(0, partial.rejected_spans), reason=_short(partial.error_message))


def _accepted_json(response: Any) -> Outcome:
    partial = response.get("partialSuccess") or {}
    rejected = int(partial.get("rejectedSpans") or 0)  # int64 is a string in OTLP's JSON
    return Outcome(delivered=True, rejected=max(0, rejected), reason=_short(str(partial.get("errorMessage") or "")))


def _retry_after(text: str | None) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date."""
    if text is None:
        return None
    with suppress(ValueError):
        return float(text)
    try:
        return parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError):
        return None


def _bounded(wait_s: float | None) -> float:
    return min(max(wait_s, 0.0), LONGEST_WAIT_S) if wait_s and isfinite(wait_s) else 0.0


def _short(text: str) -> str:
    return text.partition("\n")[0][:_LONGEST_REASON]
