"""All sources, for those who say which of them there are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.sources import gc_pauses as pauses
from stagetrace.sources import machine
from stagetrace.sources import page_faults as usage
from stagetrace.sources import socket_wait as tcp
from stagetrace.sources import tcp_info as wire
from stagetrace.sources import thread_cpu as threads

if TYPE_CHECKING:
    from stagetrace.sources.base import Source

FAILED: Final = "it failed or hung"
SOURCES: Final[tuple[Source, ...]] = (
    tcp.SOURCE,
    wire.SOURCE,
    threads.SOURCE,
    pauses.SOURCE,
    usage.SOURCE,
    machine.PRESSURE_SOURCE,
    machine.QUOTA_SOURCE,
)


def silent() -> dict[str, str]:
    """Return the sources that are asked here and could not tell of a request, and why."""
    asked = (source for source in SOURCES if source.is_wanted and source.lacks is None)
    found = {source.title: source.silent if source.is_used else FAILED for source in asked}
    return {title: why for title, why in found.items() if why is not None}


def states() -> dict[str, str | None]:
    """Return for each source why it is not read in this process; None where it is."""
    found: dict[str, str | None] = {}
    for source in SOURCES:
        if not source.is_wanted:
            found[source.title] = f"{source.variable} says so"
        else:
            found[source.title] = source.lacks or (source.silent if source.is_used else FAILED)
    if found[threads.SOURCE.title] is None:
        found[f"{threads.SOURCE.title} apart from being blocked"] = threads.lacks_waiting()
    return found
