"""Protobuf's wire format, as far as taking messages apart needs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MORE: Final = 0x80  # set in each byte of a number but its last
DELIMITED: Final = 2
_VARINT: Final = 0
_WIDTHS: Final = {1: 8, 5: 4}
_LEAST_TAG: Final = 1 << 3  # of field number 1
_GREATEST_TAG: Final = (1 << 32) - 1
_LONGEST: Final = 70  # bits, ten bytes of seven


class BrokenError(ValueError):
    """Say that the bytes are no message."""


class Field(NamedTuple):
    """Where a field of a message is: its number, its tag's first byte, its value's first byte, what follows it."""

    number: int
    start: int
    first: int
    after: int
    delimited: bool


def varint(number: int) -> bytes:
    """Return a number as lengths are written."""
    out = bytearray()
    while number >= MORE:
        out.append(number & (MORE - 1) | MORE)
        number >>= 7
    out.append(number)
    return bytes(out)


def varint_at(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at` and what follows it. Raise BrokenError if there is none."""
    number = shift = 0
    for place in range(at, len(data)):
        byte = data[place]
        number |= (byte & (MORE - 1)) << shift
        if byte < MORE:
            return number, place + 1
        shift += 7
        if shift >= _LONGEST:
            break
    raise BrokenError(at)


def field_at(data: bytes | memoryview, at: int, end: int) -> Field:
    """Return the field at `at` of a message that ends at `end`. Raise BrokenError if it does not fit in."""
    tag, first = varint_at(data, at)
    if not _LEAST_TAG <= tag <= _GREATEST_TAG:
        raise BrokenError(at)
    kind = tag & 7
    if kind == DELIMITED:
        size, first = varint_at(data, first)
        after = first + size
    elif kind == _VARINT:
        _, after = varint_at(data, first)
    elif kind in _WIDTHS:
        after = first + _WIDTHS[kind]
    else:
        raise BrokenError(at)  # groups, which nothing has used for twenty years
    if after > end:
        raise BrokenError(at)
    return Field(tag >> 3, at, first, after, kind == DELIMITED)


def fields(data: bytes | memoryview, at: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message at data[at:end]. Raise BrokenError where it breaks."""
    while at < end:
        field = field_at(data, at, end)
        yield field
        at = field.after
