"""Queries of one ClickHouse over HTTP: where it is, what a user may set, bounds, cancellation, errors."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

from stagetrace import log, settings
from stagetrace.errors import QueryError, StoreError
from stagetrace.store import access
from stagetrace.store.base import bad
from stagetrace.store.database import needs
from stagetrace.text import redacted

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client as Driver

TABLE: Final = "otel_traces"
_PORTS: Final = {"clickhouse": 8123, "clickhouses": 8443}
_SPILL: Final = 2 << 30
# What is set for a query, where the user may set anything: bounds, and that a table in parts by day is read part by
# part. Each can stand in the URL, as any setting can.
SETTINGS: Final[Mapping[str, object]] = {
    "do_not_merge_across_partitions_select_final": 1,
    "max_execution_time": 300,
    "max_memory_usage": 2 * _SPILL,
    "max_bytes_before_external_group_by": _SPILL,
    "max_bytes_before_external_sort": _SPILL,
}
_CODE: Final = re.compile(r"[Cc]ode:? (\d+)")
_REMEDIES: Final = {
    60: "name the table: clickhouse://HOST/DATABASE?table=NAME",
    81: "name the database: clickhouse://HOST/DATABASE?table=NAME",
    158: "ask for less, as by --since, or allow more: clickhouse://...&max_rows_to_read=N",
    159: "ask for less, as by --since, or allow more time: clickhouse://...&max_execution_time=SECONDS",
    241: "ask for less, as by --since, or allow more: clickhouse://...&max_memory_usage=BYTES",
    307: "ask for less, as by --since, or allow more: clickhouse://...&max_bytes_to_read=BYTES",
    497: "the user of the URL needs SELECT on the table",
    516: f"check them: clickhouse://USER:PASSWORD@HOST/..., or the password in {settings.STORE_TOKEN.name}",
}
_CHECK: Final = "check host, port (of HTTP, normally 8123) and that ClickHouse runs"


@dataclass(frozen=True)
class Address:
    """Where a table is, and as whom it is read."""

    host: str
    port: int
    tls: bool
    database: str
    table: str
    user: str
    password: str = field(repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return f"{self.host}:{self.port}/{self.database}.{self.table}"


def parse(url: str) -> Address:
    """Return what `clickhouse[s]://[USER[:PASSWORD]@]HOST[:PORT]/DATABASE[?table=NAME&SETTING=VALUE]` says.

    Raise StoreError for a bad URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
        asked = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    except ValueError as error:
        raise bad(redacted(url), str(error)) from None
    database = unquote(parts.path.strip("/"))
    if not parts.hostname:
        raise bad(redacted(url), "the host is missing")
    if not database or "/" in database:
        raise bad(redacted(url), "it names one database behind the host, as /otel")
    table = asked.pop("table", TABLE)
    scheme = parts.scheme.lower()
    is_tls = scheme == "clickhouses"
    password = unquote(parts.password or "")
    if parts.password is None:
        given = access.over_tls(url, ()) if is_tls else access.without_tls(parts.hostname, "clickhouses")
        password = given.token or ""
    return Address(
        parts.hostname,
        port or _PORTS[scheme],
        is_tls,
        database,
        table,
        unquote(parts.username or "default"),
        password,
        asked,
    )


class Client:
    """One connection. Nothing is sent before the first query. Not for use by several threads, `interrupt` aside."""

    def __init__(self, address: Address) -> None:
        """Read from this address."""
        self.address = address
        self.read_bytes = 0  # by all queries so far
        self._driver: Driver | None = None
        self._settings: dict[str, Any] = {}
        self._running: str | None = None
        self._lock = threading.Lock()  # guards the line above

    def rows(self, sql: str, values: Mapping[str, object] | None = None) -> list[dict[str, Any]]:
        """Return the rows of a query of ours, column -> value. Raise StoreError."""
        names, rows = self.ask(sql, values)
        return [dict(zip(names, row, strict=True)) for row in rows]

    def ask(self, sql: str, values: Mapping[str, object] | None = None) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return column names and rows of a query. Raise StoreError."""
        with self._query(StoreError) as (driver, asked):
            found = driver.query(sql, parameters=dict(values or {}), settings=asked)
            self.read_bytes += int(found.summary.get("read_bytes", 0))
            return list(found.column_names), list(map(tuple, found.result_rows))

    def stream(
        self, sql: str, values: Mapping[str, object] | None = None, *, error: type[StoreError | QueryError] = StoreError
    ) -> Iterator[tuple[list[str], list[tuple[Any, ...]]]]:
        """Yield column names and some rows at a time, at least once. Raise `error`."""
        with (
            self._query(error, readonly=True) as (driver, asked),
            driver.query_row_block_stream(sql, parameters=dict(values or {}), settings=asked) as blocks,
        ):
            names = list(blocks.source.column_names)
            yield names, []
            for block in blocks:
                yield names, list(block)

    def command(self, sql: str) -> None:
        """Run a statement that changes something, however long that takes. Raise StoreError."""
        with self._query(StoreError) as (driver, asked):
            driver.command(sql, settings={**asked, "max_execution_time": 0})

    @contextmanager
    def _query(
        self, kind: type[StoreError | QueryError], *, readonly: bool = False
    ) -> Iterator[tuple[Driver, dict[str, Any]]]:
        from clickhouse_connect.driver.exceptions import ClickHouseError

        query_id = uuid.uuid4().hex
        try:
            driver = self._connected()
            with self._lock:
                self._running = query_id
            only = {"readonly": 2} if readonly and self._settings else {}  # whoever may set nothing is bound by 1
            yield driver, {**self._settings, **only, "query_id": query_id}
        except ClickHouseError as error:
            raise kind(self._message(str(error), kind)) from None
        except BaseException:  # Ctrl-C, or what asked went away in the midst of it
            self.interrupt()
            raise
        finally:
            with self._lock:
                self._running = None

    def _connected(self) -> Driver:
        if self._driver is None:
            self._driver = self.connect()
            known = self._driver.server_settings
            wanted = {**SETTINGS, **self.address.settings}
            unknown = [name for name in self.address.settings if name not in known]
            if unknown:
                raise StoreError(
                    f"{self.address.name}: ClickHouse has no setting {unknown[0]!r}\nleave it out of the URL"
                )
            self._settings = {
                name: value for name, value in wanted.items() if name in known and not known[name].readonly
            }
            if not self._settings:
                who = f"{self.address.name}: user {self.address.user}"
                log.once(who, f"{who} may set nothing (readonly = 1), so queries have the server's bounds alone")
        return self._driver

    def connect(self) -> Driver:
        """Return a new connection."""
        try:
            import clickhouse_connect
        except ImportError:
            raise needs("clickhouse://", "clickhouse-connect", "clickhouse") from None
        address = self.address
        return clickhouse_connect.get_client(
            host=address.host,
            port=address.port,
            username=address.user,
            password=address.password,
            database=address.database,
            secure=address.tls,
            query_limit=0,
            autogenerate_session_id=False,
            client_name="stagetrace",
        )

    def interrupt(self) -> None:
        """Have the query fail that runs, in whichever thread; without one, do nothing."""
        with self._lock:
            query_id = self._running
        if query_id is not None:
            with suppress(Exception):  # it is over, or the server is gone
                other = self.connect()
                other.command("KILL QUERY WHERE query_id = {id:String} ASYNC", parameters={"id": query_id})
                other.close()

    def close(self) -> None:
        """Close the connection."""
        if self._driver is not None:
            self._driver.close()
            self._driver = None

    def _message(self, text: str, kind: type[Exception]) -> str:
        found = _CODE.search(text)
        code = int(found[1]) if found else None
        what = _what(text)
        if kind is QueryError:
            return what
        if code is None:
            return f"cannot reach ClickHouse at {self.address.host}:{self.address.port}: {what}\n{_CHECK}"
        remedy = _REMEDIES.get(code, "ask for less, or see ClickHouse's own log")
        return f"{self.address.name}: {what}\n{remedy}"


def _what(text: str) -> str:
    """Return the first sentence of an error, without the server's address and version."""
    line = re.sub(r"\s*\(for url [^)]*\)", "", " ".join(text.split()))
    line = re.split(r"DB::Exception:\s*", line)[-1]
    return re.split(r"\. \([A-Z_]+\)|\s*\(version |: In scope |: While ", line)[0][:300].rstrip(". ")
