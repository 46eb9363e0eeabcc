"""The decoder's two implementations: the native one, if it was built, reads the same spans for a tenth of the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.native import native
from stagetrace.otlp.decode.spans import EVER, HELD, Parts, SpanColumns, parts_in_python

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    # How many are NULL, then what Arrow's columnar format prescribes; None where there is no value at all.
    Buffers = tuple[Any, ...] | None

_in_c = native("decoder")


def _parts(data: bytes, at: int, end: int, most: int, tag: int = HELD) -> Parts:
    """Do as `parts_in_python`."""
    return Parts(*_in_c.decode_parts(data, at, end, most, tag))


class NativeSpanColumns:
    """Do as `SpanColumns`, in a log of native code."""

    def __init__(self) -> None:
        """Begin without a span."""
        self.size = 0
        self.log = _in_c.open_log()

    def add(self, data: bytes, held: bytes, most: int, latest: int = EVER) -> dict[str, int]:
        """Do as `SpanColumns.add`."""
        refused: dict[str, int]
        size, refused = _in_c.add_spans(self.log, data, held, most, latest)
        self.size += size
        return refused


class Implementation(NamedTuple):
    """What `request.decode` calls."""

    parts: Callable[[bytes, int, int, int, int], Parts]
    columns: type[SpanColumns | NativeSpanColumns]


PYTHON: Final = Implementation(parts_in_python, SpanColumns)
NATIVE: Final = None if _in_c is None else Implementation(_parts, NativeSpanColumns)


def joined(spans: Sequence[NativeSpanColumns]) -> list[Buffers]:
    """Return the spans of several requests as the buffers of FIXED's and SPARSE's columns."""
    found: list[Buffers] = _in_c.join_logs([one.log for one in spans])
    return found


STRANGE: Final = 0xFF


def find(spans: pa.Array, key: bytes) -> pa.Array:
    """Return the serialized value of the last attribute of each serialized span that has the key; b"" where none has.

    Of a span that may have it but is not written as encoders do, it is STRANGE and the span.
    """
    import pyarrow as pa

    if _in_c is None:
        strange = bytes((STRANGE,))
        found = [strange + one if one and key in one else b"" for one in spans.to_pylist()]
        return pa.array(found, pa.binary())
    whole = spans.fill_null(b"")
    _, offsets, data = (b"" if one is None else one.to_pybytes() for one in whole.buffers())
    first = whole.offset * 4  # bytes of an offset
    places = offsets[first : first + 4 * (len(whole) + 1)] or bytes(4)
    buffers = _in_c.find_attribute(data, places, key)
    return pa.Array.from_buffers(pa.binary(), len(whole), [None, *map(pa.py_buffer, buffers)])
