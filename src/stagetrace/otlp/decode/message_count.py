"""How many messages a serialized message holds: two bytes of one become an object of a hundred bytes in protobuf."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from stagetrace.otlp.decode.protobuf_wire import BrokenError, fields

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message


def holds_more(kind: type[Message], data: bytes, most: int) -> bool:
    """Return whether a message holds more than `most` others, at any depth. What is no message is not counted."""
    count = 0
    waiting = [(kind.DESCRIPTOR, 0, len(data))]
    while waiting:
        descriptor, at, end = waiting.pop()
        held = _held(descriptor)
        try:
            for field in fields(data, at, end):
                inner = held.get(field.number) if field.delimited else None
                if inner is not None:
                    count += 1
                    if count > most:
                        return True
                    waiting.append((inner, field.first, field.after))
        except BrokenError:  # protobuf refuses it, too
            continue
    return False


@lru_cache
def _held(descriptor: Descriptor) -> dict[int, Descriptor]:
    """Return the kinds of messages that one holds, by the numbers of its fields."""
    return {field.number: field.message_type for field in descriptor.fields if field.message_type is not None}
