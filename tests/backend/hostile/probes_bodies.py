"""Request bodies that cost a receiver more than they cost their sender: nested values, messages of nothing, bombs."""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any, Final

from backend.running import JSON, PROTOBUF, request
from messages import put
from stagetrace.otlp.decode.json import encode
from stagetrace.otlp.decode.wire import varint

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB: Final = 1 << 20
DEPTHS: Final = (46, 47, 48, 49, 50)  # arrays within each other, at which readers of OTLP differ
_INNERMOST: Final = "innermost"
_IDS: Final = b"\x0a\x10" + b"t" * 16 + b"\x12\x08" + b"s" * 8


def trace_of(service: str) -> bytes:
    """Return the id of the trace that `with_deep` makes for a service."""
    return hashlib.md5(service.encode(), usedforsecurity=False).digest()


def with_deep(nesting: str, depth: int, service: str, *, size: int = 0, where: str = "span") -> dict[str, bytes]:
    """Return a request by its content types: a span with a nested value between two others, which have `size` bytes.

    `nesting` is "arrays" or "maps", so many within each other. Made without protobuf's copies, which have limits.
    """
    message = request("before", "deep", "after", service=service, trace=trace_of(service))
    resource_spans = message.resource_spans[0]
    before, deep, _ = resource_spans.scope_spans[0].spans
    put(before, {"filler": "x" * size})
    holders = {
        "span": lambda: deep,
        "event": lambda: deep.events.add(name="e"),
        "link": lambda: deep.links.add(trace_id=b"1" * 16, span_id=b"2" * 8),
        "scope": lambda: resource_spans.scope_spans[0].scope,
        "resource": lambda: resource_spans.resource,
    }
    value = holders[where]().attributes.add(key="nested").value
    value.string_value = _INNERMOST
    text = encode(message).replace(
        json.dumps({"stringValue": _INNERMOST}, separators=(",", ":")), _json(nesting, depth)
    )
    value.Clear()
    for _ in range(depth):
        inner = value.array_value.values.add() if nesting == "arrays" else value.kvlist_value.values.add(key="k").value
        value = inner
    value.string_value = _INNERMOST
    return {PROTOBUF: message.SerializeToString(), JSON: text.encode()}


def _json(nesting: str, depth: int) -> str:
    value: Any = {"stringValue": _INNERMOST}
    for _ in range(depth):
        is_array = nesting == "arrays"
        value = (
            {"arrayValue": {"values": [value]}}
            if is_array
            else {"kvlistValue": {"values": [{"key": "k", "value": value}]}}
        )
    return json.dumps(value)


def zipped(unit: bytes, count: int, head: bytes = b"", tail: bytes = b"") -> bytes:
    """Return gzip of `head`, so many times `unit`, and `tail`, without making that."""
    stream = zlib.compressobj(9, wbits=31)
    return b"".join(stream.compress(one) for one in _parts(unit, count, head, tail)) + stream.flush()


def _parts(unit: bytes, count: int, head: bytes, tail: bytes) -> Iterator[bytes]:
    block = 100_000
    yield head
    for _ in range(count // block):
        yield unit * block
    yield unit * (count % block) + tail


def empty_resources(count: int) -> bytes:
    """Return gzip of a request of empty resources in protobuf: two bytes each, a thousandth of that zipped."""
    return zipped(b"\x0a\x00", count)


def empty_resources_json(count: int) -> bytes:
    """Return gzip of a request of empty resources in JSON."""
    return zipped(b"{},", count, b'{"resourceSpans":[', b"{}]}")


def slow_spans(count: int) -> bytes:
    """Return gzip of spans of a thousand attributes of nothing, which take a reader the longest for their size."""
    body = _IDS + b"\x4a\x00" * 1000
    span = b"\x12" + varint(len(body)) + body
    scope = b"\x12" + varint(len(span) * count)
    resource = b"\x0a" + varint(len(scope) + len(span) * count)
    return zipped(span, count, resource + scope)


def gzip_members(size: int) -> bytes:
    """Return so many bytes of gzip's members of nothing."""
    member = zlib.compressobj(9, wbits=31).flush()
    return member * (size // len(member))
