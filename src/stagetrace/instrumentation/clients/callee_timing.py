"""The header `Server-Timing` of a response: its metrics, and what they tell of the callee's time.

Grammar: https://www.w3.org/TR/server-timing/. Whatever a server sends, reading takes bounded work and raises nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MAX_CHARACTERS: Final = 4_096  # of a header, the rest is not read
MAX_METRICS: Final = 64
TOTAL, QUEUE, INFERENCE = "total", "queue", "inference"
TRANSFERS: Final = ("network.receive", "network.send")
ROUNDING_MS: Final = 0.001  # of each duration

_WORD: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_NAME: Final = re.compile(rf"[ \t]*({_WORD})")
_METRIC: Final = re.compile(rf'(?:[^",]|{_QUOTED})*', re.DOTALL)
_PARAMETER: Final = re.compile(rf'[ \t]*;[ \t]*({_WORD})[ \t]*=[ \t]*({_QUOTED}|[^;" \t]*)[^;"]*', re.DOTALL)
_DURATION: Final = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,12})?")


class Metric(NamedTuple):
    """One metric of the header."""

    name: str
    duration_ms: float | None  # None: it has none that is a number


class Times(NamedTuple):
    """What a callee reports of its time for one request, ms; None is unknown."""

    source: str
    queue_ms: float | None = None
    compute_ms: float | None = None
    total_ms: float | None = None
    transfer_ms: float = 0.0  # of the total: receiving the request, sending the response
    first_token_ms: float | None = None  # from the arrival of the request on
    is_whole: bool = False  # it is about the whole call; else about the time until the response's headers


def metrics_of(header: str) -> list[Metric]:
    """Return the metrics of a header, up to 64 in its first 4,096 characters; what is none is left out."""
    text, found, at = header[:MAX_CHARACTERS], list[Metric](), 0
    while at < len(text) and len(found) < MAX_METRICS:
        piece = _METRIC.match(text, at)
        end = len(text) if piece is None else piece.end()
        if end == len(text) < len(header) or (end < len(text) and text[end] != ","):
            break  # cut off; or a quote without its end
        metric = _metric(text[at:end])
        if metric is not None:
            found.append(metric)
        at = end + 1
    return found


def _metric(text: str) -> Metric | None:
    name = _NAME.match(text)
    if name is None:
        return None
    duration = next((value for key, value in _parameters(text, name.end()) if key.lower() == "dur"), "")
    is_number = _DURATION.fullmatch(duration) is not None
    return Metric(name[1], float(duration) if is_number else None)


def _parameters(text: str, at: int) -> Iterator[tuple[str, str]]:
    while (one := _PARAMETER.match(text, at)) is not None:
        yield one[1], one[2].strip('"')
        at = one.end()


def times_in(metrics: Sequence[Metric], source: str, *, is_whole: bool) -> Times | None:
    """Return what metrics tell by names that have one meaning: `queue`, `inference`, `total`; None if nothing.

    Metrics that add up to the total after them, as those of stagetrace do, are all of it: without a `queue` among them
    there was none. Where several servers have added theirs, the last total counts.
    """
    known = [(name, took) for name, took in metrics if took is not None]
    ends = [place for place, (name, _) in enumerate(known) if name == TOTAL]
    if not ends:
        return _some(known, None, source, is_whole=is_whole)
    last = ends[-1]
    total = known[last][1]
    parts = known[ends[-2] + 1 if len(ends) > 1 else 0 : last]
    whole = _adding_up(parts, total)
    if whole is None:
        return _some(parts, total, source, is_whole=is_whole)
    took = {name: sum(one for other, one in whole if other == name) for name, _ in whole}
    transfer = sum(took.get(name, 0.0) for name in TRANSFERS)
    return Times(source, took.get(QUEUE, 0.0), took.get(INFERENCE), total, transfer, is_whole=is_whole)


def _some(known: list[tuple[str, float]], total: float | None, source: str, *, is_whole: bool) -> Times | None:
    took = dict(known)
    queue, compute = took.get(QUEUE), took.get(INFERENCE)
    if queue is None and compute is None and total is None:
        return None
    return Times(source, queue, compute, total, is_whole=is_whole)


def _adding_up(parts: list[tuple[str, float]], total: float) -> list[tuple[str, float]] | None:
    """Return the last of the parts that add up to the total; None if they do not."""
    added = 0.0
    for count, (_, took) in enumerate(reversed(parts), 1):
        added += took
        if abs(added - total) <= ROUNDING_MS * (count + 1):
            return parts[len(parts) - count :]
    return None
