"""The line of code of a breach, from the stacks that were sampled while it was late: pure (docs/stalls.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from opentelemetry.sdk.trace import Event

from stagetrace import semconv
from stagetrace.printable import printable
from stagetrace.recording.limits import cut, longest, most_events
from stagetrace.recording.stall import BLOCKER, POOL, REQUEST, RIVAL
from stagetrace.sla.code_paths import is_library, short_path
from stagetrace.sources.stacks import is_ours

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import CodeType

    from stagetrace.recording.segments import Segment
    from stagetrace.recording.stall import Stall
    from stagetrace.sources.stacks import Place, Stack

MOST_BYTES: Final = 16_384  # of all events of a request
MOST_OF_STACK: Final = 4_096  # characters, as of the next two
MOST_OF_PATH: Final = 256
MOST_OF_NAME: Final = 128
SHOWN_GIL_NS: Final = 5_000_000
# Whose stacks say the line, the first that there is, where the request itself waits in a queue; else its own do.
_IN_THE_WAY: Final = (POOL, BLOCKER, RIVAL)


class Code(NamedTuple):
    """Where a breach stood."""

    line: str  # as `app.py:41 in predict`
    library: str | None  # below it
    samples: int
    out_of: int


def code_of(stalls: Sequence[Stall], visits: Sequence[Segment], stage: str, end: int) -> Code | None:
    """Return the line of code that took most of a stage, by the samples that were taken in it; None where none was.

    A sample stands for the time until the next one of its kind, or until `end`.
    """
    if stage == semconv.QUEUE:
        kinds: tuple[str, ...] = _IN_THE_WAY
    else:
        kinds = (REQUEST,)
    for kind in kinds:
        of_kind = [one for one in stalls if one.of == kind]
        weights: dict[str, int] = {}
        seen: dict[str, list[Stack]] = {}
        for at, one in enumerate(of_kind):
            until = next((later.at for later in of_kind[at + 1 :] if later.at > one.at), end)
            place = application_place(one.stack)
            if place is None or not _is_in(one.at, visits, stage):
                continue
            text = text_of(place)
            weights[text] = weights.get(text, 0) + max(until - one.at, 1)
            seen.setdefault(text, []).append(one.stack)
        if weights:
            line = max(weights, key=lambda text: weights[text])
            return Code(line, _library_below(seen[line]), len(seen[line]), sum(map(len, seen.values())))
    return None


def _is_in(at: int, visits: Sequence[Segment], stage: str) -> bool:
    return any(one.stage == stage and one.start <= at < one.end for one in visits)


def application_place(stack: Stack) -> Place | None:
    """Return the application's innermost place; where it has none, the outermost one of a library; None of no stack."""
    theirs = [place for place in stack if not is_ours(place[0])]
    own = next((place for place in theirs if not is_library(place[0].co_filename)), None)
    return own or (theirs[-1] if theirs else None)


def text_of(place: Place) -> str:
    """Return a place as `app.py:41 in predict`."""
    code, line = place
    return f"{_path(code)}:{line} in {_name(code.co_name)}"


def _path(code: CodeType) -> str:
    """Return the end of a short path, as code that was made at run time may have any, as one line of plain text."""
    return printable(short_path(code.co_filename)[-MOST_OF_PATH:])[-MOST_OF_PATH:]


def _name(name: str) -> str:
    """Return the begin of a function's name, likewise."""
    return printable(name[:MOST_OF_NAME])[:MOST_OF_NAME]


def _library_below(stacks: Sequence[Stack]) -> str | None:
    """Return the innermost place of a library in the stack seen most; None where the application's is the innermost."""
    stack = max(stacks, key=stacks.count)
    innermost = next((place for place in stack if not is_ours(place[0])), None)
    if innermost is None or not is_library(innermost[0].co_filename) or innermost == application_place(stack):
        return None
    return text_of(innermost)


def evidence(code: Code) -> str:
    """Return the end of a breach's evidence."""
    library = "" if code.library is None else f", in {code.library}"
    return f"; at {code.line}{library} ({code.samples} of {code.out_of} samples)"


def events_of(stalls: Sequence[Stall]) -> tuple[list[Event], int]:
    """Return an event for each distinct stack, and how many there was no room for."""
    groups: dict[Any, list[Stall]] = {}
    totals: dict[str, int] = {}
    for one in stalls:
        # Code objects are equal if the same code is in another file.
        key = one.of, *((code.co_filename, code.co_name, line) for code, line in one.stack)
        groups.setdefault(key, []).append(one)
        totals[one.of] = totals.get(one.of, 0) + 1
    events: list[Event] = []
    size = 0
    for alike in sorted(groups.values(), key=len, reverse=True):
        attributes, _ = cut(_attributes(alike, totals[alike[0].of]))
        size += sum(len(key) + len(str(value).encode()) + 16 for key, value in attributes.items())
        if size > MOST_BYTES or len(events) >= most_events():
            break
        events.append(Event(semconv.STALL, attributes, alike[0].at))
    return sorted(events, key=lambda event: event.timestamp), len(groups) - len(events)


def _attributes(alike: Sequence[Stall], total: int) -> Mapping[str, Any]:
    of, stack = alike[0].of, alike[0].stack
    found: dict[str, Any] = {semconv.STALL_OF: of, semconv.STALL_SAMPLES: len(alike), semconv.STALL_OUT_OF: total}
    place = application_place(stack)
    if place is not None:
        code, line = place
        found[semconv.CODE_FILE_PATH] = _path(code)
        found[semconv.CODE_LINE_NUMBER] = line
        found[semconv.CODE_FUNCTION_NAME] = _name(code.co_qualname if hasattr(code, "co_qualname") else code.co_name)
    found[semconv.CODE_STACKTRACE] = _stacktrace(stack)
    waited = max(one.gil_ns for one in alike)
    if waited >= SHOWN_GIL_NS:
        found[semconv.STALL_GIL_MS] = waited / 1e6
    return found


def _stacktrace(stack: Stack) -> str:
    """Return a stack as Python prints it, without the source, the outermost place first; of a long one the end."""
    lines: list[str] = []
    size = 0
    for code, line in stack:
        if is_ours(code):
            continue
        text = f'  File "{_path(code)}", line {line}, in {_name(code.co_name)}'
        size += len(text) + 1
        if size > min(MOST_OF_STACK, longest()):
            break
        lines.append(text)
    return "\n".join(reversed(lines))
