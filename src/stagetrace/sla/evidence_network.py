"""Add the state of the client's connection to the evidence of a slow upload or download: pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.semconv import NETWORK_RETRANSMITS, NETWORK_RTT_MS, NETWORK_UNACKED_BYTES
from stagetrace.sla.cause import SLOW_DOWNLOAD, SLOW_UPLOAD

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.sla.cause import Cause

ABOUT: Final = (SLOW_DOWNLOAD, SLOW_UPLOAD)


def connection_evidence(cause: Cause, attributes: Mapping[str, Any]) -> str:
    """Return the entry span's attributes of the client's connection in words, to be appended to the evidence."""
    if cause.word not in ABOUT or NETWORK_RTT_MS not in attributes:
        return ""
    phrases = [f"round trip to the client {attributes[NETWORK_RTT_MS]:.1f} ms"]
    if attributes.get(NETWORK_RETRANSMITS):
        phrases.append(f"{attributes[NETWORK_RETRANSMITS]} segments retransmitted")
    if cause.word == SLOW_DOWNLOAD and attributes.get(NETWORK_UNACKED_BYTES):
        phrases.append(f"{attributes[NETWORK_UNACKED_BYTES]} bytes unacknowledged at the end")
    return f"; {', '.join(phrases)}"
