"""Finds the server's spans of the requests of a run in a store, by their trace ids, and waits for them in bounds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from stagetrace.errors import StoreError
from stagetrace.semconv import QUEUE_REASON
from stagetrace.store import open_store
from stagetrace.store.base import Reader, Selection

if TYPE_CHECKING:
    from stagetrace.cli.bench.load_run import Result

_MOST: Final = 100_000  # requests that are joined
_BESIDE_NS: Final = 60 * 10**9  # clocks of the server may differ
_PAUSES_S: Final = (0.3, 0.5, 1.0, 1.5, 2.0)
_SILENT_S: Final = 7.0  # OpenTelemetry's processors send every 5 s
_LOOKED_AT: Final = 100  # traces, for what their queue stages waited for


@dataclass(frozen=True)
class Joined:
    """The server's side: by trace id how long its entry span was and its stages, in ms; `note`: what is missing."""

    found: Mapping[str, tuple[float, Mapping[str, float]]] = field(default_factory=dict)
    note: str | None = None


def join(url: str | None, result: Result, wait_s: float, progress: Callable[[int, str, float | None], None]) -> Joined:
    """Return the spans of the requests, once the store has all of them or no more arrive."""
    if url is None:
        return Joined(note="no store was named, so that the server's stages are not known: --store, or `stagetrace up`")
    asked = [one for step in result.steps for one in step.trace_ids]
    wanted = Selection(result.since_unix_nano - _BESIDE_NS, result.until_unix_nano + _BESIDE_NS)
    found: dict[str, tuple[float, Mapping[str, float]]] = {}
    end, changed, pause = time.monotonic() + wait_s, time.monotonic(), iter(_PAUSES_S)
    try:
        while True:
            before = len(found)
            found = _read_spans(url, wanted, result.ids.prefix)
            own = found.keys() & set(asked)
            now = time.monotonic()
            if len(found) > before:
                changed = now
            if len(own) >= min(len(asked), _MOST) or now > end or now - changed > _SILENT_S:
                break
            progress(len(own), "requests found in the store", len(own) / max(1, len(asked)))
            time.sleep(min(next(pause, _PAUSES_S[-1]), max(0.05, end - now)))
    except StoreError as error:
        return Joined(note=f"the server's stages are not known: {error}")
    kept = {one: found[one] for one in own}
    return Joined(kept, _note(len(kept), len(asked), url))


def _read_spans(url: str, wanted: Selection, prefix: str) -> dict[str, tuple[float, Mapping[str, float]]]:
    with open_store(url) as reader, reader.relations(wanted) as relations:
        rows = relations.reduce("own_requests", prefix=prefix, most=_MOST)
    found: dict[str, tuple[float, Mapping[str, float]]] = {}
    for row in rows:  # by start: of several services the one that was called by us is the first
        stages = dict(zip(row["stage_names"] or (), row["stages_ms"] or (), strict=True))
        found.setdefault(row["trace_id"], (float(row["duration_ms"]), stages))
    return found


def _note(found: int, asked: int, url: str) -> str | None:
    if not found:
        return (
            f"the store {url} got no spans of these requests: is the service recorded (STAGETRACE=1), and does it send"
            " its spans there?"
        )
    if found < asked:
        return f"stages are of {found:,} of {asked:,} requests: the store has no spans of the others (lost, or late)"
    return None


def queue_reasons(url: str, trace_ids: Sequence[str]) -> dict[str, float]:
    """Return reason -> ms of the queue stages of some of these traces, most first; empty where unknown."""
    waits: Counter[str] = Counter()  # ns
    try:
        with open_store(url) as reader:
            for trace in _some(reader, trace_ids):
                for span in trace.spans:
                    reason = span.attributes.get(QUEUE_REASON)
                    if isinstance(reason, str):
                        waits[reason] += max(0, span.duration_ns)
    except StoreError:
        return {}
    return {reason: ns / 1e6 for reason, ns in waits.most_common()}


def _some(reader: Reader, trace_ids: Sequence[str]) -> Any:
    step = max(1, len(trace_ids) // _LOOKED_AT)
    return reader.traces(trace_ids[::step][:_LOOKED_AT])
