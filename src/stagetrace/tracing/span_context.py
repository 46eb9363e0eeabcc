"""What identifies a span: its ids, whether it is sampled, and what vendors add to it."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

# https://www.w3.org/TR/trace-context/#tracestate-header
_KEY: Final = r"[a-z][_0-9a-z\-*/]{0,255}|[a-z0-9][_0-9a-z\-*/]{0,240}@[a-z][_0-9a-z\-*/]{0,13}"
_VALUE: Final = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER: Final = re.compile(f"({_KEY})=({_VALUE})")
_MOST_MEMBERS: Final = 32
_MOST_TRACE: Final = (1 << 128) - 1
_MOST_SPAN: Final = (1 << 64) - 1


class TraceFlags(int):
    """The flags of a trace: 1 if it is sampled, 2 if its id is random."""

    __slots__ = ()

    @property
    def sampled(self) -> bool:
        """Whether the span is sampled."""
        return bool(self & 1)

    @property
    def random_trace_id(self) -> bool:
        """Whether the last 56 bits of the trace id are random."""
        return bool(self & 2)


class TraceState(dict[str, str]):
    """What vendors add to a trace, by their keys. It is not changed."""

    __slots__ = ()

    def to_header(self) -> str:
        """Return the header `tracestate`."""
        return ",".join([f"{key}={value}" for key, value in self.items()])

    @classmethod
    def from_header(cls, headers: list[str]) -> TraceState:
        """Return what headers have; nothing where one of them is malformed, or a key stands in them twice."""
        found = cls()
        for text in ",".join(headers).split(","):
            member = text.strip(" \t")
            if not member:
                continue
            match = _MEMBER.fullmatch(member)
            if match is None or match[1] in found:
                return cls()
            found[match[1]] = match[2]
        return found if len(found) <= _MOST_MEMBERS else cls()


class _Parts(NamedTuple):
    trace_id: int
    span_id: int
    is_remote: bool
    trace_flags: TraceFlags
    trace_state: Any  # a TraceState, of ours or of OpenTelemetry
    is_valid: bool


NO_FLAGS: Final = TraceFlags(0)
SAMPLED: Final = TraceFlags(1)
NO_STATE: Final = TraceState()


class SpanContext(_Parts):
    """The identity of a span. Its parts stand in the order that OpenTelemetry's has."""

    __slots__ = ()

    def __new__(  # noqa: PYI034 -- 3.10 has no `Self`
        cls,
        trace_id: int,
        span_id: int,
        is_remote: bool,
        trace_flags: Any = NO_FLAGS,
        trace_state: Any = None,
    ) -> SpanContext:
        """Make one; it is not valid if an id is 0 or too long."""
        is_valid = 0 < trace_id <= _MOST_TRACE and 0 < span_id <= _MOST_SPAN
        state = trace_state or NO_STATE
        return _Parts.__new__(cls, trace_id, span_id, is_remote, trace_flags or NO_FLAGS, state, is_valid)


INVALID: Final = SpanContext(0, 0, is_remote=False)
