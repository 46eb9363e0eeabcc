"""Work out in which stages each part of a breakdown lies, so that `sla.breach.stage` and the cause agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.semconv import (
    CPU_TIME_MS,
    CPU_WAIT_MS,
    NETWORK_RECEIVE,
    NETWORK_SEND,
    QUEUE,
    QUEUE_BLOCKED_BY,
    QUEUE_REASON,
)
from stagetrace.sla import cause
from stagetrace.sla.verdict import overlap
from stagetrace.sources import gc_pauses, thread_cpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Protocol

    from stagetrace.recording.segments import Segment
    from stagetrace.sources.thread_cpu import CpuSample, Descriptor

    Interval = tuple[int, int]
    Piece = tuple[list[Interval], thread_cpu.Share]

    class Measurements(Protocol):
        """What a request's record has measured, besides its stages."""

        cpu_samples: Sequence[tuple[CpuSample, CpuSample]]
        wakeups: Sequence[tuple[int, int, int]]
        calls: Sequence[tuple[str, int, int]]
        peer_waits: Sequence[Interval] | None
        socket_waits: Sequence[tuple[int, int, bool]]

        def fits_buffer(self, activity: str) -> bool: ...  # noqa: D102


WAITS: Final = {NETWORK_RECEIVE: cause.SLOW_UPLOAD, NETWORK_SEND: cause.SLOW_DOWNLOAD}
QUEUES: Final = {"socket": cause.SOCKET_WAIT, "batch": cause.BATCH_WAIT}


def queue_part(segment: Segment) -> str:
    """Return the part of the breakdown that a wait in a queue is."""
    return QUEUES.get(segment.attributes.get(QUEUE_REASON, ""), cause.POOL_WAIT)


class Section(NamedTuple):
    """What one thread did for the request without a break, between two CPU samples."""

    start: int
    end: int
    thread: Descriptor
    share: thread_cpu.Share | None  # None where it is unknown, or how long the thread waited for a CPU


def sections_of(samples: Iterable[tuple[CpuSample, CpuSample]]) -> list[Section]:
    """Return the sections by their start; the longer of two that begin together, with one sample, comes first."""
    found = []
    for first, last in samples:
        share = thread_cpu.between(first, last)
        is_known = share is not None and share.waited != thread_cpu.UNKNOWN
        found.append(Section(first[thread_cpu.AT], last[thread_cpu.AT], first[0], share if is_known else None))
    return sorted(found, key=lambda section: (section.start, -section.end))


def times_by_stage(
    segments: Iterable[Segment],
    measured: Measurements,
    sections: Sequence[Section],
    remote: Iterable[tuple[Segment, int, int]],
) -> Mapping[str, Mapping[str, float]]:
    """Return part -> stage -> nanoseconds, at most: to compare stages, not to be added up."""
    found: dict[str, dict[str, float]] = {}
    pieces = list(_pieces(sections))
    for segment, computed, waited in remote:
        whole = segment.end - segment.start
        pieces.append(([(segment.start, segment.end)], thread_cpu.Share(whole, computed, waited, 0, 0)))
    calls = sorted((begin, end) for _, begin, end in measured.calls)
    for segment in segments:
        in_stage = _waits(segment, measured) if segment.stage == QUEUE or segment.stage in WAITS else []
        if segment.stage != QUEUE:
            in_stage += _work((segment.start, segment.end), pieces, calls)
        in_stage.append((cause.GC, gc_pauses.paused_ns(segment.start, segment.end)))
        for part, took in in_stage:
            if took > 0:
                stages = found.setdefault(part, {})
                stages[segment.stage] = stages.get(segment.stage, 0.0) + took
    return found


def remote_stages(segments: Iterable[Segment], sections: Sequence[Section]) -> Iterator[tuple[Segment, int, int]]:
    """Yield the stages that another process worked at, so that no thread of this one has CPU samples of them.

    With each comes how long it computed and waited for a CPU, in nanoseconds, all that is known of it; and likewise a
    batch's inference, of which nothing is.
    """
    for segment in segments:
        attributes, whole = segment.attributes, segment.end - segment.start
        if CPU_TIME_MS not in attributes and segment.link is None:
            continue
        if not any(one.start < segment.end and segment.start < one.end for one in sections):
            computed, waited = (int(attributes.get(name, 0.0) * 1e6) for name in (CPU_TIME_MS, CPU_WAIT_MS))
            computed = min(computed, whole)
            yield segment, computed, min(waited, whole - computed)


def _waits(segment: Segment, measured: Measurements) -> list[tuple[str, float]]:
    """Return the parts that a stage in which the request waits may be, whichever the breakdown chooses."""
    whole, times = segment.end - segment.start, [(segment.start, segment.end)]
    if segment.stage != QUEUE:
        in_socket = [overlap(times, [(begin, end)]) for begin, end, _ in measured.socket_waits]
        waited = whole if measured.peer_waits is None else overlap(times, measured.peer_waits)
        waited = 0 if measured.fits_buffer(segment.stage) else waited
        return [(WAITS[segment.stage], waited), *((part, sum(in_socket)) for part in _LATE)]
    part = queue_part(segment)
    found: list[tuple[str, float]] = [(part, whole)]
    if part == cause.SOCKET_WAIT and QUEUE_BLOCKED_BY not in segment.attributes:
        found += [(other, whole) for other in _LATE[1:]]
    if part == cause.POOL_WAIT:
        for begin, end, lacked in measured.wakeups:
            over = overlap(times, [(begin, end)])
            short = over if lacked == thread_cpu.UNKNOWN else min(lacked, over)
            found += [
                (cause.CPU_WAIT, short),
                (cause.LOCK_WAIT, over if lacked == thread_cpu.UNKNOWN else over - short),
            ]
    return found


_LATE: Final = (cause.SOCKET_WAIT, cause.CPU_WAIT, cause.LOCK_WAIT)


def _work(times: Interval, pieces: Iterable[Piece], calls: Sequence[Interval]) -> list[tuple[str, float]]:
    """Return the parts of a stage in which the request works, by its sections and its calls to other services."""
    found: list[tuple[str, float]] = [(cause.DOWNSTREAM, overlap([times], calls))]
    explained = list(calls)
    for intervals, share in pieces:
        explained += intervals
        within = sum(overlap([times], [one]) for one in intervals)
        if within:
            part = within / sum(end - begin for begin, end in intervals)
            found += [(cause.COMPUTE, part * share.computed), (cause.CPU_WAIT, part * share.waited)]
            found += [(word, part * share.blocked) for word in (cause.LOCK_WAIT, cause.IO_WAIT)]
    found.append((cause.IO_WAIT, times[1] - times[0] - overlap([times], sorted(explained))))
    return found


def _pieces(sections: Sequence[Section]) -> Iterable[Piece]:
    """Yield the times and the share of each section, without the sections within it on the same thread."""
    for place, section in enumerate(sections):
        share = section.share
        if share is None:
            continue
        at, times = section.start, []
        for other in sections[place + 1 :]:
            inner = other.share
            if other.thread is section.thread and inner is not None and at <= other.start and other.end <= section.end:
                times.append((at, other.start))
                at = other.end
                share = share._replace(
                    computed=max(share.computed - inner.computed, 0),
                    waited=max(share.waited - inner.waited, 0),
                    blocked=max(share.blocked - inner.blocked, 0),
                )
        yield [*times, (at, section.end)], share
