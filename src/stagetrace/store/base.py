"""The contract of every store, its rows, and URLs. A store is one file with a `Reader`, and one line in `SCHEMES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

from stagetrace import settings
from stagetrace.analysis.estimates import NOTHING, Sample
from stagetrace.errors import StoreError

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from typing_extensions import Self

    from stagetrace.analysis.judging import Judging
    from stagetrace.store.reductions import Engine

# --- The contract of every store, and its rows. A store is one file with a `Reader` and one line in `url.SCHEMES`.
#
# Times are integer nanoseconds since 1970 UTC, durations named `_ms` milliseconds, ids lower-case hex.

# An OTLP attribute value in Python: str, bool, int, float, bytes, list and dict of these, or None where it is empty.
Value = object

# How many items so far, of which kind, and the share of all, where that is known.
Progress: TypeAlias = "Callable[[int, str, float | None], None]"

SERVER: Final = "SERVER"
CANDIDATES: Final = 10  # ids that `trace_ids` gives

# Optional capabilities of a store, beyond `services`, `breaches` and `trace`:
RELATIONS: Final = "relations"  # give the two relations
SQL: Final = "sql"  # ... with the reader's own SQL allowed on them
SEGMENTS: Final = "segments"  # filter by any attribute
# Have `spans_after(cursor, entries=False) -> (rows, cursor)`: spans received since, or only those of kind SERVER; where
# the cursor is None, only the cursor.
TAIL: Final = "tail"
COUNTS: Final = "counts"  # have `counted(selection) -> list[Counted]`: counts that services have sent
EXHAUSTIVE: Final = "exhaustive"  # return everything in a window, however much that is
WHOLE: Final = frozenset({RELATIONS, SQL, SEGMENTS, EXHAUSTIVE})  # the capabilities of a store that DuckDB can ask


@dataclass(frozen=True)
class Selection:
    """Which requests are selected, the same in every store and command; spans follow their request.

    A request is one entry span: a span of kind SERVER (Jaeger's badger storage keeps no flags to refine that).
    """

    since_ns: int  # [since_ns, until_ns) by the start of the entry span
    until_ns: int
    service: str | None = None
    route: str | None = None  # or the text of a request in lists: `entries.request_text`
    model: str | None = None
    # Attribute of the entry span or, if that has none, of its resource -> its value's text form (`as_text`).
    segments: Mapping[str, str] = field(default_factory=dict)
    breached: bool | None = None  # False: those not breached, judged or not
    causes: tuple[str, ...] = ()  # only breaches that have one of these
    judged_by: str | None = None  # only requests that this objective judged; of breaches, those that missed it
    codes: tuple[str, ...] = ()  # only breaches at one of these lines of code, as `rows` has them
    limit: int | None = None  # only the newest so many
    judging: Judging | None = None  # how to judge the requests that carry no verdict, before anything else is asked

    @property
    def by_time(self) -> Selection:
        """Return all requests of the same time, service, route, model and segments, whatever became of them."""
        return replace(self, breached=None, causes=(), codes=(), judged_by=None, limit=None, judging=None)

    @property
    def stored(self) -> Selection:
        """Return what is selected by what is stored alone: where requests are judged afterwards, no verdict is."""
        return self if self.judging is None else self.by_time

    @property
    def is_filtered(self) -> bool:
        """Return whether anything but time limits it."""
        single = (self.service, self.route, self.model, self.judged_by, self.breached, self.limit)
        return single != (None,) * len(single) or bool(self.segments or self.causes or self.codes)


class SpanEvent(NamedTuple):
    """What happened within a span: an exception, a log line."""

    time_unix_nano: int
    name: str
    attributes: Mapping[str, Value]


class SpanLink(NamedTuple):
    """Another span that a span names: of the batch that served it, say."""

    trace_id: str
    span_id: str
    attributes: Mapping[str, Value]


@dataclass(frozen=True)
class SpanRow:
    """One span as it is stored. A root has no parent; `kind` and `status` are OTLP's words without their prefix."""

    trace_id: str
    span_id: str
    parent_span_id: str | None
    name: str
    service: str
    kind: str
    start_unix_nano: int
    end_unix_nano: int
    attributes: Mapping[str, Value]
    status: str = "UNSET"
    resource: Mapping[str, Value] = field(default_factory=dict)
    follows: bool = False  # its parent without being waited for: a FOLLOWS_FROM reference of OpenTracing
    events: tuple[SpanEvent, ...] = ()
    links: tuple[SpanLink, ...] = ()

    @property
    def duration_ns(self) -> int:
        """Return end minus start; negative only where a clock stepped back."""
        return self.end_unix_nano - self.start_unix_nano


class Mark(NamedTuple):
    """A moment that somebody has named, such as a deploy."""

    at_unix_nano: int
    text: str


class Missed(NamedTuple):
    """A bound that a breach missed (`within`, `first_chunk` ...), the measured and the allowed duration."""

    bound: str
    took_ms: float
    allowed_ms: float


@dataclass(frozen=True)
class Entry:
    """One judged entry span. Absent values are None; `stages` maps stage to total ms, in stage order."""

    trace_id: str
    span_id: str
    service: str
    name: str
    route: str | None
    start_unix_nano: int
    end_unix_nano: int
    threshold_ms: float | None
    overrun_ms: float | None
    objective: str | None
    stage: str | None
    severity: str | None
    cause: str | None = None
    evidence: str | None = None
    code: str | None = None
    model: str | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    missed: tuple[Missed, ...] = ()

    @property
    def duration_ms(self) -> float:
        """Return the duration, computed from the integer times."""
        return (self.end_unix_nano - self.start_unix_nano) / 1e6


@dataclass(frozen=True)
class Lost:
    """The breaches of one stage and cause: how many, and their total overrun of the allowed time."""

    stage: str | None
    cause: str | None
    missed: int
    overrun_ms: float


@dataclass(frozen=True)
class Tally:
    """Outcomes of the requests of a selection, its limit aside; its causes and codes narrow `missed` and `lost` alone.

    With a `reason`, each number is a lower bound; if `all_missed`, `missed` and `lost` are exact nevertheless.
    """

    requests: int = 0
    judged: int = 0
    missed: int = 0
    excluded: int = 0
    recorded: int = 0  # those that carry a verdict or stages: spans of other senders have neither
    lost: tuple[Lost, ...] = ()  # most time first
    newest_unix_nano: int | None = None  # start of the newest request; where there is none, of the newest of any time
    reason: str | None = None
    all_missed: bool = True
    sample: Sample = NOTHING  # `requests` to `recorded` are sums of its weights
    services: tuple[str, ...] = ()  # that have any of these requests, by name

    @property
    def overrun_ms(self) -> float:
        """Return the total overrun of all breaches."""
        return round(sum(one.overrun_ms for one in self.lost), 6)


class Partial:
    """A result that may lack something: `reason` explains what was cut off, None where nothing was."""

    reason: str | None

    @property
    def complete(self) -> bool:
        """Return whether nothing is missing."""
        return self.reason is None


@dataclass(frozen=True)
class Breaches(Partial):
    """Result of `Reader.breaches`, newest first, and out of how many requests."""

    breaches: tuple[Entry, ...]
    reason: str | None = None
    tally: Tally = Tally()


@dataclass(frozen=True)
class Trace(Partial):
    """Result of `Reader.trace`: every stored span once, by start."""

    trace_id: str
    spans: tuple[SpanRow, ...]
    reason: str | None = None


@dataclass(frozen=True)
class TraceIds(Partial):
    """Result of `Reader.trace_ids`. Where not all traces were searched, `reason` names those that were."""

    ids: tuple[str, ...]
    reason: str | None = None


class Closing:
    """Makes `with` call `close`."""

    progress: Progress = staticmethod(lambda _count, _what, _share: None)

    def close(self) -> None:
        """Release all resources."""

    def interrupt(self) -> None:
        """Have the question fail that another thread asks, if there is one: by closing, after which none is asked."""
        self.close()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()


class Relations(Closing, Partial, ABC):
    """The relations `spans` and `requests` of `reductions.py`, in the database that `engine` names.

    `requests` holds the entry spans of the selection; `spans` every span of their traces, or, of a selection by time
    alone, every span that started in it. A span delivered twice is there once.
    """

    def __init__(self, engine: Engine, reason: str | None = None) -> None:
        """Take what the SQL of reductions leaves open, and what the relations lack."""
        self.engine = engine
        self.reason = reason
        self.marks: Sequence[Mark] = ()  # within the time of the selection, by time

    @abstractmethod
    def ask(self, sql: str, values: Mapping[str, object]) -> list[dict[str, Any]]:
        """Return the rows of a query of ours in the engine's SQL, column -> value."""

    @abstractmethod
    def select(self, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
        """Return column names and rows of one SELECT of the user's. Raise QueryError for any other, or a wrong one."""

    @abstractmethod
    def narrow(self, selection: Selection) -> Relations:
        """Return relations of a narrower selection, which has no limit; these here are not used afterwards."""

    def reduce(self, name: str, by: Sequence[str] = (), **values: object) -> list[dict[str, Any]]:
        """Return the rows of a reduction of `requests`, as `analysis.source.Source` specifies."""
        from stagetrace.store.reductions import statement

        return self.ask(statement(self.engine, name, by), values)


class Reader(Protocol):
    """Read access to one store. Any method raises StoreError where the store cannot be read."""

    progress: Progress
    """Called while a query is read; it may be set."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Return its optional capabilities."""
        ...

    def services(self) -> tuple[str, ...]:
        """Return the names of all services that have spans here, sorted."""
        ...

    def breaches(self, selection: Selection) -> Breaches:
        """Return the selected entry spans that are breached (whatever `selection.breached` is), each once.

        With `limit`, at most that many of the newest; incomplete if there are more. Nothing found of a service, route,
        model, objective, segment or line of code that the store does not know raises StoreError. A store that does not
        know whether it gave everything returns `complete=False`.
        """
        ...

    def trace(self, trace_id: str) -> Trace:
        """Return the trace with this id (32 lower-case hex digits). An unknown id raises StoreError."""
        ...

    def trace_ids(self, prefix: str) -> TraceIds:
        """Return the ids that begin with these lower-case hex digits, at most `CANDIDATES`, newest first."""

    def traces(self, trace_ids: Sequence[str]) -> Iterator[Trace]:
        """Yield those of these traces that are stored, each once, in any order: with one query, however many.

        Raise StoreError as `trace` does, an unknown id aside.
        """
        ...

    def relations(self, selection: Selection) -> Relations:
        """Return both relations, restricted to `selection`; limit and unknown names as in `breaches`."""
        ...

    def iter_otlp(self, selection: Selection, cuts: list[str]) -> Iterator[ExportTraceServiceRequest]:
        """Yield the spans of `relations(selection)` without loss, as OTLP; append to `cuts` what is missing.

        A span may come twice. A limit is not exact: the requests of one more trace may come. Unknown names as in
        `breaches`.
        """
        ...

    def interrupt(self) -> None:
        """Have the question fail that another thread asks, as far as the store can; the reader is only closed then."""
        ...

    def close(self) -> None:
        """Release connections; the reader is not used afterwards."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...


# --- Store URLs: which schemes there are, and which module opens each.


class Scheme(NamedTuple):
    """A kind of store: `module`, imported on use, has `open_url(url) -> Reader`; `form` shows people the URL."""

    module: str
    form: str


SCHEMES: Final[dict[str, Scheme]] = {
    "jaeger": Scheme("stagetrace.store.jaeger.reader", "jaeger://HOST:PORT (Jaeger's gRPC query port, normally 16685)"),
    "tempo": Scheme("stagetrace.store.tempo.reader", "tempo://HOST:PORT[/PREFIX] (Tempo's HTTP port, normally 3200)"),
    "clickhouse": Scheme(
        "stagetrace.store.clickhouse.reader",
        "clickhouse://[USER:PASSWORD@]HOST[:PORT]/DATABASE?table=otel_traces (what the Collector's exporter fills)",
    ),
    "local": Scheme("stagetrace.store.local", "local:///FOLDER (what `stagetrace up` fills)"),
    "s3": Scheme("stagetrace.store.s3.reader", "s3://BUCKET/PREFIX (what `stagetrace up --archive` fills)"),
    "file": Scheme(
        "stagetrace.store.file.reader", "file:///FILE (OTLP JSON lines or protobuf, or what `export` wrote)"
    ),
}
_OVER_TLS: Final = ("jaeger", "tempo", "clickhouse")
SCHEMES.update({f"{name}s": SCHEMES[name]._replace(form="") for name in _OVER_TLS})


def forms() -> str:
    """Return the forms of all URLs."""
    tls = " ".join(f"{name}s://" for name in _OVER_TLS)
    return f"{', '.join(filter(None, (scheme.form for scheme in SCHEMES.values())))}; over TLS: {tls}"


def open_store(url: str) -> Reader:
    """Return a reader of the store at `url`; nothing is sent before its first use. Raise StoreError for a bad URL.

    A plain path names a file, or the folder of a local store.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        path = Path(url)
        if not url or not path.exists():
            raise bad(url, "it has no scheme, and there is no such file or folder")
        scheme, url = ("local" if path.is_dir() else "file"), path.absolute().as_uri()
    if scheme.lower() not in SCHEMES:
        raise bad(url, f"there is no kind of store called {scheme!r}")
    open_url: Callable[[str], Reader] = import_module(SCHEMES[scheme.lower()].module).open_url
    return open_url(url)


def host_and_port(url: str, default_port: int) -> tuple[str, int]:
    """Return host and port of a URL that may hold nothing else. Raise StoreError if it does not."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise bad(url, str(error)) from None
    if not host:
        raise bad(url, "the host is missing")
    if not host.isprintable():
        raise bad(url, "no host has such a name")
    if port == 0:
        raise bad(url, "no server listens on port 0")
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise bad(url, "nothing but a host and a port belongs in it")
    return host, port or default_port


def bad(url: str, wrong: str) -> StoreError:
    """Return the error for a URL that cannot be opened."""
    return StoreError(f"cannot open store {url!r}: {wrong}\nsupported: {forms()}")


def default_folder() -> Path:
    """Return the folder of the local store where none is named."""
    data = settings.DATA_HOME.read() or Path.home() / ".local" / "share"
    return Path(data) / "stagetrace"
