"""A stall: a stack that was sampled while a request was late."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.request.in_flight import NEVER
from stagetrace.sources.stacks import MAX_KEPT, NamedCode, is_ours

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stagetrace.sources.stacks import Stack

# Whose stack it is.
REQUEST: Final = "request"
BLOCKER: Final = "blocker"  # what ran on the event loop or the thread that the request waited for
RIVAL: Final = "rival"  # the thread that computed while the request waited for a lock or the GIL
POOL: Final = "pool"  # a thread of the pool that had none free
RESUMED: Final = "resumed"  # a block of `resume` in another process, which the request may not have waited for
KINDS: Final = (REQUEST, BLOCKER, RIVAL, POOL, RESUMED)
MOST_KEPT: Final = 64  # of a request: of a stream, each late chunk has samples
# What a thread did there.
UNKNOWN: Final = 0
RAN: Final = 1  # it computed, or waited for a CPU
WAITED: Final = 2  # in the kernel, or as a coroutine


class Stall(NamedTuple):
    """One stack at one time, in nanoseconds since the epoch."""

    at: int
    of: str  # one of the words above
    stack: Stack
    gil_ns: int = 0  # for how long the sampler could not run Python before it, since another thread held the GIL
    threads: int = 1  # that stood there
    out_of: int = 1  # so many threads
    held_ns: int = 0  # of `gil_ns`: it stood there for so long before, as it held the GIL itself
    state: int = UNKNOWN


if TYPE_CHECKING:
    # Files, and places, the innermost first: the number of its file, line, name, qualified name, flags of the code.
    StackReport = tuple[Sequence[str], Sequence[tuple[int, int, str, str, int]]]
    # When, whose, the number of its stack, that stack where it is new, and the other fields of a `Stall`.
    StallReport = tuple[int, str, int, StackReport | None, Sequence[int]]

# --- Stalls of work for a request in another process: as the worker reports them, and as the request takes them in.
#
# A stack travels as text: files, functions and lines. It goes once; a later sample with the same stack names it.

MOST_BYTES: Final = 16_384  # of all stacks of one piece of work
MOST_OF_TEXT: Final = 512  # characters of a path or a name
SOON_PART: Final = 8  # within so small a part of the time for which the work was late


class StallReporter:
    """Reports the stalls of one piece of work, with at most 16 KB of stacks."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}  # of stacks, by files, functions and lines: equal code may be in two files
        self._left = MOST_BYTES

    def reports(self, stalls: Iterable[Stall]) -> list[StallReport]:
        """Return stalls as JSON holds them; without those that have a new stack for which there is no room."""
        found: list[StallReport] = []
        for one in stalls:
            key = tuple((code.co_filename, code.co_name, line) for code, line in one.stack)
            number, stack = self._numbers.get(key), None
            if number is None:
                stack, size = _stack_report(one.stack)
                if size > self._left:
                    continue
                self._left -= size
                number = self._numbers[key] = random.getrandbits(48)  # others may report for the same key
            found.append((one.at, one.of, number, stack, one[3:]))
        return found


def _stack_report(stack: Stack) -> tuple[StackReport, int]:
    """Return a stack without our own places as it is reported, and about how many bytes that is."""
    files: dict[str, int] = {}
    places: list[tuple[int, int, str, str, int]] = []
    size = 0
    for code, line in stack:
        if not is_ours(code):
            qualified = getattr(code, "co_qualname", code.co_name)
            path, name, qualified = _text(code.co_filename), _text(code.co_name), _text(qualified)
            size += len(name) + len(qualified) + (28 if path in files else 32 + len(path))
            places.append((files.setdefault(path, len(files)), line, name, qualified, code.co_flags))
    return (list(files), places), size


class RemoteStalls:
    """The stalls of one piece of work, as they were reported."""

    def __init__(self) -> None:
        self.stalls: list[Stall] = []
        self.until = NEVER  # when the work was over, nanoseconds since the epoch
        self._stacks: dict[int, Stack] = {}

    def add(self, stalls: Iterable[Stall], until: int | None = None) -> None:
        """Add stalls, each once: a batch and a request in it may both have reported it; and when the work was over."""
        for one in stalls:
            if len(self.stalls) < MOST_KEPT and one not in self.stalls:
                self.stalls.append(one)
        if until is not None:
            self.until = int(until)

    def read(self, reports: Iterable[Any]) -> list[Stall]:
        """Return the stalls that another process has reported; not one whose stack was lost on the way."""
        found = []
        for at, of, number, report, rest in reports:
            if report is not None and len(self._stacks) < MOST_KEPT:
                self._stacks[int(number)] = _stack(*report)
            stack = self._stacks.get(number)
            if stack and of in KINDS:
                # The cause is worked out by what this process knows, and to that the work was a wait.
                found.append(Stall(int(at), of, stack, *map(int, rest))._replace(state=UNKNOWN))
        return found

    def among(self, own: Sequence[Stall], since: int, now: int) -> list[Stall]:
        """Return these and the own stalls of a request that ends `now`, by time.

        The request only waited while the work was done, `since` then, or since its first stall. Whether it waited for
        work that resumed it is not known: it did if it ends soon after that work.
        """
        stalls = self.stalls
        if not stalls:
            return list(own)
        since = since or stalls[0].at
        if any(one.of == RESUMED for one in stalls):
            if not 0 <= (now - self.until) * SOON_PART <= self.until - since:
                return sorted([*own, *stalls], key=_at)
            stalls = [one._replace(of=REQUEST) if one.of == RESUMED else one for one in stalls]
        kept = [one for one in own if one.of != REQUEST or not since <= one.at < self.until]
        return sorted([*kept, *stalls], key=_at)


def _at(stall: Stall) -> int:
    return stall.at


def _stack(files: Sequence[Any], places: Sequence[Any]) -> Stack:
    return tuple(
        (NamedCode(_text(files[at]), _text(name), _text(qualified), int(flags)), int(line))
        for at, line, name, qualified, flags in places[:MAX_KEPT]
    )


def _text(given: Any) -> str:
    return str(given)[-MOST_OF_TEXT:]
