"""Why a breach has no line of code: its evidence has the reason, and the process counts reasons (docs/stalls.md)."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.recording.in_flight import in_flight
from stagetrace.sla.code_paths import application_place
from stagetrace.sla.stall_sampler import stall_sampler
from stagetrace.sources.stacks import SOURCE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagetrace.recording.record import RequestRecord
    from stagetrace.recording.stall import Stall

OFF: Final = "off"
NOT_LATE: Final = "not_late"
SKIPPED: Final = "skipped"
NOT_REACHED: Final = "not_reached"
LIBRARIES: Final = "libraries"
AFTER_WAIT: Final = "after_wait"
ELSEWHERE: Final = "elsewhere"
PHRASES: Final = {
    OFF: "stacks are not sampled here",
    NOT_LATE: "it was never late by a bound that is known before it ends",
    SKIPPED: "the sampler had used its share of a CPU, or watched 200 requests already",
    NOT_REACHED: "the sampler's thread got no CPU, or not the GIL, in the {late:.0f} ms for which it was late",
    LIBRARIES: "only libraries were on the stacks that were sampled",
    AFTER_WAIT: "it was sampled only after the wait",
    ELSEWHERE: "it was sampled only before or after what the cause is about",
}
counts: Final[Counter[str]] = Counter()  # breaches of this process without a line, by the words above


class Why(NamedTuple):
    """Why there is no line: a word, and the end of the evidence."""

    word: str
    evidence: str


def why(record: RequestRecord, stalls: Sequence[Stall], late_at: int | None, end: int, *, is_over: bool) -> Why:
    """Return why a breach that ended at `end` has no line, and count it; times in nanoseconds since the epoch.

    `stalls` are those of the time in which it was missed, `late_at` is when it was late, None for never; `is_over`:
    those that could say the line were sampled after the wait that is the cause.
    """
    late_ns = 0 if late_at is None else end - late_at
    word = _word(record, stalls, late_ns, is_over=is_over)
    counts[word] += 1
    return Why(word, f"; no line of code: {PHRASES[word].format(late=late_ns / 1e6)}")


def _word(record: RequestRecord, stalls: Sequence[Stall], late_ns: int, *, is_over: bool) -> str:
    if is_over:
        return AFTER_WAIT
    if stalls:
        return ELSEWHERE if any(application_place(one.stack) is not None for one in stalls) else LIBRARIES
    if not SOURCE.is_used or late_ns <= 0:
        return NOT_LATE if SOURCE.is_used else OFF
    if not record.skipped_stalls and in_flight.rest_until > time.monotonic_ns() - late_ns:
        stall_sampler.skip(record, 1)  # the sampler rested, and has not seen it
    return SKIPPED if record.skipped_stalls else NOT_REACHED
