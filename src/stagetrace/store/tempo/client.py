"""Calls to one Tempo over HTTP: connections that are kept, messages, timeouts."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlencode

from stagetrace.errors import StoreError
from stagetrace.otlp.decode.wire import BrokenError, fields, varint_at
from stagetrace.store.base import Closing
from stagetrace.store.search_windows import DepthRefusedError
from stagetrace.store.tempo.explanations import BROKEN, PATH, Response, explain, explain_error

if TYPE_CHECKING:
    from stagetrace.store.access import Access
    from stagetrace.store.tempo.address import Address

_MOST_BYTES: Final = 256 << 20  # of a response, which may hold a whole trace
_CALLS_AT_ONCE: Final = 8
_LONGEST: Final = 200  # of a text of the server's
_PROTOBUF: Final = "application/protobuf"
_JSON: Final = "application/json"
_SERVICES: Final = "/api/v2/search/tag/resource.service.name/values"
_TRACE, _STATUS, _MESSAGE = 1, 3, 4  # fields of a TraceByIDResponse
_ID_DIGITS: Final = 32
_NOT_ITS_PATH: Final = "page not found"  # of Go's router; a trace that is not there has another text, or none


class RangeRefusedError(Exception):
    """The store does not search so wide a time at once; `widest_s` is the widest."""

    def __init__(self, widest_s: int) -> None:
        """Take the widest."""
        super().__init__(widest_s)
        self.widest_s = widest_s


class Hit(NamedTuple):
    """A trace that a search found: its beginning and end as far as the search knows them."""

    trace_id: str
    start_ns: int
    end_ns: int


class Stored(NamedTuple):
    """A trace as serialized TracesData, empty where the store does not hold it, and why it is not all of it."""

    data: bytes
    reason: str | None = None


class TempoClient(Closing):
    """Connections to one Tempo. Nothing is sent before the first call. One thread asks; another may interrupt."""

    def __init__(self, address: Address, timeout_s: float = 60.0) -> None:
        """Prepare calls to `address`, each of which may take `timeout_s` seconds."""
        self.address = address
        self.url = address.name
        self._timeout_s = timeout_s
        self._context = _context(address.access) if address.access.tls else None
        self._pool = ThreadPoolExecutor(_CALLS_AT_ONCE, "stagetrace-tempo")
        self._lock = threading.Lock()  # guards the next three
        self._idle: list[http.client.HTTPConnection] = []
        self._open: set[http.client.HTTPConnection] = set()
        self._is_closed = False

    def close(self) -> None:
        """Close the connections; a call that runs fails."""
        with self._lock:
            self._is_closed = True
            connections, self._idle, self._open = list(self._open), [], set()
        for one in connections:
            if (connected := one.sock) is not None:
                with suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)  # else a thread that reads it would go on reading
            one.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def search(self, query: str, window_s: tuple[int, int], limit: int) -> list[Hit]:
        """Return at most `limit` traces, each once, which are in [window_s) with a part and match a TraceQL query.

        Tempo returns any of those that there are, not the newest. Raise DepthRefusedError or RangeRefusedError.
        """
        asked = {"q": query, "start": window_s[0], "end": window_s[1], "limit": limit, "spss": 1}
        hits = [self._hit(one) for one in _list(self._json("/api/search", asked), "traces")]
        return list({one.trace_id: one for one in hits}.values())

    def _hit(self, given: Mapping[str, Any]) -> Hit:
        try:
            trace_id = bytes.fromhex(str(given["traceID"]).zfill(_ID_DIGITS)).hex()
            start_ns = int(given.get("startTimeUnixNano", 0))
            return Hit(trace_id, start_ns, start_ns + int(given.get("durationMs", 0)) * 10**6)
        except (KeyError, TypeError, ValueError):
            raise self._not_tempo(f"/api/search has a trace that is none: {shorten(str(given), _LONGEST)}") from None

    def services(self, window_s: tuple[int, int]) -> list[str]:
        """Return the services that have spans in [window_s), in no order. Raise RangeRefusedError."""
        asked = {"start": window_s[0], "end": window_s[1], "limit": 10_000}
        return [str(one["value"]) for one in _list(self._json(_SERVICES, asked), "tagValues") if one.get("value")]

    def get_trace(self, trace_id: str) -> Stored:
        """Return one trace."""
        response = self._get(f"/api/v2/traces/{trace_id}", {}, _PROTOBUF)
        if response.status == http.client.NOT_FOUND and _NOT_ITS_PATH not in response.text:
            return Stored(b"")
        self._check(response)
        if _PROTOBUF not in response.kind:
            raise self._not_tempo(f"a trace comes as {response.kind or 'nothing'}, not as {_PROTOBUF}")
        try:
            found = _stored(response.body)
        except BrokenError:
            raise self._not_tempo("a trace comes as broken protobuf") from None
        is_part = response.status == http.client.PARTIAL_CONTENT and found.reason is None
        return found._replace(reason="Tempo could not read all that it stores") if is_part else found

    def get_traces(self, trace_ids: Iterable[str]) -> Iterator[Stored]:
        """Yield each of these traces, in this order; several calls run while one is read."""
        waiting: deque[Future[Stored]] = deque()
        try:
            for trace_id in trace_ids:
                waiting.append(self._submit(trace_id))
                if len(waiting) == _CALLS_AT_ONCE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except CancelledError:
            raise self._interrupted() from None
        finally:
            for call in waiting:
                call.cancel()

    def _submit(self, trace_id: str) -> Future[Stored]:
        try:
            return self._pool.submit(self.get_trace, trace_id)
        except RuntimeError:  # after `interrupt`
            raise self._interrupted() from None

    def _json(self, path: str, parameters: Mapping[str, object]) -> dict[str, Any]:
        response = self._get(path, parameters, _JSON)
        self._check(response)
        try:
            found = json.loads(response.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._not_tempo(f"{path} has no JSON object: {response.text}")
        return found

    def _get(self, path: str, parameters: Mapping[str, object], accept: str) -> Response:
        """Return the response to GET, over a connection that is kept; over a new one if that has gone meanwhile."""
        target = f"{self.address.prefix}{path}" + (f"?{urlencode(parameters)}" if parameters else "")
        headers = {"Accept": accept, **self.address.headers}
        while True:
            connection, is_new = self._take()
            try:
                connection.request("GET", target, headers=headers)
                response = connection.getresponse()
                body = response.read(_MOST_BYTES + 1)
            except (OSError, http.client.HTTPException) as error:
                self._drop(connection)
                if self._is_closed:
                    raise self._interrupted() from None
                if isinstance(error, BROKEN) and not is_new:
                    continue
                raise self._failed(error) from None
            except BaseException:
                self._drop(connection)
                raise
            if len(body) > _MOST_BYTES:
                self._drop(connection)
                raise StoreError(
                    f"{self.url}: a response is larger than {_MOST_BYTES >> 20} MiB\nask for less time (--since)"
                )
            with self._lock:
                self._idle.append(connection)
            return Response(response.status, response.getheader("Content-Type") or "", body)

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        """Return a connection of this call's own, and whether it is new."""
        host, port = self.address.host, self.address.port
        with self._lock:
            if self._is_closed:
                raise self._interrupted()
            if self._idle:
                return self._idle.pop(), False
            if self._context is None:
                made = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
            else:
                made = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._context)
            self._open.add(made)
            return made, True

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._open.discard(connection)
        connection.close()

    def _check(self, response: Response) -> None:
        """Raise what a response other than 200 means."""
        if response.status in (http.client.OK, http.client.PARTIAL_CONTENT):
            return
        if found := re.search(r"start and end exceeds ([0-9hms.]+)", response.text):
            raise RangeRefusedError(_seconds(found[1]))
        if re.search(r"limit \d+ (exceeds max limit|out of range)", response.text):
            raise DepthRefusedError(response.text)
        what, remedy = explain(response, self.address)
        raise StoreError(f"{self.url}: {what}\n{remedy}")

    def _failed(self, error: Exception) -> StoreError:
        what, remedy = explain_error(error, self._timeout_s, self.address)
        return StoreError(f"{self.url}: {what}\n{remedy}")

    def _not_tempo(self, what: str) -> StoreError:
        return StoreError(f"{self.url}: a server answers there, but not as Tempo does: {what}\n{PATH}")

    def _interrupted(self) -> StoreError:
        return StoreError(f"{self.url}: the question was interrupted\nask again")


def _context(access: Access) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=access.paths.get("ca"))
    if "cert" in access.paths:
        found.load_cert_chain(access.paths["cert"], access.paths["key"])
    return found


def _list(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = document.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _stored(response: bytes) -> Stored:
    """Return what a TraceByIDResponse holds: its trace is, on the wire, TracesData."""
    data, is_partial, message = b"", 0, ""
    for one in fields(response, 0, len(response)):
        if one.number == _TRACE:
            data += response[one.first : one.after]
        elif one.number == _STATUS and not one.delimited:
            is_partial, _ = varint_at(response, one.first)
        elif one.number == _MESSAGE:
            message = response[one.first : one.after].decode(errors="replace")
    reason = f"Tempo reports: {shorten(message, _LONGEST) or 'a part of the trace'}" if is_partial else None
    return Stored(data, reason)


def _seconds(duration: str) -> int:
    """Return a duration as Go writes it, `168h0m0s`, in whole seconds, at least one."""
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"([\d.]+)([hms])(?!s)", duration)
    return max(1, int(sum(float(number) * units[unit] for number, unit in parts)))
