"""Work out how each stage divides into the parts of a breakdown: stage, cause and evidence come from this table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.causes import cause
from stagetrace.policy.verdict import overlap
from stagetrace.semconv import CPU_TIME_MS, CPU_WAIT_MS, NETWORK_RECEIVE, NETWORK_SEND, QUEUE_REASON
from stagetrace.sources import thread_cpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from typing import Protocol

    from stagetrace.request.exchange import RemoteSection, RemoteThread
    from stagetrace.request.stages import Segment
    from stagetrace.sources.thread_cpu import CpuSample, Descriptor, Share

    Interval = tuple[int, int]
    Cells = dict[str, dict[str, float]]  # nanoseconds by part of the breakdown, and by stage
    Piece = tuple[list[Interval], int, thread_cpu.Share]  # when a thread worked, how long in all, and what it did

    class Measurements(Protocol):
        """What a request has measured, besides its stages."""

        cpu_samples: Sequence[tuple[CpuSample, CpuSample]]
        computed: Sequence[tuple[int, int, int, int]]
        remote_sections: Sequence[RemoteSection]
        wakeups: Sequence[tuple[int, int, int]]
        calls: Sequence[tuple[str, int, int]]
        behind: Sequence[tuple[int, int, str]]
        peer_waits: Sequence[Interval] | None
        socket_waits: Sequence[tuple[int, int, bool]]

        def fits_buffer(self, activity: str) -> bool: ...  # noqa: D102
        def loop_shares(self, start: int, end: int) -> Sequence[tuple[int, int, Share]]: ...  # noqa: D102


WAITS: Final = {NETWORK_RECEIVE: cause.SLOW_UPLOAD, NETWORK_SEND: cause.SLOW_DOWNLOAD}
# The parts that a time outside of sections may have, by what the event loop did meanwhile.
_OF_THE_REST: Final = (cause.IO_WAIT, cause.UNKNOWN, cause.CPU_WAIT, cause.LOCK_WAIT)
ROUNDS: Final = 16
EXACT: Final = 0.001  # of the whole time


def queue_part(segment: Segment) -> str:
    """Return the part of the breakdown that a wait in a queue is."""
    return cause.QUEUES.get(segment.attributes.get(QUEUE_REASON, ""), cause.POOL_WAIT)


class Section(NamedTuple):
    """What one thread did for the request without a break, between two CPU samples."""

    start: int
    end: int
    thread: Descriptor | RemoteThread
    share: thread_cpu.Share | None  # None where it is unknown, or how long the thread waited for a CPU


def sections_of(measured: Measurements, within: Interval | None = None) -> list[Section]:
    """Return the sections by their start; the longer of two that begin together, with one sample, comes first.

    With `within` these are the parts in that interval, each as its whole section divides.
    """
    found = [Section(*one) for one in measured.remote_sections]
    for first, last in measured.cpu_samples:
        share = thread_cpu.between(first, last)
        is_known = share is not None and share.waited != thread_cpu.UNKNOWN
        found.append(Section(first[thread_cpu.AT], last[thread_cpu.AT], first[0], share if is_known else None))
    if within is not None:
        found = [part for one in found if (part := _part_of(one, *within)) is not None]
    return sorted(found, key=lambda section: (section.start, -section.end))


def with_marked(sections: Sequence[Section], computed: Iterable[tuple[int, int, int, int]]) -> list[Section]:
    """Return the sections, and those that stages marked by hand are within them: begin, end, computed ns, thread.

    Of such a stage only the CPU time is known. The rest divides as that of the section around it.
    """
    found = list(sections)
    for start, end, cpu_ns, thread in computed:
        around = [
            one
            for one in sections
            if one.share is not None and one.thread.thread == thread and one.start <= start and end <= one.end
        ]
        inmost = min(around, key=lambda one: one.end - one.start, default=None)
        if inmost is None or inmost.share is None:
            continue
        whole = inmost.share
        cpu_ns = min(cpu_ns, whole.computed, end - start)  # noqa: PLW2901
        rest = end - start - cpu_ns
        waited = rest * whole.waited // max(whole.waited + whole.blocked, 1)
        share = whole._replace(wall=end - start, computed=cpu_ns, waited=waited, blocked=rest - waited)
        found.append(Section(start, end, inmost.thread, share))
    return sorted(found, key=lambda section: (section.start, -section.end))


def _part_of(section: Section, start: int, end: int) -> Section | None:
    since, until = max(section.start, start), min(section.end, end)
    if since >= until:
        return None
    share, part = section.share, (until - since) / (section.end - section.start)
    if share is not None and part < 1:
        wall, computed, waited, blocked, rivals, turns, natives = (int(took * part) for took in share[:7])
        share = thread_cpu.Share(wall, computed, waited, blocked, rivals, turns, natives, share.for_threads)
    return section._replace(start=since, end=until, share=share)


def at_most(
    own: Mapping[str, Sequence[Interval]],
    sections: Sequence[Section],
    remote: Iterable[tuple[Segment, int, int]],
    calls: Sequence[Interval],
    collected: Sequence[Interval],
) -> Cells:
    """Return part -> stage -> nanoseconds, of the times in which the request itself works: estimates, for `fit`.

    `own` are these times by stage, `calls` those to other services, `collected` the runs of the garbage collector.
    """
    found: Cells = {}
    pieces = list(_pieces(sections))
    for segment, computed, waited in remote:
        whole = segment.end - segment.start
        pieces.append(([(segment.start, segment.end)], whole, thread_cpu.Share(whole, computed, waited, 0, 0)))
    for stage, times in own.items():
        if collected:
            add(found, cause.GC, stage, overlap(times, collected))
        for one in times:
            _add_work(found, stage, one, pieces, calls)
    return found


def add(cells: Cells, part: str, stage: str, took: float) -> None:
    """Add so many nanoseconds to one part of one stage; nothing if there are none."""
    if took > 0:
        stages = cells.setdefault(part, {})
        stages[stage] = stages.get(stage, 0) + took


def fit(near: Cells, times: Mapping[str, float], stages: Mapping[str, float]) -> Cells:
    """Return part -> stage -> nanoseconds, in about the proportions of `near`: iterative proportional fitting.

    The sums by stage are those of `stages`; by part those of `times`, as far as the two agree.
    """
    cells = {
        part: {stage: ns for stage, ns in near.get(part, {}).items() if ns > 0} or dict(stages)
        for part, took in times.items()
        if took > 0
    }
    for _ in range(ROUNDS):
        for part, row in cells.items():
            if whole := sum(row.values()):
                factor = times.get(part, whole) / whole
                row.update({stage: ns * factor for stage, ns in row.items()})
        off = 0.0
        for stage, took in stages.items():
            rows = [row for row in cells.values() if row.get(stage)]
            whole = sum(row[stage] for row in rows)
            off = max(off, abs(took - whole))
            for row in rows:
                row[stage] *= took / whole
            if not rows:
                cells.setdefault(cause.UNKNOWN, {})[stage] = took
        if off <= EXACT * sum(stages.values()):
            break
    return cells


def remote_stages(segments: Iterable[Segment], sections: Sequence[Section]) -> Iterator[tuple[Segment, int, int]]:
    """Yield the stages that another process worked at, so that no thread of this one has CPU samples of them.

    With each comes how long it computed and waited for a CPU, in nanoseconds; no more is known of it. The inference of
    a batch is yielded, too, with zeros: nothing is known of it.
    """
    for segment in segments:
        attributes, whole = segment.attributes, segment.end - segment.start
        if CPU_TIME_MS not in attributes and segment.link is None:
            continue
        if not any(one.start < segment.end and segment.start < one.end for one in sections):
            computed, waited = (int(attributes.get(name, 0.0) * 1e6) for name in (CPU_TIME_MS, CPU_WAIT_MS))
            computed = min(computed, whole)
            yield segment, computed, min(waited, whole - computed)


def _add_work(found: Cells, stage: str, times: Interval, pieces: Iterable[Piece], calls: Sequence[Interval]) -> None:
    """Add what is known of a time in which the request works, by its sections and its calls to other services."""
    explained = list(calls)
    if calls:
        add(found, cause.DOWNSTREAM, stage, overlap([times], calls))
    for intervals, whole, share in pieces:
        within = overlap([times], intervals)
        if within:
            explained += intervals
            part = within / whole
            add(found, cause.COMPUTE, stage, part * share.computed)
            add(found, cause.CPU_WAIT, stage, part * share.waited)
            add(found, cause.LOCK_WAIT, stage, part * share.blocked)
            add(found, cause.IO_WAIT, stage, part * share.blocked)
            add(found, cause.UNKNOWN, stage, part * (share.wall - share.computed - share.waited - share.blocked))
    rest = times[1] - times[0] - overlap([times], sorted(explained))
    if rest:
        for word in _OF_THE_REST:
            add(found, word, stage, rest)


def _pieces(sections: Sequence[Section]) -> Iterable[Piece]:
    """Yield what each section did, without the sections within it on the same thread."""
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
        times.append((at, section.end))
        yield times, sum(end - begin for begin, end in times), share
