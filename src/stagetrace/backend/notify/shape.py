"""The forms that alerts have on the way to receivers, as Prometheus and Alertmanager write them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from stagetrace.rules.alert_state import Labels

NEVER: Final = "0001-01-01T00:00:00Z"  # Go's zero time: the end of what fires
_OFFSET, _PRIME, _SEPARATOR = 14_695_981_039_346_656_037, 1_099_511_628_211, b"\xff"
_NS: Final = 10**9


def at(unix_nano: int) -> str:
    """Return a time in RFC 3339, to the millisecond."""
    return f"{datetime.fromtimestamp(unix_nano // _NS, timezone.utc):%Y-%m-%dT%H:%M:%S}.{unix_nano % _NS // 10**6:03}Z"


def fingerprint(labels: Labels) -> str:
    """Return Prometheus' fingerprint of labels: FNV-1a, of 64 bits."""
    found = _OFFSET
    for byte in b"".join(part.encode() + _SEPARATOR for label in sorted(labels) for part in label):
        found = (found ^ byte) * _PRIME % 2**64
    return f"{found:016x}"


def common(sets: Iterable[Labels]) -> dict[str, str]:
    """Return the labels that all sets have with the same value."""
    first, *others = map(dict, sets)
    return {name: value for name, value in first.items() if all(one.get(name) == value for one in others)}


def only(labels: Labels, names: Iterable[str]) -> Mapping[str, str]:
    """Return the labels with these names."""
    return {name: value for name, value in labels if name in names}
