"""What the response of a receiver means by the OTLP specification: pure functions, for gRPC and HTTP."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

HTTP_RETRYABLE: Final = frozenset((429, 502, 503, 504))
# Refused for the token or the address, not for the spans: with other settings the receiver may take them.
HTTP_MISDIRECTED: Final = frozenset((401, 403, 404, 407))
GRPC_MISDIRECTED: Final = frozenset(("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"))
LONGEST_WAIT_S: Final = 600.0  # a receiver whose clock is wrong shall not silence us for a year
STUCK_AFTER: Final = 3  # failures of a batch in a row: it may be the batch, so others have their turn
_LONGEST_REASON: Final = 200


class Outcome(NamedTuple):
    """What became of one request to a receiver."""

    delivered: bool
    rejected: int = 0  # of the delivered spans, those that the receiver did not store: never to be sent again
    retryable: bool = False  # not delivered, and the same request could be delivered later
    misdirected: bool = False  # not delivered, and other settings could help
    wait_s: float = 0.0  # how long the receiver asks to be left alone
    reason: str = ""
    speaks: str = ""  # the protocol that is spoken there, where it is not ours

    @property
    def remedy(self) -> str:
        """What a person may do about it."""
        if self.speaks:
            other = f"OTEL_EXPORTER_OTLP_ENDPOINT to {_PORTS[self.speaks]}"
            return f"Set OTEL_EXPORTER_OTLP_PROTOCOL={self.speaks}, or {other}"
        if self.misdirected:
            return "Set OTEL_EXPORTER_OTLP_PROTOCOL, _ENDPOINT, _HEADERS or _CERTIFICATE to what can be used"
        if self.retryable:
            return "Start a Collector there, or set OTEL_EXPORTER_OTLP_ENDPOINT"
        return "The receiver's log may say why"


class Trouble(NamedTuple):
    """Why the last batch was not delivered whole, and since when (seconds since 1970) that has been so."""

    reason: str
    since: float


# What each end finds where the other protocol is spoken, and the port that our own one has.
_NOT_GRPC: Final = "Failed parsing HTTP/2"  # as gRPC's core words it
_PORTS: Final = {"http/protobuf": "the port of gRPC, normally 4317", "grpc": "the port of HTTP, normally 4318"}
_IS_HTTP: Final = "HTTP is spoken there, not gRPC: this is the port of http/protobuf, as 4318"
_IS_GRPC: Final = "gRPC is spoken there, not HTTP/1.1: this is the port of grpc, as 4317"


def grpc_success(body: bytes) -> Outcome:
    """Return what a response with status OK means; `body` is the serialized response."""
    try:
        return _accepted(body)
    except ValueError:
        return Outcome(delivered=False, reason="it responded OK with something that is no OTLP")


def grpc_failure(code: str, details: str, trailers: Mapping[str, Any], retryable: Collection[str]) -> Outcome:
    """Return what a status other than OK means; `code` is its name, `retryable` the names of those to be tried again.

    RESOURCE_EXHAUSTED is retryable only where the receiver says with RetryInfo that it will recover.
    """
    if _NOT_GRPC in details:
        return Outcome(delivered=False, retryable=True, reason=_IS_HTTP, speaks="http/protobuf")
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
    try:
        if "grpc-status-details-bin" in trailers:
            details = [dict(_fields(one)) for one in _parts(trailers["grpc-status-details-bin"], 3)]  # each an Any
            found = [one.get(2, b"") for one in details if one.get(1, b"").endswith(_RETRY_INFO)]
        else:
            found = [trailers[name] for name in ("google.rpc.retryinfo-bin",) if name in trailers]
        if not found:
            return None
        delay = dict(_fields(b"".join(_parts(found[-1], 1))))  # a Duration
        return _signed(delay.get(1, 0)) + _signed(delay.get(2, 0)) / 1e9
    except (ValueError, TypeError, AttributeError):
        return None


def http_fault(error: Exception) -> Outcome:
    """Return what it means that no response of HTTP came."""
    text = f"{type(error).__name__}: {error}"
    if type(error).__name__ == "BadStatusLine" and "\0" in text:  # a frame of HTTP/2, with which gRPC begins
        return Outcome(delivered=False, retryable=True, reason=_IS_GRPC, speaks="grpc")
    return Outcome(delivered=False, retryable=True, reason=text[:_LONGEST_REASON])


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
        return _accepted_json(json.loads(body)) if "json" in kind else _accepted(body)
    except Exception:  # noqa: BLE001 -- the status says that it took the spans, whatever the body is
        return Outcome(delivered=True)


def _accepted(body: bytes) -> Outcome:
    """Return what a serialized response means; raise ValueError where it is none."""
    partial = dict(_fields(b"".join(_parts(body, 1))))  # its parts are one message
    rejected, text = partial.get(1, 0), partial.get(2, b"")
    count = _signed(rejected) if isinstance(rejected, int) else 0
    reason = text.decode() if isinstance(text, bytes) else ""
    return Outcome(delivered=True, rejected=max(0, count), reason=_short(reason))


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
        from email.utils import parsedate_to_datetime  # which takes 5 ms to import

        return parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError):
        return None


def _bounded(wait_s: float | None) -> float:
    return min(max(wait_s, 0.0), LONGEST_WAIT_S) if wait_s and isfinite(wait_s) else 0.0


def _short(text: str) -> str:
    return text.partition("\n")[0][:_LONGEST_REASON]


# --- Messages of protobuf, of which responses have two: their fields, without protobuf's classes, which take 1.8 MB.

_RETRY_INFO: Final = b"/google.rpc.RetryInfo"
_SIZES: Final = {1: 8, 5: 4}  # of a field, by its wire type


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the number and the value of each field, an int or bytes. Raise ValueError where it is no message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        size, at = _varint(message, at) if kind == 2 else (_SIZES.get(kind, -1), at)  # noqa: PLR2004 -- of a length
        if size < 0 or not number or at + size > len(message):
            raise ValueError("this is no message")
        yield number, message[at : at + size]
        at += size


def _parts(message: bytes, number: int) -> list[bytes]:
    """Return the values of one field of messages."""
    return [value for field, value in _fields(message) if field == number and isinstance(value, bytes)]


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place after it."""
    number = 0
    for shift, byte in enumerate(message[at : at + 10]):
        number |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:  # noqa: PLR2004 -- the last one
            return number & 0xFFFF_FFFF_FFFF_FFFF, at + shift + 1
    raise ValueError("this is no number")


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number
