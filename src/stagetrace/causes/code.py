"""The line of code of a breach, from the stacks that were sampled while it was late: pure (docs/stalls.md)."""

from __future__ import annotations

import os
import sys
import sysconfig
from functools import lru_cache
from inspect import CO_COROUTINE
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.causes import cause
from stagetrace.request.limits import cut, longest, span_limits
from stagetrace.request.stalls import BLOCKER, POOL, RAN, REQUEST, RIVAL, WAITED
from stagetrace.sources.stacks import is_ours
from stagetrace.text import printable
from stagetrace.tracing.span import Event

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import CodeType

    from stagetrace.request.stages import Segment
    from stagetrace.request.stalls import Stall
    from stagetrace.sources.stacks import NamedCode, Place, Stack

MOST_BYTES: Final = 16_384  # of all events of a request
MOST_OF_STACK: Final = 4_096  # characters, as of the next two
MOST_OF_PATH: Final = 256
MOST_OF_NAME: Final = 128
SHOWN_GIL_NS: Final = 20_000_000  # threads that compute in Python keep it for 5 ms each
# Whose stacks give the line, by cause: for each time of a sample, the first kind that has one. A request that waits for
# another thread has no stack itself; one that waits for a pool, or a batch, has that of the call that asked for it.
_ORDER: Final = {
    cause.SOCKET_WAIT: (BLOCKER, RIVAL),
    cause.POOL_WAIT: (POOL, BLOCKER, REQUEST),
    cause.BATCH_WAIT: (POOL, BLOCKER, REQUEST),
}
_IN_QUEUE: Final = (POOL, BLOCKER, RIVAL)  # for any other cause, which delayed what the queue waited for
_WORDS: Final = {
    REQUEST: "at",
    BLOCKER: "its thread stood at",
    POOL: "the pool's threads stood at",
    RIVAL: "another thread computed at",
}
_LOOP_WORDS: Final = "the event loop stood at"


class Code(NamedTuple):
    """The line of code at which a breach stood."""

    line: str  # as `app.py:41 in predict`
    library: str | None  # below it
    samples: int
    out_of: int
    words: str  # of the evidence, before the line
    more: str = ""  # of the evidence, before all of this


def order_of(word: str, stage: str) -> tuple[str, ...]:
    """Return whose stacks give the line of a stage in which a cause lies, in order of preference."""
    if word in _ORDER:
        return _ORDER[word]
    if stage == semconv.QUEUE:
        return _IN_QUEUE
    # While a request awaits, its event loop may be blocked by other work: that is one of these.
    return (BLOCKER, REQUEST) if word in (cause.IO_WAIT, cause.MIXED, cause.UNKNOWN) else (REQUEST,)


def code_of(stalls: Sequence[Stall], visits: Sequence[Segment], stage: str, word: str, end: int) -> Code | None:
    """Return the line of code that took most of a stage, by the samples that were taken in it; None where none was.

    `word` is the cause. A sample stands for the time until the next one, or until `end`.
    """
    within = _within(stalls, visits, stage)
    fitting = [one for one in within if not contradicts(one, word)]
    found, early = _most(fitting, order_of(word, stage), end), ""
    if found is None and word == cause.COMPUTE:
        found, early = _most(within, order_of(word, stage), end), "; it was sampled only as it waited"
    if found is None:
        return None
    rival = _most(within, (RIVAL,), end) if word == cause.LOCK_WAIT else None
    more = early + (evidence(rival) if rival is not None and rival != found else "")
    return found._replace(more=more + _held_text(within))


def _within(stalls: Sequence[Stall], visits: Sequence[Segment], stage: str) -> list[Stall]:
    return [one for one in stalls if any(v.stage == stage and v.start <= one.at < v.end for v in visits)]


def contradicts(stall: Stall, word: str) -> bool:
    """Return whether the sample contradicts the cause: the request stood there before or after the time in question."""
    if stall.of != REQUEST:
        return False
    return stall.state == (RAN if word == cause.IO_WAIT else WAITED if word == cause.COMPUTE else None)


def is_over(stalls: Sequence[Stall], visits: Sequence[Segment], stage: str | None, word: str) -> bool:
    """Return whether the cause is a wait, and all samples of its stage were taken after the wait."""
    within = _within(stalls, visits, stage) if stage is not None and word == cause.IO_WAIT else []
    own = [one for one in within if one.of == REQUEST]
    return bool(own) and all(contradicts(one, word) for one in own)


def _held_text(stalls: Sequence[Stall]) -> str:
    """Return for how long the GIL was held at most, and where, if that was in another thread."""
    longest = max(stalls, key=lambda one: one.gil_ns)
    if longest.gil_ns < SHOWN_GIL_NS:
        return ""
    then = [one for one in stalls if one.at == longest.at]
    rival = next((one for one in then if one.of == RIVAL), None)
    if any(one.held_ns for one in then):
        return f"; it held the GIL for {longest.gil_ns / 1e6:.0f} ms"
    where = f" by another thread, at {_line_of(rival)}" if rival is not None else ""
    return f"; the GIL was held for {longest.gil_ns / 1e6:.0f} ms{where}"


def code_of_collections(runs: Sequence[Stall]) -> Code | None:
    """Return the line at which most of the garbage collector's time was triggered, by its runs."""
    times: dict[str, list[int]] = {}
    for one in runs:
        if line := _line_of(one):
            times.setdefault(line, []).append(one.gil_ns)
    if not times:
        return None
    line = max(times, key=lambda text: sum(times[text]))
    words = f"garbage was collected for {sum(times[line]) / 1e6:.0f} ms at"
    return Code(line, None, len(times[line]), len(runs), words)


def _most(stalls: Sequence[Stall], order: Sequence[str], end: int) -> Code | None:
    """Return the line that took most of the time, by the first kind of `order` that there is at each time."""
    by_time: dict[int, list[tuple[str, Stall]]] = {}
    for one in stalls:
        if one.of in order and (line := _line_of(one)):
            by_time.setdefault(one.at, []).append((line, one))
    if not by_time:
        return None
    times = sorted(by_time)
    # What held the GIL stood there already when the sampler asked for it.
    begins = [at - max(one.held_ns for _, one in by_time[at]) for at in times]
    weights: dict[tuple[str, str], float] = {}
    seen: dict[tuple[str, str], list[Stall]] = {}
    out_of = 0
    for at, began, until in zip(times, begins, [*begins[1:], end], strict=True):
        first = min((one.of for _, one in by_time[at]), key=order.index)
        then = [(line, one) for line, one in by_time[at] if one.of == first]
        for line, one in then:
            weights[first, line] = weights.get((first, line), 0) + max(until - began, 1) * one.threads / one.out_of
            seen.setdefault((first, line), []).append(one)
        out_of += max(one.out_of for _, one in then)
    of, line = max(weights, key=lambda key: weights[key])
    alike = seen[of, line]
    stacks = [one.stack for one in alike]
    words = _LOOP_WORDS if of == BLOCKER and _has_coroutine(stacks) else _WORDS[of]
    return Code(line, _library_below(stacks), sum(one.threads for one in alike), out_of, words)


def evidence(code: Code) -> str:
    """Return the end of a breach's evidence."""
    library = "" if code.library is None else f", in {code.library}"
    return f"{code.more}; {code.words} {code.line}{library} ({code.samples} of {code.out_of} samples)"


def _line_of(stall: Stall) -> str:
    place = application_place(stall.stack)
    return "" if place is None else text_of(place)


def _has_coroutine(stacks: Sequence[Stack]) -> bool:
    return any(code.co_flags & CO_COROUTINE for stack in stacks for code, _ in stack)


def text_of(place: Place) -> str:
    """Return a place as `app.py:41 in predict`."""
    code, line = place
    return f"{_path(code)}:{line} in {_name(code.co_name)}"


def _path(code: CodeType | NamedCode) -> str:
    """Return the end of a short path, as code that was made at run time may have any, as one line of plain text."""
    return printable(short_path(code.co_filename)[-MOST_OF_PATH:])[-MOST_OF_PATH:]


def _name(name: str) -> str:
    """Return the begin of a function's name as one line of plain text."""
    return printable(name[:MOST_OF_NAME])[:MOST_OF_NAME]


def _library_below(stacks: Sequence[Stack]) -> str | None:
    """Return the innermost place of a library in the stack seen most; None where the application's is the innermost."""
    stack = max(stacks, key=stacks.count)
    innermost = next(filter(is_shown, stack), None)
    if innermost is None or not is_library(innermost[0].co_filename) or innermost == application_place(stack):
        return None
    return text_of(innermost)


def events_of(stalls: Sequence[Stall]) -> tuple[list[Event], int]:
    """Return an event for each distinct stack, and how many there was no room for."""
    groups: dict[Any, list[Stall]] = {}
    looked: dict[tuple[str, int], int] = {}  # threads, by whose they are and when
    for one in stalls:
        if application_place(one.stack) is None:
            continue
        # Code objects are equal if the same code is in another file.
        key = one.of, *((code.co_filename, code.co_name, line) for code, line in one.stack)
        groups.setdefault(key, []).append(one)
        looked[one.of, one.at] = max(looked.get((one.of, one.at), 0), one.out_of)
    totals: dict[str, int] = {}
    for (of, _), count in looked.items():
        totals[of] = totals.get(of, 0) + count
    events: list[Event] = []
    size, most = 0, span_limits().events
    for alike in sorted(groups.values(), key=len, reverse=True):
        attributes, _ = cut(_attributes(alike, totals[alike[0].of]))
        size += sum(len(key) + len(str(value).encode()) + 16 for key, value in attributes.items())
        if size > MOST_BYTES or (most is not None and len(events) >= most):
            break
        events.append(Event(semconv.STALL, attributes, alike[0].at))
    return sorted(events, key=lambda event: event.timestamp), len(groups) - len(events)


def _attributes(alike: Sequence[Stall], total: int) -> Mapping[str, Any]:
    of, stack = alike[0].of, alike[0].stack
    found: dict[str, Any] = {semconv.STALL_OF: of, semconv.STALL_OUT_OF: total}
    found[semconv.STALL_SAMPLES] = sum(one.threads for one in alike)
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
        if not is_shown((code, line)):
            continue
        text = f'  File "{_path(code)}", line {line}, in {_name(code.co_name)}'
        size += len(text) + 1
        if size > min(MOST_OF_STACK, longest()):
            break
        lines.append(text)
    return "\n".join(reversed(lines))


# --- Whether code is the application's or a library's, and the short path of its file for spans.

_LIBRARY_FOLDERS: Final = ("site-packages", "dist-packages")
_STANDARD: Final = tuple(
    {
        path.rstrip(os.sep) + os.sep
        for path in (*map(sysconfig.get_paths().get, ("stdlib", "platstdlib")), str(Path(os.__file__).parent))
        if path
    }
)
_STANDARD_ZIP: Final = f"python{sys.version_info.major}{sys.version_info.minor}.zip"
_INSTALLED_WHEEL: Final = ".whl"  # a folder, as pex has them
# Code that a user typed: all other code with such a name is generated by a library.
_TYPED: Final = ("<stdin>", "<console>", "<ipython-input")
# Packages that call handlers, and so are none: servers, frameworks, and middlewares between the two.
_CALLERS: Final = frozenset(
    (
        *("cheroot", "daphne", "eventlet", "gevent", "granian", "greenlet", "grpc", "gunicorn", "h11", "h2"),
        *("httptools", "hypercorn", "twisted", "uvicorn", "uvicorn_worker", "uvloop", "waitress", "websockets"),
        *("_bentoml_sdk", "_bentoml_impl", "bentoml", "cog", "gradio", "litserve", "mlserver", "mosec", "ray"),
        *("aiohttp", "blacksheep", "bottle", "connexion", "django", "falcon", "fastapi", "flask", "litestar"),
        *("celery", "quart", "rest_framework", "sanic", "starlette", "tornado", "werkzeug"),
        *("a2wsgi", "anyio", "asgiref", "ddtrace", "newrelic", "opentelemetry", "prometheus_client"),
        *("sentry_sdk", "sniffio", "sse_starlette", "trio", "wsproto"),
    )
)
# Of these, what calls handlers through middlewares: a package below the innermost of them is no middleware.
_FRAMEWORKS: Final = frozenset(
    (
        *(
            "_bentoml_impl",
            "_bentoml_sdk",
            "bentoml",
            "blacksheep",
            "bottle",
            "connexion",
            "django",
            "falcon",
            "fastapi",
        ),
        *("flask", "gradio", "litestar", "litserve", "mlserver", "quart", "rest_framework", "sanic", "starlette"),
        *("tornado", "werkzeug"),
    )
)


@lru_cache(maxsize=4096)
def is_library(path: str) -> bool:
    """Return whether a source file is of an installed package, of the standard library, or generated."""
    if path.startswith("<"):
        return not path.startswith(_TYPED)
    return _after_library_folder(path) is not None or _is_standard(path)


def _is_standard(path: str) -> bool:
    return path.startswith(_STANDARD) or f"{os.sep}{_STANDARD_ZIP}{os.sep}" in path


@lru_cache(maxsize=4096)
def short_path(path: str) -> str:
    """Return the path within the installed packages, the standard library, the working directory or `sys.path`."""
    within = _after_library_folder(path)
    if within is not None:
        return within
    if path.startswith("<"):
        return path
    if not Path(path).is_absolute():
        return os.path.normpath(path)
    folders = sorted((_folder(str(one)) for one in sys.path), key=len, reverse=True)  # it may have Path objects
    for folder in (*_STANDARD, _working_directory(), *folders):
        if len(folder) > 1 and path.startswith(folder):
            return path[len(folder) :]
    return str(Path(*Path(path).parts[-2:]))


def application_place(stack: Stack) -> Place | None:
    """Return the application's innermost place; None where nothing but servers, frameworks and Python's own is seen.

    An application may be an installed package itself: it is the one whose code the framework calls, below its
    middlewares.
    """
    theirs = [place for place in stack if is_shown(place)]
    own = next((one for one in theirs if not is_library(one[0].co_filename)), None)
    if own is not None:
        return own
    packages = [_package(place[0].co_filename) for place in theirs]
    handler: str | None = None
    for place, package in zip(theirs, packages, strict=True):  # the innermost first: the last one before a framework
        if package is not None:
            handler = package
        elif handler is not None and _first_folder(place[0].co_filename) in _FRAMEWORKS:
            break
    return None if handler is None else theirs[packages.index(handler)]


def is_shown(place: Place) -> bool:
    """Return whether a place is one for people: not stagetrace's own, nor an instruction that is of no line."""
    return place[1] > 0 and not is_ours(place[0])


@lru_cache(maxsize=4096)
def _package(path: str) -> str | None:
    """Return the package or module that an installed file belongs to, unless it is one that calls handlers."""
    name = _first_folder(path)
    return None if name in _CALLERS else name


@lru_cache(maxsize=4096)
def _first_folder(path: str) -> str | None:
    """Return the package or module that an installed file belongs to."""
    within = _after_library_folder(path)
    return None if not within else Path(within).parts[0].removesuffix(".py")


def _after_library_folder(path: str) -> str | None:
    parts = Path(path).parts
    for at in range(len(parts) - 1, -1, -1):
        if parts[at] in _LIBRARY_FOLDERS or parts[at].endswith(_INSTALLED_WHEEL):
            return str(Path(*parts[at + 1 :]))
    return None


def _folder(path: str) -> str:
    return path.rstrip(os.sep) + os.sep


def _working_directory() -> str:
    try:
        return _folder(os.getcwd())  # noqa: PTH109
    except OSError:
        return ""
