"""Counters of the back end, with their text form for Prometheus, and lines that are logged at a bounded rate."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from stagetrace import log
from stagetrace.backend.http_limits import Closed
from stagetrace.backend.refusal import KINDS

# --- Counters of the back end, and their text form for Prometheus.

TRANSPORTS: Final = ("grpc", "http")
HTTP_PORTS: Final = ("http", "query-http")
PAGE_PORT: Final = "page"  # of `stagetrace page`, which serves nothing else
# name -> (label, its values, help). Every series is there from the start, at 0.
_FAMILIES: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "requests": ("transport", TRANSPORTS, "Export requests that arrived, whatever became of them."),
    "received_bytes": ("transport", TRANSPORTS, "Bytes of export requests as they arrived, compressed or not."),
    "accepted_spans": ("transport", TRANSPORTS, "Spans that are on disk and acknowledged."),
    "rejected_spans": ("transport", TRANSPORTS, "Spans rejected from requests whose other spans were accepted."),
    "stored_counts": ("transport", TRANSPORTS, "Data points of the metric sla.requests that are on disk."),
    "ignored_data_points": ("transport", TRANSPORTS, "Data points of other metrics, which are not kept."),
    "refused_requests": (
        "reason",
        tuple(kind.name for kind in KINDS),
        "Export requests refused as a whole, and any HTTP request without access.",
    ),
    "queries": ("transport", TRANSPORTS, "Questions put to jaeger.api_v3."),
    "failed_queries": ("transport", TRANSPORTS, "Queries that failed."),
    "alert_looks": ("result", ("done", "failed"), "Times that the alerts of the policy (--sla) were evaluated."),
    "alert_replayed_requests": (
        "result",
        ("judged", "skipped"),
        "Requests without a verdict of the policy (--sla), judged here; skipped: at least so many were too many.",
    ),
    "alert_messages": (
        "result",
        ("sent", "failed", "limited", "dropped"),
        "Alerts to receivers: taken; not taken and sent again; held back by the rate; over before they were sent.",
    ),
    "logins": ("result", ("accepted", "refused", "throttled"), "Logins at the page, by the token."),
    "connections": ("port", (*HTTP_PORTS, PAGE_PORT), "Connections that were accepted."),
    "closed_connections": ("reason", tuple(one.value for one in Closed), "Connections over HTTP that a limit closed."),
}

# name -> help, of values that go up and down, and of counts of the store since it was opened.
_GAUGES: Final[dict[str, str]] = {
    "http_connections": "Open connections of the port for OTLP over HTTP.",
    "query_http_connections": "Open connections of the port for queries and the page.",
    "page_connections": "Open connections of `stagetrace page`.",
    "requests_in_flight_bytes": "Bytes of export requests that are being received or written.",
    "store_requests": "Export requests stored since the start.",
    "store_spans_accepted": "Spans stored since the start.",
    "store_spans_rejected": "Spans that were not stored; the response names the reason.",
    "store_spans_duplicate": "Spans received again, and kept once.",
    "store_spans_expired": "Spans deleted since --retention or --retention-size wants it.",
    "store_files_merged": "Small files made one larger file.",
    "store_files": "Files of the table.",
    "store_spans": "Spans stored, those in the log included.",
    "store_bytes": "Bytes of the files of the table.",
    "store_pending_spans": "Spans in the log, not yet in the table; queries see them.",
    "store_pending_bytes": "Bytes in the log, not yet in the table.",
    "store_unarchived_files": "Files of the table that the archive (--archive) does not have yet.",
    "store_unarchived_spans": "Spans in them: lost with this machine, while those in the archive are not.",
    "store_spans_expired_unarchived": "Spans that --retention or --retention-size deleted before they were archived.",
    "archive_copied_files": "Files copied to the archive since the start.",
    "archive_copied_bytes": "Bytes of them.",
    "archive_failures": "Copies that failed since the start; each is tried again.",
    "store_version": "Version of the table: it grows with each change.",
}


class Figure(NamedTuple):
    """One number of the back end: of a family, and which of it."""

    name: str
    label: str  # of a gauge: empty
    value: int
    meaning: str


class Counters:
    """Numbers that only grow. `_lock` guards them: receivers count in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.gauges: dict[str, Callable[[], int]] = {}  # beside those of the store; filled before any is read
        self.lines: list[Callable[[], Iterable[str]]] = []  # likewise: more of the text form
        self._values = {(name, label): 0 for name, (_, labels, _help) in _FAMILIES.items() for label in labels}

    def add(self, name: str, label: str, count: int = 1) -> None:
        """Add to one of `_FAMILIES`."""
        with self._lock:
            self._values[name, label] += count

    def value(self, name: str, label: str) -> int:
        """Return the counts so far."""
        with self._lock:
            return self._values[name, label]

    def text(self, gauges: Mapping[str, int]) -> str:
        """Return everything in Prometheus' text format, with the store's own figures as gauges."""
        more = (line for lines in self.lines for line in lines())
        return "\n".join([*_counter_lines(self._now()), *_gauge_lines(self._gauges(gauges).items()), *more, ""])

    def figures(self, gauges: Mapping[str, int]) -> list[Figure]:
        """Return everything, with what it means."""
        found = [Figure(name, label, value, _FAMILIES[name][2]) for (name, label), value in self._now().items()]
        own = sorted(self._gauges(gauges).items())
        return [*found, *(Figure(name, "", value, _GAUGES.get(name, "")) for name, value in own)]

    def _now(self) -> dict[tuple[str, str], int]:
        with self._lock:
            return dict(self._values)

    def _gauges(self, gauges: Mapping[str, int]) -> dict[str, int]:
        return {**gauges, **{re.sub(r"\W", "_", name): read() for name, read in self.gauges.items()}}


def _counter_lines(values: Mapping[tuple[str, str], int]) -> Iterator[str]:
    for name, (label, labels, meaning) in _FAMILIES.items():
        full = f"stagetrace_{name}_total"
        yield f"# HELP {full} {meaning}"
        yield f"# TYPE {full} counter"
        for one in labels:
            yield f'{full}{{{label}="{one}"}} {values[name, one]}'


def _gauge_lines(gauges: Iterable[tuple[str, int]]) -> Iterator[str]:
    for name, value in sorted(gauges):
        full = f"stagetrace_{name}"
        if name in _GAUGES:
            yield f"# HELP {full} {_GAUGES[name]}"
        yield f"# TYPE {full} gauge"
        yield f"{full} {value}"


# --- Lines that a client can cause as often as it likes: of each kind at most one in ten seconds.

_INTERVAL_S: Final = 10


class ThrottledLog:
    """Logs the first line of a kind, then how many there were since. `_lock` guards `_kinds`."""

    def __init__(self, interval_s: float = _INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}  # kind -> (when its next line may come, how many came since)

    def warning(self, kind: str, message: str) -> None:
        """Log `message`, unless a line of this kind was logged less than the interval ago."""
        self._log(log.warning, kind, message)

    def error(self, kind: str, message: str) -> None:
        """Log `message` as an error, likewise."""
        self._log(log.error, kind, message)

    def _log(self, write: Callable[[str], None], kind: str, message: str) -> None:
        unlogged = self.due(kind)
        if unlogged is not None:
            write(f"{message} ({unlogged} more since the last such line)" if unlogged else message)

    def due(self, kind: str) -> int | None:
        """Return how many of a kind were not logged since its last line if it is time for the next, else None."""
        now = time.monotonic()
        with self._lock:
            due, unlogged = self._kinds.get(kind, (now, 0))
            if now < due:
                self._kinds[kind] = (due, unlogged + 1)
                return None
            self._kinds[kind] = (now + self._interval_s, 0)
            return unlogged
