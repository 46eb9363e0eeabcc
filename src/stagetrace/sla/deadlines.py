"""The deadlines that a request brings along: `grpc-timeout` of gRPC, and headers in milliseconds. Pure and total."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.sla.objective import GRPC_TIMEOUT, HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_GRPC: Final = re.compile(r"([0-9]{1,8})([HMSmun])")  # of the protocol's specification
_UNITS_NS: Final = {"H": 3_600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 10**3, "n": 1}
_MS: Final = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,15}))?")
LONGEST_NS: Final = 10**8 * 10**9  # a later deadline counts as none: some clients send the largest number for that


class Deadlines(NamedTuple):
    """Deadlines in nanoseconds by their source, and the sources whose value cannot be one."""

    ns: dict[str, int]
    unusable: tuple[str, ...]


def deadline_ns(source: str, text: str) -> int | None:
    """Return the deadline in a header's value; None for what is no positive time, or one of more than three years."""
    text = text.strip(" \t")
    if source == GRPC_TIMEOUT:
        found = _GRPC.fullmatch(text)
        ns = int(found[1]) * _UNITS_NS[found[2]] if found is not None else 0
    else:
        found = _MS.fullmatch(text)
        ns = int(found[1]) * 10**6 + int((found[2] or "").ljust(6, "0")[:6]) if found is not None else 0
    return ns if 0 < ns <= LONGEST_NS else None


def deadlines(sources: Iterable[str], value: Callable[[str], str | None], rpc_ns: int | None) -> Deadlines:
    """Return the deadlines of a request; `value` returns its headers, `rpc_ns` is what gRPC itself knows of an RPC."""
    found, unusable = {}, []
    for source in sources:
        if source == GRPC_TIMEOUT and rpc_ns is not None:
            found[source] = rpc_ns
            continue
        text = value(HEADER + source)
        if text is None:
            continue
        ns = deadline_ns(source, text)
        if ns is None:
            unusable.append(source)
        else:
            found[source] = ns
    return Deadlines(found, tuple(unusable))
