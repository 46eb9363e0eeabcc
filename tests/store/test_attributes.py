"""One attribute of many spans in text form."""

from __future__ import annotations

import random
from typing import Any, Final

import duckdb
import pyarrow as pa
import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

from stagetrace.otlp.decode.columns import DOUBLE, INT, STRING
from stagetrace.semconv import as_text
from stagetrace.store import stored

NUMBERS: Final = (
    0.0,
    -0.0,
    50.0,
    0.1,
    1e16,
    1e15,
    123456789012345680.0,
    1e-5,
    1e-4,
    5e-324,
    1.7976931348623157e308,
    -2.5,
)
ODD: Final = (float("nan"), float("inf"), float("-inf"))
VALUES: Final = (
    *(AnyValue(double_value=one) for one in (*NUMBERS, *ODD)),
    *(AnyValue(int_value=one) for one in (0, 7, -1, 2**63 - 1, -(2**63))),
    *(AnyValue(string_value=one) for one in ("", "gold", "ünï", "x" * 200, "tenant.id", "\n")),
    *(AnyValue(bool_value=one) for one in (True, False)),
    AnyValue(bytes_value=b"\x00\xff"),
    AnyValue(array_value=ArrayValue(values=[AnyValue(int_value=1), AnyValue()])),
    AnyValue(),
)
KEYS: Final = ("tenant.id", "tenant", "tenant.id2", "k" * 150, "", "ünï")


def spans(seed: int, count: int) -> list[bytes | None]:
    """Return what spans keep, of all kinds: with other fields around, keys that come twice, and none at all."""
    draw = random.Random(seed)
    made: list[bytes | None] = []
    for _ in range(count):
        one = Span(trace_state=draw.choice(["", "a=b"]), dropped_links_count=draw.choice([0, 3]))
        for _ in range(draw.randrange(5)):
            one.attributes.append(KeyValue(key=draw.choice(KEYS), value=draw.choice(VALUES)))
        if draw.random() < 0.3:
            one.events.add(name="e").attributes.append(KeyValue(key="tenant.id", value=draw.choice(VALUES)))
        made.append(one.SerializeToString() if draw.random() < 0.9 else None)
    return made


def expected(rest: bytes | None, key: str) -> str | None:
    """Return what protobuf and `as_text` make of it."""
    return None if rest is None else stored._texts(rest).get(key)


@pytest.mark.parametrize("key", KEYS)
def test_the_text_is_that_of_as_text(key: str) -> None:
    """Of a slice as well, and of no row."""
    made = spans(3, 400)
    rests = pa.array(made, pa.binary())
    for part, wanted in ((rests, made), (rests.slice(17, 101), made[17:118]), (rests.slice(0, 0), [])):
        found = stored._attribute(part, pa.array([key] * len(part), pa.string()))
        found.validate(full=True)
        assert found.to_pylist() == [expected(one, key) for one in wanted]


def test_what_is_not_written_as_encoders_do_is_read() -> None:
    """Lengths of more bytes than needed, fields in another order, a value in two pieces, an unknown field."""
    value = AnyValue(string_value="gold").SerializeToString()
    pair = KeyValue(key="t", value=AnyValue(string_value="gold")).SerializeToString()
    pairs = (
        pair,
        b"\x0a\x81\x00t\x12\x06" + value,
        b"\x12\x06" + value + b"\x0a\x01t",
        pair + b"\x12\x02\x10\x01",
        pair + b"\x18\x05",
        b"\x0a\x01x" + pair,
    )
    for one in pairs:
        rest = b"\x4a" + bytes([len(one)]) + one
        assert stored._attribute(pa.array([rest], pa.binary()), pa.array(["t"])).to_pylist() == [expected(rest, "t")]
    long = b"\x4a" + bytes([0x80 | len(pair), 0]) + pair
    assert stored._attribute(pa.array([long], pa.binary()), pa.array(["t"])).to_pylist() == [expected(long, "t")]


@pytest.mark.parametrize("kind", [STRING, INT, DOUBLE])
def test_a_kind_is_the_only_one_meant(kind: str) -> None:
    made = spans(4, 300)
    found = stored._later(pa.array(made, pa.binary()), pa.array(["tenant.id"] * 300), pa.array([kind] * 300))
    for rest, text in zip(made, found.to_pylist(), strict=True):
        last = [one.value for one in Span.FromString(rest or b"").attributes if one.key == "tenant.id"][-1:]
        assert (text is not None) == any(one.WhichOneof("value") == kind for one in last)
        assert text in (None, expected(rest, "tenant.id"))


def test_of_a_resource_it_is_the_same() -> None:
    made = [ResourceSpans() for _ in VALUES]
    for one, value in zip(made, VALUES, strict=True):
        one.resource.attributes.append(KeyValue(key="k", value=value))
    blobs = [one.SerializeToString() for one in made] * 2
    found = stored._of_resource(pa.array([*blobs, None], pa.binary()), pa.array(["k"] * (len(blobs) + 1))).to_pylist()
    assert found == [*(stored._resource_texts(one)["k"] for one in blobs), None]


def test_a_column_has_the_same_text() -> None:
    """Of a number with a fraction DuckDB would write more."""
    connection: Any = duckdb.connect()
    column = pa.table({"threshold_ms": pa.array(NUMBERS)})
    connection.register("selected", column)
    query = f"SELECT {stored.column_text('threshold_ms', 'DOUBLE')} FROM selected"  # noqa: S608
    assert [text for (text,) in connection.execute(query).fetchall()] == [as_text(one) for one in NUMBERS]
