"""Requests as they arrive: the newest ones as a part, then a stream of server-sent events."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from starlette.responses import PlainTextResponse, StreamingResponse

from stagetrace.backend.counters import ThrottledLog
from stagetrace.backend.http_port import ENDLESS
from stagetrace.backend.ports import connections_of_ports
from stagetrace.backend.refusal import short
from stagetrace.errors import StagetraceError, StoreError
from stagetrace.output.table_rows import cells, columns
from stagetrace.page.base import Asked, BadRequest, Part, View
from stagetrace.page.queries import Readers
from stagetrace.page.templates import HEADERS
from stagetrace.store import answers
from stagetrace.store.base import TAIL, Selection
from stagetrace.store.entries import matches
from stagetrace.store.follow import follow
from stagetrace.text import printable

if TYPE_CHECKING:
    from contextlib import ExitStack

    from starlette.requests import Request
    from starlette.responses import Response

    from stagetrace.page.base import Endpoint, Site
    from stagetrace.store.base import Reader, SpanRow

_NEWEST: Final = 50
_SILENCE_S: Final = 10.0  # after which a comment shows that the other side is there
_PART_OF_PORT: Final = 8  # of its connections, one in so many may be a viewer
_EVER_NS: Final = 2**63 - 1


def shell(asked: Asked, site: Site) -> Mapping[str, Any]:
    """Return where the stream is, and how many rows are kept."""
    return {"stream": asked.part_url("/tail/events"), "kept_rows": WAITING}


def newest(asked: Asked, reader: Reader, site: Site) -> Part:
    """Return the newest requests of the selection, whose names the store need not know yet."""
    found: list[dict[str, Any]] = []
    try:
        with reader.relations(_selected(asked)) as relations:
            found, reason = answers.requests(relations, "start", _NEWEST), relations.reason
    except StoreError as error:
        reason = short(str(error))
    values = {"rows": [_row(one, asked) for one in found], "columns": columns(asked.zone)[:-1]}
    return Part("tail_newest.html", values, reason)


def routes(site: Site, stack: ExitStack) -> Mapping[str, Endpoint]:
    """Return the endpoint of the stream."""
    live = Live(site.open_reader, connections_of_ports().http // _PART_OF_PORT)
    stack.callback(live.close)

    async def events(request: Request) -> Response:
        try:
            asked = Asked.of(request.query_params.multi_items(), request.path_params, site.since)
        except BadRequest as error:
            return PlainTextResponse(str(error), 400, headers=HEADERS)
        if not live.has_room:
            return PlainTextResponse("as many watch as the back end takes", 503, headers=HEADERS)
        request.scope[ENDLESS] = True
        wanted = replace(_selected(asked), since_ns=0, until_ns=_EVER_NS)
        viewer = Viewer(request.url.query, wanted, lambda span: _row(answers.request_of(span), asked))
        return StreamingResponse(_stream(live, viewer), media_type="text/event-stream", headers=HEADERS)

    return {"events": events}


async def _stream(live: Live, viewer: Viewer) -> AsyncIterator[str]:
    live.join(viewer)
    try:
        yield "retry: 1000\n\n"
        while True:
            yield await viewer.events(_SILENCE_S)
    finally:
        live.leave(viewer)


def _selected(asked: Asked) -> Selection:
    return replace(asked.selection, breached=True if asked.one("breached") else None)


def _row(found: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """Return a request as a row: the text of its cells, and a link in place of the last one, which is its trace."""
    *shown, trace_id = map(printable, cells(found, asked.zone))
    return {
        "id": f"{trace_id}-{found['span_id']}",
        "url": asked.url(f"/trace/{trace_id}"),
        "breached": bool(found["breached"]),
        "cells": shown,
    }


VIEW: Final = View(
    "tail", "Live tail", "/tail", "tail.html", {"newest": newest}, shell, routes=routes, keeps=("breached",)
)


# --- Requests as they arrive, for all who watch: one thread follows the store, each viewer has a bounded queue.

WAITING: Final = 500  # requests for one viewer, which shows no more at one time
INTERVAL_S: Final = 1.0
POLLED_S: Final = 3.0  # of a store that does not report what is new
_AGAIN_S: Final = 3.0  # after an error
_END_S: Final = 3.0
_ALL: Final = Selection(0, 2**63 - 1)
_FAILED: Final = "the page cannot follow the store; see the log of the back end"
_log: Final = ThrottledLog()


@dataclass(eq=False)
class Viewer:
    """One who watches. Used from the event loop alone, where it was made."""

    key: str  # viewers with the same one see the same
    wanted: Selection
    shown: Callable[[SpanRow], dict[str, Any]]
    missed: int = 0  # requests that it had no room for
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    _rows: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=WAITING))
    _state: dict[str, Any] | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take in requests; without room the oldest ones are missed."""
        self.missed += max(0, len(self._rows) + len(rows) - WAITING)
        self._rows.extend(rows)
        self._news.set()

    def set_state(self, state: dict[str, Any]) -> None:
        """Take in how the store is followed."""
        self._state = state
        self._news.set()

    async def events(self, silence_s: float) -> str:
        """Return what there is to send, once there is anything; a comment after a silence."""
        try:
            await asyncio.wait_for(self._news.wait(), silence_s)
        except asyncio.TimeoutError:
            return ": still here\n\n"
        self._news.clear()
        events = []
        if self._state is not None:
            events.append(_event("state", self._state))
        if self._rows:
            events.append(_event("requests", {"rows": list(self._rows), "missed": self.missed}))
        self._rows.clear()
        self._state, self.missed = None, 0
        return "".join(events)


def _event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


class Live:
    """Follows the store as long as anybody watches. Viewers join and leave in the event loop; the lock guards all."""

    def __init__(self, open_reader: Callable[[], Reader], most: int) -> None:
        """Take at most so many viewers."""
        self._readers = Readers(open_reader)
        self._most = most
        self._lock = threading.Lock()
        self._viewers: set[Viewer] = set()
        self._state: dict[str, Any] | None = None
        self._stop = threading.Event()
        self._threads: set[threading.Thread] = set()

    @property
    def has_room(self) -> bool:
        """Return whether one more may watch."""
        return len(self._viewers) < self._most

    def join(self, viewer: Viewer) -> None:
        """Let a viewer watch; the first one starts the thread."""
        with self._lock:
            if not self._viewers:
                self._state, self._stop = None, threading.Event()
                thread = threading.Thread(target=self._run, args=(self._stop,), name="stagetrace-live")
                self._threads.add(thread)
                thread.start()
            self._viewers.add(viewer)
            if self._state is not None:
                viewer.set_state(self._state)

    def leave(self, viewer: Viewer) -> None:
        """Forget a viewer; the last one ends the thread."""
        with self._lock:
            self._viewers.discard(viewer)
            if not self._viewers:
                self._stop.set()

    def close(self) -> None:
        """End the thread, and close what it reads with."""
        with self._lock:
            self._stop.set()
            threads = list(self._threads)
        self._readers.interrupt()
        for thread in threads:
            thread.join(_END_S)
        self._readers.close()

    def _run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                try:
                    self._follow(stop)
                except StagetraceError as error:
                    self._report(stop, {"problem": short(str(error))})
                except Exception as error:  # noqa: BLE001 -- it goes on with a new reader
                    if not stop.is_set():
                        _log.error("failed", f"the live tail failed: {type(error).__name__}: {error}")
                    self._report(stop, {"problem": _FAILED})
                stop.wait(_AGAIN_S)
        finally:
            with self._lock:
                self._threads.discard(threading.current_thread())

    def _follow(self, stop: threading.Event) -> None:
        with self._readers.one() as reader:
            has_tail = TAIL in reader.capabilities
            interval_s = INTERVAL_S if has_tail else POLLED_S
            is_new = True
            for spans in follow(reader, _ALL, 0):
                if is_new:  # from here on nothing is missed
                    self._report(stop, {"polled_s": None if has_tail else interval_s})
                    is_new = False
                self._give(stop, spans)
                if stop.wait(interval_s):
                    return

    def _report(self, stop: threading.Event, state: dict[str, Any]) -> None:
        with self._lock:
            if stop is self._stop:
                self._state = state
                for viewer in self._viewers:
                    _call(viewer, partial(viewer.set_state, state))

    def _give(self, stop: threading.Event, spans: Sequence[SpanRow]) -> None:
        """Give each viewer the requests that it wants: those who want the same share what is made of them."""
        if not spans:
            return
        with self._lock:
            viewers = list(self._viewers) if stop is self._stop else []
        made: dict[str, list[dict[str, Any]]] = {}
        for viewer in viewers:
            if viewer.key not in made:
                wanted = [span for span in spans if matches(span, viewer.wanted)]
                made[viewer.key] = [viewer.shown(span) for span in wanted]
            if made[viewer.key]:
                _call(viewer, partial(viewer.offer, made[viewer.key]))


def _call(viewer: Viewer, what: Callable[[], None]) -> None:
    """Have the event loop do something, unless it has ended."""
    if not viewer.loop.is_closed():
        viewer.loop.call_soon_threadsafe(what)
