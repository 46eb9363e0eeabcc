"""Encode metrics as OTLP: numbers and exponential histograms, cumulative since the process began to count.

The bytes are written here, as those of spans are: the classes of protobuf take 1.8 MB of a service's memory.
"""

from __future__ import annotations

import struct
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from stagetrace.otlp.encode import encode_field, encode_pairs, encode_text, encode_varint

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Tags of opentelemetry/proto/metrics/v1/metrics.proto: field number << 3 | wire type.
_FIXED = struct.Struct("<BQ")
_INT = struct.Struct("<Bq")
_DOUBLE = struct.Struct("<Bd")
_CUMULATIVE = b"\x10\x02"  # aggregation_temporality (2)
_MONOTONIC = b"\x18\x01"  # is_monotonic (3)


def encode_numbers(
    name: str,
    unit: str,
    description: str,
    points: Iterable[tuple[Mapping[str, Any], float]],
    times: tuple[int, int],
    *,
    is_counter: bool,
) -> bytes | None:
    """Return a counter or a gauge as it stands in its ScopeMetrics, without tag and length; None without points.

    `times`: since when the counter counts, and now.
    """
    since_ns, now_ns = times
    around = (_fixed(0x11, since_ns) if is_counter else b"") + _fixed(0x19, now_ns)
    encoded = [
        encode_field(
            b"\x0a",
            around
            + (_INT.pack(0x31, value) if isinstance(value, int) else _DOUBLE.pack(0x21, value))
            + encode_pairs(b"\x3a", attributes),
        )
        for attributes, value in points
    ]
    data = b"".join(encoded)
    sum_or_gauge = encode_field(b"\x3a", data + _CUMULATIVE + _MONOTONIC) if is_counter else encode_field(b"\x2a", data)
    return _metric(name, unit, description, sum_or_gauge) if encoded else None


def encode_times(
    name: str, description: str, points: Iterable[tuple[Mapping[str, Any], Any]], times: tuple[int, int]
) -> bytes | None:
    """Return an exponential histogram of seconds likewise; a point is a `verdict_counter.Collected`."""
    encoded = [encode_field(b"\x0a", _point(attributes, found, times)) for attributes, found in points]
    histogram = encode_field(b"\x52", b"".join(encoded) + _CUMULATIVE)
    return _metric(name, "s", description, histogram) if encoded else None


def _metric(name: str, unit: str, description: str, data: bytes) -> bytes:
    return encode_text(b"\x0a", name) + encode_text(b"\x12", description) + encode_text(b"\x1a", unit) + data


def _point(attributes: Mapping[str, Any], found: Any, times: tuple[int, int]) -> bytes:
    counts = b"".join(map(encode_varint, found.buckets))
    buckets = _signed(b"\x08", found.first) + (encode_field(b"\x12", counts) if counts else b"")
    # In order of time: Prometheus discards a series' exemplars where one is older than that before it.
    exemplars = [encode_field(b"\x5a", _exemplar(*one)) for one in sorted(found.exemplars, key=itemgetter(1))]
    return b"".join(
        (
            encode_pairs(b"\x0a", attributes),
            _fixed(0x11, times[0]) + _fixed(0x19, times[1]),
            _fixed(0x21, found.number),
            _DOUBLE.pack(0x29, found.sum),
            _signed(b"\x30", found.scale),
            _fixed(0x39, found.zeros),
            encode_field(b"\x42", buckets),
            *exemplars,
            _DOUBLE.pack(0x61, found.least),
            _DOUBLE.pack(0x69, found.most),
        )
    )


def _exemplar(took_ns: int, at_ns: int, trace: tuple[int, int]) -> bytes:
    span_id, trace_id = trace[1].to_bytes(8, "big"), trace[0].to_bytes(16, "big")
    took = _DOUBLE.pack(0x19, max(took_ns, 0) / 1e9)
    return _fixed(0x11, at_ns) + took + encode_field(b"\x22", span_id) + encode_field(b"\x2a", trace_id)


def _fixed(tag: int, number: int) -> bytes:
    return _FIXED.pack(tag, number) if number else b""


def _signed(tag: bytes, number: int) -> bytes:
    """Return a number that may be negative, as protobuf's sint32."""
    return tag + encode_varint(number << 1 if number >= 0 else ~(number << 1)) if number else b""
