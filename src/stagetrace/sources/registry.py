"""All sources, for `doctor` and the process status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from stagetrace.sources import gc_pauses, machine, page_faults, socket_wait, stacks, tcp_info, thread_cpu

if TYPE_CHECKING:
    from stagetrace.sources.base import Source

FAILED: Final = "it failed"
SOURCES: Final[tuple[Source, ...]] = (
    socket_wait.SOURCE,
    tcp_info.SOURCE,
    thread_cpu.SOURCE,
    gc_pauses.SOURCE,
    page_faults.SOURCE,
    machine.PRESSURE_SOURCE,
    machine.QUOTA_SOURCE,
    stacks.SOURCE,
)


def silent() -> dict[str, str]:
    """Return the sources that are wanted here and could not be read for a request, and why."""
    wanted = (source for source in SOURCES if source.is_wanted and source.lacks is None)
    found = {source.title: source.silent or source.why_paused() if source.is_used else FAILED for source in wanted}
    return {title: why for title, why in found.items() if why is not None}


def states() -> dict[str, str | None]:
    """Return for each source why it is not read in this process; None where it is."""
    found: dict[str, str | None] = {}
    for source in SOURCES:
        if not source.is_wanted:
            found[source.title] = f"switched off by {source.variable}"
        else:
            found[source.title] = source.lacks or (source.silent or source.why_paused() if source.is_used else FAILED)
    if found[thread_cpu.SOURCE.title] is None:
        found[f"{thread_cpu.SOURCE.title} apart from being blocked"] = thread_cpu.lacks_waiting()
    return found
