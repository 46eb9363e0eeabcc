"""The newest requests of a store, and those that arrive while one waits, whatever the store can do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, NamedTuple, cast

from stagetrace.errors import UnknownTrace
from stagetrace.store.answers import newest_first
from stagetrace.store.base import RELATIONS, TAIL, Reader, Selection, SpanRow
from stagetrace.store.entries import matches
from stagetrace.store.rows import distinct, spans_of

_LOOK_BACK_NS: Final = 120 * 10**9
_HOUR_NS: Final = 3600 * 10**9
_EVER_NS: Final = 2**63 - 1


class Latest(NamedTuple):
    """The trace of the newest request, or else of the newest root, of which `note` says so."""

    trace_id: str
    note: str | None = None


def newest(reader: Reader, wanted: Selection, cuts: list[str]) -> list[SpanRow]:
    """Return the newest entry spans that are wanted, the newest last."""
    found: dict[tuple[str, str], SpanRow] = {}
    for message in reader.iter_otlp(wanted, cuts):
        for span in distinct(one.row() for one in spans_of(message)):
            if matches(span, wanted):
                found[span.trace_id, span.span_id] = span
    # A tail is cut at its limit on purpose.
    cuts[:] = [cut for cut in cuts if not cut.startswith("limit ")]
    return list(reversed(newest_first(found.values())[: wanted.limit]))


def latest(reader: Reader, service: str | None, *, breached: bool | None) -> Latest:
    """Return the trace of the newest request, else of the newest root. Raise UnknownTrace where there is neither."""
    now = time.time_ns()
    # A Jaeger looks through less in the shorter ones.
    windows = [(now - ago_ns, now + 24 * _HOUR_NS) for ago_ns in (_HOUR_NS, 30 * 24 * _HOUR_NS)] + [(0, _EVER_NS)]
    for since_ns, until_ns in windows:
        wanted = Selection(since_ns, until_ns, service=service, breached=breached, limit=1)
        if found := newest(reader, wanted, []):
            return Latest(found[-1].trace_id)
    for since_ns, until_ns in () if breached else windows:
        root = newest_root(reader, Selection(since_ns, until_ns, service=service))
        if root is not None:
            return root
    what = "breach" if breached else "request"
    raise UnknownTrace(
        f"the store holds no {what}{'' if service is None else f' of {service}'}\nsend one, or name another store"
    )


def newest_root(reader: Reader, wanted: Selection) -> Latest | None:
    """Return the trace of the newest span without a parent, where no span is a request; None where there is no span.

    A selection by more than time and service is one of requests: None.
    """
    if RELATIONS not in reader.capabilities or replace(wanted, service=None).is_filtered:
        return None
    try:
        with reader.relations(replace(wanted, service=None)) as relations:
            found = relations.reduce("newest_root", service=wanted.service)
    except UnknownTrace:
        return None
    for one in found:
        root = f"{one['name']} of {one['service']}"
        return Latest(one["trace_id"], f"no span here is a request (of kind SERVER); the newest root is {root}")
    return None


def follow(reader: Reader, wanted: Selection, interval_s: float) -> Iterator[list[SpanRow]]:
    """Yield the entry spans received since the last time, at once none, then every `interval_s`, without end."""
    news = _cursor(reader) if TAIL in reader.capabilities else _polling(reader, wanted)
    # No end in time: the window was made when the command began.
    ever = replace(wanted, until_ns=2**63 - 1, limit=None)
    for spans in news:
        yield list(reversed(newest_first(span for span in spans if matches(span, ever))))
        time.sleep(interval_s)


def _cursor(reader: Reader) -> Iterator[list[SpanRow]]:
    """Yield the spans behind the store's own cursor."""
    following = cast("Any", reader)
    cursor = None
    while True:
        spans, cursor = following.spans_after(cursor, entries=True)
        yield spans


def _polling(reader: Reader, wanted: Selection) -> Iterator[list[SpanRow]]:
    """Yield the spans of the last minutes that the previous query did not return."""
    known: set[tuple[str, str]] | None = None
    while True:
        now = time.time_ns()
        window = replace(wanted, since_ns=now - _LOOK_BACK_NS, until_ns=now + _LOOK_BACK_NS, limit=None)
        found = {(span.trace_id, span.span_id): span for span in newest(reader, window, [])}
        yield [] if known is None else [span for key, span in found.items() if key not in known]
        known = set(found)
