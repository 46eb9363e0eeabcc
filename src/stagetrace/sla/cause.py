"""Name the cause of a breach, from how the request's time divides and what is usual: pure (docs/causes.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from stagetrace.semconv import INFERENCE

if TYPE_CHECKING:
    from collections.abc import Mapping

SOCKET_WAIT: Final = "socket_wait"
POOL_WAIT: Final = "pool_wait"
BATCH_WAIT: Final = "batch_wait"
SLOW_UPLOAD: Final = "slow_upload"
SLOW_DOWNLOAD: Final = "slow_download"
DOWNSTREAM: Final = "downstream"
CPU_WAIT: Final = "cpu_wait"
LOCK_WAIT: Final = "lock_wait"
IO_WAIT: Final = "io_wait"
GC: Final = "gc"
COLD_START: Final = "cold_start"
INPUT_SIZE: Final = "input_size"
COMPUTE: Final = "compute"
UNKNOWN: Final = "unknown"

# The parts that a request's time divides into, and the words of the evidence for them.
PHRASES: Final = {
    SOCKET_WAIT: "in the socket, until the server read it",
    POOL_WAIT: "waiting for a thread",
    BATCH_WAIT: "waiting for a batch",
    SLOW_UPLOAD: "waiting for the client to send the body",
    SLOW_DOWNLOAD: "waiting for the client to take the response",
    DOWNSTREAM: "waiting for other services",
    CPU_WAIT: "waiting for a CPU",
    LOCK_WAIT: "blocked while other threads of the process computed",
    IO_WAIT: "blocked in a socket, a file, a sleep or a subprocess",
    GC: "collecting garbage",
    COMPUTE: "computing",
    UNKNOWN: "of which nothing is known",
}
# What to do to learn more.
NEXT: Final = {
    IO_WAIT: '; wrap the call in `stagetrace.stage("...")`, or instrument its client, to see what it waits for',
}
WORDS: Final = (*PHRASES, COLD_START, INPUT_SIZE)
# What is left of a request's own work, besides what has taken the CPU or the GIL from it.
OWN: Final = (COMPUTE, IO_WAIT, UNKNOWN)

LARGER: Final = 2.0  # an input of so many times the usual size is a large one
LIKE: Final = 1.5  # and its work may take so many times what its size explains
MOST: Final = 0.5  # of the excess
SHOWN: Final = 0.05  # of the duration, for the evidence


@dataclass(frozen=True, slots=True)
class Parts:
    """How the time of one request divides: nanoseconds by part, of which no two overlap."""

    times: Mapping[str, int]
    size: int | None = None  # of its input
    is_first: bool = False  # call of its model in this process
    for_gil: int = 0  # of `lock_wait`, what waiting for the GIL explains at most
    is_recognised: bool = True  # or what was done was for a model that is not known as one
    stages: Mapping[str, int] = field(default_factory=dict)  # nanoseconds by stage
    places: Mapping[str, Mapping[str, float]] = field(
        default_factory=dict
    )  # of parts in stages: `breakdown_by_stage.py`


@dataclass(frozen=True, slots=True)
class Usual:
    """What requests of this route that keep their promise take: nanoseconds by part."""

    times: Mapping[str, float]
    size: float | None  # of their input
    stages: Mapping[str, float] = field(default_factory=dict)


NOTHING_USUAL: Final = Usual({}, None)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a promise was broken, and the part of the request's time that shows it."""

    word: str
    part: str


def cause_of(parts: Parts, overrun_ns: int, usual: Usual | None = None, of_this_size: Usual | None = None) -> Cause:
    """Return the cause of a breach: the part that accounts for most of the excess over what is usual.

    `usual` is that of the route and `of_this_size` that for inputs of this size, as far as they are known. Where
    nothing is, the excess is what exceeds the promise; so it is for a request that takes what is usual for it. Then
    computing that alone would have kept the promise is no cause: the promise allows for it.
    """
    expected = of_this_size or usual or NOTHING_USUAL
    excess = {part: ns - expected.times.get(part, 0) for part, ns in parts.times.items()}
    whole = sum(parts.times.values()) - sum(expected.times.values())
    is_usual = whole < MOST * overrun_ns
    if is_usual or not expected.times:
        promised_ns = sum(parts.times.values()) - overrun_ns
        excess, whole = dict(parts.times), overrun_ns
        if 0 < excess.get(COMPUTE, 0) <= promised_ns:
            excess[COMPUTE] = 0
    part = max(excess, key=lambda name: excess[name], default=UNKNOWN)
    if not excess or excess[part] < MOST * whole:
        return Cause(UNKNOWN, part)
    if part in OWN:
        if parts.is_first and (part != IO_WAIT or _is_in_model(parts, part)):
            return Cause(COLD_START, part)
        if _is_large(parts, part, usual, explained=is_usual and of_this_size is not None):
            return Cause(INPUT_SIZE, part)
    return Cause(part, part)


def _is_in_model(parts: Parts, part: str) -> bool:
    """Return whether this part of the time lies in calls of models for the most, as far as that is known."""
    places = parts.places.get(part)
    return not places or max(places, key=lambda stage: places[stage]) == INFERENCE


def _is_large(parts: Parts, part: str, usual: Usual | None, *, explained: bool) -> bool:
    """Return whether the input's size explains what this part took; `explained`: others of its size take as much."""
    if usual is None or not usual.size or parts.size is None or parts.size < LARGER * usual.size:
        return False
    return explained or parts.times[part] <= LIKE * usual.times.get(part, 0) * parts.size / usual.size


def stage_of(cause: Cause, parts: Parts, usual: Usual | None = None) -> str | None:
    """Return the stage in which the cause's part of the time lies, where its excess is; None of an unknown cause."""
    placed = parts.places.get(cause.part, {}) if cause.word != UNKNOWN else {}
    expected = usual.stages if usual is not None else {}
    excess = {stage: max(parts.stages.get(stage, 0) - expected.get(stage, 0), 0) for stage in placed}
    return max(placed, key=lambda stage: (min(placed[stage], excess[stage]), placed[stage]), default=None)


def evidence(parts: Parts, cause: Cause, usual: Usual | None = None) -> str:
    """Return the parts that took the most, in words, that of the cause first."""
    whole = sum(parts.times.values())
    shown = sorted(parts.times, key=lambda part: (part != cause.part, -parts.times[part]))
    said = [
        f"{parts.times[part] / 1e6:.1f} ms {PHRASES[part]}"
        for part in shown
        if part == cause.part or parts.times[part] >= SHOWN * whole
    ]
    if said and usual is not None and usual.times:
        said[0] += f" (usually {usual.times.get(cause.part, 0) / 1e6:.1f} ms)"
    if said and cause.part == LOCK_WAIT:
        said[0] += f", of which waiting for the GIL explains at most {parts.for_gil / 1e6:.1f} ms"
    if cause.word == INPUT_SIZE and usual is not None:
        said.append(f"an input of {parts.size} where {usual.size:.0f} is usual")
    if cause.word == COLD_START:
        said.append("the first call of its model in this process")
    return ", ".join(said) + NEXT.get(cause.word, "")
