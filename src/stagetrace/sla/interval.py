"""The part of a request in which a bound of its response was missed: its stages, and what was measured in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.recording.segments import Segment
from stagetrace.semconv import CPU_TIME_MS, CPU_WAIT_MS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stagetrace.recording.exchange import RemoteSection
    from stagetrace.recording.record import RequestRecord
    from stagetrace.sources.thread_cpu import CpuSample, Share


class Within:
    """What a request's record has measured within [start, end), in nanoseconds since the epoch."""

    def __init__(self, record: RequestRecord, start: int, end: int) -> None:
        self._record = record
        self.bounds = start, end
        stream = record.stream
        self._noted = () if stream is None or stream.widest != self.bounds else stream.of_widest
        # Of these sections, parts may lie outside.
        self.cpu_samples: Sequence[tuple[CpuSample, CpuSample]] = self._all("cpu_samples")
        self.remote_sections: Sequence[RemoteSection] = record.remote_sections
        self.computed: Sequence[tuple[int, int, int, int]] = [
            part for one in record.computed if (part := self._part(*one)) is not None
        ]
        self.wakeups: Sequence[tuple[int, int, int]] = [
            (*self._clip(*at), lacked) for *at, lacked in self._all("wakeups")
        ]
        self.calls: Sequence[tuple[str, int, int]] = [(peer, *self._clip(*at)) for peer, *at in self._all("calls")]
        self.behind: Sequence[tuple[int, int, str]] = [(*self._clip(*at), by) for *at, by in self._all("behind")]
        self.socket_waits: Sequence[tuple[int, int, bool]] = [
            (*self._clip(begin, until), known) for begin, until, known in record.socket_waits
        ]
        waits = None if record.peer_waits is None else self._all("peer_waits")
        self.peer_waits: Sequence[tuple[int, int]] | None = None if waits is None else [self._clip(*at) for at in waits]

    def _all(self, name: str) -> list[Any]:
        kept = list(getattr(self._record, name) or ())
        known = {id(one) for one in kept}
        return kept + [what for of, what in self._noted if of == name and id(what) not in known]

    def _part(self, begin: int, until: int, computed: int, thread: int) -> tuple[int, int, int, int] | None:
        since, end = self._clip(begin, until)
        return (since, end, computed * (end - since) // (until - begin), thread) if since < end else None

    def _clip(self, begin: int, until: int) -> tuple[int, int]:
        start, end = self.bounds
        begin = min(max(begin, start), end)
        return begin, max(min(until, end), begin)

    def fits_buffer(self, activity: str) -> bool:
        """Return what the record does."""
        return self._record.fits_buffer(activity)

    def loop_shares(self, start: int, end: int) -> Sequence[tuple[int, int, Share]]:
        """Return what the thread of the event loop has done, as it was read at the time or is still known."""
        stream = self._record.stream
        kept = None if stream is None else stream.loop_shares(*self.bounds)
        if kept is None:
            return self._record.loop_shares(start, end)
        return [one for one in kept if one[0] < end and start < one[1]]


def clipped(segments: Iterable[Segment], start: int, end: int) -> list[Segment]:
    """Return what of these stages lies within [start, end)."""
    found = []
    for one in segments:
        since, until = max(one.start, start), min(one.end, end)
        if since >= until:
            continue
        part = Segment(one.stage, since)
        share = (until - since) / (one.end - one.start)
        part.end, part.link = until, one.link
        part.attributes = {
            name: value * share if name in (CPU_TIME_MS, CPU_WAIT_MS) else value
            for name, value in one.attributes.items()
        }
        found.append(part)
    return found
