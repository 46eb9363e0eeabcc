"""Work out in which of a request's stages each part of its time lies, so that stage and cause are of one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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

    from stagetrace.recording.segments import Segment
    from stagetrace.sla.breakdown import Noted
    from stagetrace.sources.thread_cpu import CpuSample

    Interval = tuple[int, int]
    Piece = tuple[list[Interval], thread_cpu.Share]

WAITS: Final = {NETWORK_RECEIVE: cause.SLOW_UPLOAD, NETWORK_SEND: cause.SLOW_DOWNLOAD}
QUEUES: Final = {"socket": cause.SOCKET_WAIT, "batch": cause.BATCH_WAIT}


def queue_part(segment: Segment) -> str:
    """Return what part of the request's time a wait in a queue is."""
    return QUEUES.get(segment.attributes.get(QUEUE_REASON, ""), cause.POOL_WAIT)


def places_of(segments: Iterable[Segment], noted: Noted) -> Mapping[str, Mapping[str, float]]:
    """Return for each part how much of it lies in which stages, at most: to compare stages, not to be added up."""
    found: dict[str, dict[str, float]] = {}
    pieces = list(_pieces(noted.accounts))
    for segment, computed, waited in elsewhere(segments, noted.accounts):
        whole = segment.end - segment.start
        pieces.append(([(segment.start, segment.end)], thread_cpu.Share(whole, computed, waited, 0, 0)))
    calls = sorted((begin, end) for _, begin, end in noted.calls)
    for segment in segments:
        in_stage = _waits(segment, noted) if segment.stage == QUEUE or segment.stage in WAITS else []
        if segment.stage != QUEUE:
            in_stage += _work((segment.start, segment.end), pieces, calls)
        in_stage.append((cause.GC, gc_pauses.paused_ns(segment.start, segment.end)))
        for part, took in in_stage:
            if took > 0:
                stages = found.setdefault(part, {})
                stages[segment.stage] = stages.get(segment.stage, 0.0) + took
    return found


def elsewhere(
    segments: Iterable[Segment], accounts: Sequence[tuple[CpuSample, CpuSample]]
) -> Iterator[tuple[Segment, int, int]]:
    """Yield the stages of which no thread of this process has accounts, since another one worked for the request.

    With each goes what it computed and waited for a CPU, in nanoseconds: all that is known of it. So too of a batch's
    inference of which nothing is.
    """
    sections = [(first[thread_cpu.AT], last[thread_cpu.AT]) for first, last in accounts]
    for segment in segments:
        attributes, whole = segment.attributes, segment.end - segment.start
        if CPU_TIME_MS not in attributes and segment.link is None:
            continue
        if not any(begin < segment.end and segment.start < end for begin, end in sections):
            computed, waited = (int(attributes.get(name, 0.0) * 1e6) for name in (CPU_TIME_MS, CPU_WAIT_MS))
            computed = min(computed, whole)
            yield segment, computed, min(waited, whole - computed)


def _waits(segment: Segment, noted: Noted) -> list[tuple[str, float]]:
    """Return what a stage in which the request waits may be, whatever is decided on that."""
    whole, times = segment.end - segment.start, [(segment.start, segment.end)]
    if segment.stage != QUEUE:
        lain = [overlap(times, [(begin, end)]) for begin, end, _ in noted.socket_waits]
        waited = whole if noted.peer_waits is None else overlap(times, noted.peer_waits)
        waited = 0 if noted.is_quick(segment.stage) else waited
        return [(WAITS[segment.stage], waited), *((part, sum(lain)) for part in _LATE)]
    part = queue_part(segment)
    found: list[tuple[str, float]] = [(part, whole)]
    if part == cause.SOCKET_WAIT and QUEUE_BLOCKED_BY not in segment.attributes:
        found += [(other, whole) for other in _LATE[1:]]
    if part == cause.POOL_WAIT:
        for begin, end, lacked in noted.handed:
            over = overlap(times, [(begin, end)])
            short = over if lacked == thread_cpu.UNKNOWN else min(lacked, over)
            found += [
                (cause.CPU_WAIT, short),
                (cause.LOCK_WAIT, over if lacked == thread_cpu.UNKNOWN else over - short),
            ]
    return found


_LATE: Final = (cause.SOCKET_WAIT, cause.CPU_WAIT, cause.LOCK_WAIT)


def _work(times: Interval, pieces: Iterable[Piece], calls: Sequence[Interval]) -> list[tuple[str, float]]:
    """Return what a stage in which the request works may be, by its sections and its calls to other services."""
    found: list[tuple[str, float]] = [(cause.DOWNSTREAM, overlap([times], calls))]
    told = list(calls)
    for intervals, share in pieces:
        told += intervals
        within = sum(overlap([times], [one]) for one in intervals)
        if within:
            part = within / sum(end - begin for begin, end in intervals)
            found += [(cause.COMPUTE, part * share.computed), (cause.CPU_WAIT, part * share.waited)]
            found += [(word, part * share.blocked) for word in (cause.LOCK_WAIT, cause.IO_WAIT)]
    found.append((cause.IO_WAIT, times[1] - times[0] - overlap([times], sorted(told))))
    return found


def _pieces(accounts: Sequence[tuple[CpuSample, CpuSample]]) -> Iterable[Piece]:
    """Yield the times and the share of each section, without the sections within it on the same thread."""
    by_time = sorted(accounts, key=lambda one: (one[0][thread_cpu.AT], -one[1][thread_cpu.AT]))
    for place, (first, last) in enumerate(by_time):
        share = thread_cpu.between(first, last)
        if share is None or share.waited == thread_cpu.UNKNOWN:
            continue
        at, times = first[thread_cpu.AT], []
        for since, until in by_time[place + 1 :]:
            inner = thread_cpu.between(since, until)
            if (
                since[0] is first[0]
                and inner is not None
                and at <= since[thread_cpu.AT]
                and until[thread_cpu.AT] <= last[thread_cpu.AT]
            ):
                times.append((at, since[thread_cpu.AT]))
                at = until[thread_cpu.AT]
                share = share._replace(
                    computed=max(share.computed - inner.computed, 0),
                    waited=max(share.waited - inner.waited, 0),
                    blocked=max(share.blocked - inner.blocked, 0),
                )
        yield [*times, (at, last[thread_cpu.AT])], share
