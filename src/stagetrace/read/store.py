"""A store that is open: its requests, spans, traces and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypedDict

from stagetrace import settings
from stagetrace.cli.arguments import default_url, selection, selection_options, trace_id, whole_id
from stagetrace.cli.ask import judged
from stagetrace.cli.keywords import answer_to, parsed
from stagetrace.cli.registry import ANSWERS
from stagetrace.columns import REQUESTS, SCHEMA, SPANS
from stagetrace.errors import StagetraceError, StoreError
from stagetrace.output.units import UTC
from stagetrace.read.results import Answer, Rows, Trace
from stagetrace.store import open_store
from stagetrace.store.base import Closing, Selection

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from stagetrace.store.base import Reader

_SELECTION: Final = selection_options()
_ASKED: Final = tuple(dict.fromkeys(("why", "stages", *ANSWERS, "what-if", "sla replay", "sla suggest")))


class Selected(TypedDict, total=False):
    """Which requests are meant; by default those of the last hour, of a file all of it.

    A time is a duration (`"1h"`: that long ago), a day or a time as text, or a datetime. `segment`: attribute -> value.
    `sla`: judge requests that carry no verdict by these objectives. `limit`: only the newest so many.
    """

    since: str | datetime
    until: str | datetime | None
    tz: str
    service: str | None
    route: str | None
    model: str | None
    segment: Mapping[str, object]
    judged_by: str | None
    cause: str | Sequence[str]
    code: str | Sequence[str]
    sla: str | None
    limit: int | None


class Store(Closing):
    """A store, to be closed, or left by `with`. Each question is asked anew: of a store that grows, of all it has."""

    def __init__(self, url: str, reader: Reader) -> None:
        """Take an open reader of the store at `url`."""
        self.url = url
        self._reader = reader

    def requests(
        self, *, breached: bool | None = None, attributes: Sequence[str] = (), **wanted: Unpack[Selected]
    ) -> Rows:
        """Return the requests selected, the newest first: the columns of `requests`, and these attributes as text.

        `breached`: only those that missed their objective, or only the others.
        """
        from stagetrace.store import tables

        chosen, selected = _attributes("requests", attributes, REQUESTS), self._selected("requests", wanted, breached)
        table, reason = tables.requests(self._reader, selected, chosen)
        return Rows(table, "requests", reason)

    def spans(
        self, *, breached: bool | None = None, attributes: Sequence[str] = (), **wanted: Unpack[Selected]
    ) -> Rows:
        """Return the spans of the requests selected or, of a selection by time alone, all that started in it."""
        from stagetrace.store import tables

        chosen, selected = _attributes("spans", attributes, SPANS), self._selected("spans", wanted, breached)
        table, reason = tables.spans(self._reader, selected, chosen)
        return Rows(table, "spans", reason)

    def sql(self, sql: str, **wanted: Unpack[Selected]) -> Rows:
        """Return the rows of one SELECT over the relations `requests` and `spans`, which hold the selection.

        In DuckDB's SQL or, over ClickHouse, in its own. Raise QueryError for a statement that changes something.
        """
        from stagetrace.store import tables

        with self._reader.relations(self._selected("sql", wanted)) as relations:
            return Rows(tables.statement(relations, sql), "rows", relations.reason)

    def answer(self, verb: str, **options: Any) -> Answer:
        """Return the answer of a verb, `"causes"`; its options as keywords: `since="1h"`, `by="tenant.id"`.

        Raise StagetraceError for a verb that gives none, and for keywords that it does not take.
        """
        if verb not in _ASKED:
            raise StagetraceError(f"{verb!r} is no verb that answers a question\nthere are {', '.join(_ASKED)}")
        found, zone = answer_to(self._reader, self.url, verb, options)
        return Answer(**vars(found), zone=zone)

    def trace(self, trace: str, *, service: str | None = None, breached: bool = False) -> Trace:
        """Return one trace, by its id, the first digits of it, or `latest`: the newest request, of this service."""
        try:
            given = trace_id(trace)
        except ValueError as error:
            raise StagetraceError(str(error)) from None
        meant = whole_id(self._reader, given, service, breached=breached)
        return Trace(**vars(self._reader.trace(meant.trace_id)), zone=UTC, note=meant.note)

    def services(self) -> tuple[str, ...]:
        """Return the names of all services that have spans here, sorted."""
        return self._reader.services()

    def close(self) -> None:
        """Release connections."""
        self._reader.close()

    def __repr__(self) -> str:
        return f"<store {self.url}>"

    def _selected(self, asked: str, wanted: Mapping[str, object], breached: bool | None = None) -> Selection:
        args = parsed(asked, _SELECTION, wanted, () if asked == "sql" else ("breached", "attributes"))
        return judged(self._reader, selection(args, self.url, breached=breached), args)


def open(url: str | None = None) -> Store:  # noqa: A001 -- as in `st.open`
    """Return the store at `url`: `local:///FOLDER`, `jaeger://HOST:PORT`, a plain path ...

    By default the one that the commands read: $STAGETRACE_STORE, else the local data folder.
    """
    where = default_url() if url is None else url
    if where is None:
        raise StoreError(
            f"no store to read from\nname one: open('jaeger://localhost:16685'), or set {settings.STORE.name}\n"
            "or fill the local one: stagetrace up"
        )
    return Store(where, open_store(where))


def _attributes(asked: str, names: Sequence[str], relation: str) -> Sequence[str]:
    """Return the names of attributes, each of which becomes a column."""
    if isinstance(names, str):
        raise StagetraceError(f"{asked}: attributes is a list of names\nwrite attributes=({names!r},)")
    columns = {one.in_requests or one.name for one in SCHEMA if relation in one.relations}
    for name in names:
        if name in columns:
            raise StagetraceError(f"{asked}: {name!r} is a column already\nleave it out of attributes")
    return tuple(dict.fromkeys(names))
