"""Hostile OTLP requests: mutated, cut, with lying lengths, bad text, deep nesting, bombs. Seeded, so repeatable."""

from __future__ import annotations

import copy
import gzip
import json
import random
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import zstandard

from stagetrace.otlp.decode.json import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
_LENGTH_DELIMITED: Final = 2
_NASTY: Final = (b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01", b"\x80" * 12, b"\xc3\x28", b"\xed\xa0\x80", b"\0" * 40)
_ODD: Final[tuple[Any, ...]] = (
    None, True, -1, 0, 1.5, 2**64, 10**30, "",
    "\ud800", "NaN", "\0", [], {}, [[]], [{}], {"": {}}, "x" * 5000, "9" * 4000,
)  # fmt: skip


class Case(NamedTuple):
    """One request to send."""

    body: bytes
    kind: str
    encoding: str | None


class Mutator:
    """Makes hostile requests out of a good one."""

    def __init__(self, seed: int, good: ExportTraceServiceRequest) -> None:
        self._random = random.Random(seed)
        self._good = good
        self._bytes = good.SerializeToString()
        self._json = json.loads(encode(good))

    def case(self) -> Case:
        """Return the next one: mostly protobuf, some JSON, a few encoded or bombs."""
        dice = self._random.random()
        if dice < 0.002:
            encoding = self._random.choice(("gzip", "deflate", "zstd"))
            return Case(_bomb(encoding), self._random.choice((PROTOBUF, JSON)), encoding)
        body, kind = (self._json_body(), JSON) if dice < 0.25 else (self.mutated(self._bytes), PROTOBUF)
        if dice < 0.8:
            return Case(body, kind, None)
        encoding, encoded = self._encoded(body)
        return Case(self._broken(encoded) if self._random.random() < 0.5 else encoded, kind, encoding)

    def span_among_good_ones(self, first: bytes, last: bytes) -> bytes:
        """Return a request of three spans, the middle one hostile within its own length, the others as given."""
        span = self._good.resource_spans[0].scope_spans[0].spans[0].SerializeToString()
        middle = self._random.choice(
            (self.mutated(span), self._random.randbytes(self._random.randrange(80)), self._deep())
        )
        spans = b"".join(_field(2, one) for one in (first, middle, last))
        return _field(1, _field(2, spans))

    def mutated(self, body: bytes) -> bytes:
        """Return `body` after one to four changes."""
        changes: tuple[Callable[[bytes], bytes], ...] = (
            self._flipped, self._cut, self._doubled, self._nasty, self._replaced, self._shuffled, self._extended,
        )  # fmt: skip
        for _ in range(self._random.choice((1, 1, 1, 2, 4))):
            body = self._random.choice(changes)(body)
        return body

    def _at(self, body: bytes) -> int:
        return self._random.randrange(len(body) + 1)

    def _flipped(self, body: bytes) -> bytes:
        changed = bytearray(body)
        for _ in range(self._random.choice((1, 2, 8))):
            if changed:
                changed[self._random.randrange(len(changed))] ^= 1 << self._random.randrange(8)
        return bytes(changed)

    def _cut(self, body: bytes) -> bytes:
        return body[: self._at(body)]

    def _doubled(self, body: bytes) -> bytes:
        low, high = sorted((self._at(body), self._at(body)))
        return body[:high] + body[low:high] * self._random.choice((1, 1, 3)) + body[high:]

    def _nasty(self, body: bytes) -> bytes:
        at = self._at(body)
        return body[:at] + self._random.choice(_NASTY) + body[at:]

    def _replaced(self, body: bytes) -> bytes:
        at = self._at(body)
        nasty = self._random.choice(_NASTY)
        return body[:at] + nasty + body[at + len(nasty) :]

    def _shuffled(self, body: bytes) -> bytes:
        low, high = sorted((self._at(body), self._at(body)))
        return body[high:] + body[low:high] + body[:low]

    def _extended(self, body: bytes) -> bytes:
        return body + self._random.choice((self._deep(), self._random.randbytes(20), _field(1, b"")))

    def _deep(self) -> bytes:
        """Return a span whose attribute holds a value within a value, and so on."""
        return _nested(self._random.choice((10, 60, 120, 2000)))

    def _json_body(self) -> bytes:
        if self._random.random() < 0.4:
            return self.mutated(json.dumps(self._json).encode())
        if self._random.random() < 0.05:
            return b'{"resourceSpans":' * self._random.choice((100, 5000)) + b"[" * 3000
        document = json.loads(json.dumps(self._json))
        for _ in range(self._random.choice((1, 2, 5))):
            self._spoil(document)
        return json.dumps(document).encode("utf-8", "surrogatepass")

    def _spoil(self, document: Any) -> None:
        """Put an odd value in some place of a JSON document."""
        holder = document
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                return
            key = self._random.choice(keys)
            if not isinstance(holder[key], (dict, list)) or not holder[key] or self._random.random() < 0.15:
                holder[key] = copy.deepcopy(self._random.choice(_ODD))
                return
            holder = holder[key]

    def _encoded(self, body: bytes) -> tuple[str, bytes]:
        encoding = self._random.choice(("gzip", "deflate", "zstd"))
        if encoding == "zstd":
            return encoding, zstandard.ZstdCompressor(level=1).compress(body)
        return encoding, (gzip.compress(body, 1) if encoding == "gzip" else zlib.compress(body, 1))

    def _broken(self, body: bytes) -> bytes:
        return self._random.choice((self._flipped, self._cut, self._nasty))(body)


@cache
def _bomb(encoding: str) -> bytes:
    nothing = bytes(1 << 28)
    if encoding == "zstd":
        return zstandard.ZstdCompressor(level=3).compress(nothing)
    return gzip.compress(nothing) if encoding == "gzip" else zlib.compress(nothing)


@cache
def _nested(levels: int) -> bytes:
    value = b""
    for _ in range(levels):
        value = _field(5, _field(1, value))
    return _field(9, _field(1, b"k") + _field(2, value))


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes((low | 128,)) + _varint(rest) if rest else bytes((low,))
