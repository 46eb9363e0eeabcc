"""Run the double of a ClickHouse server (chdb_server.py) as a process of its own, for tests that need its port."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from backends import LOOPBACK, _process, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVER = Path(__file__).parent / "chdb_server.py"


@dataclass(frozen=True)
class ClickHouse:
    """The address of a running server; its database `otel` is empty at first."""

    port: int
    pid: int

    @property
    def http(self) -> str:
        """Return the URL of the HTTP interface."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def url(self) -> str:
        """Return the URL for `stagetrace --store`."""
        return f"clickhouse://{LOOPBACK}:{self.port}/otel?table=otel_traces"

    def run(self, sql: str, **settings: str) -> httpx.Response:
        """Return the response to a statement in `otel`, of any status; a setting may also be `param_x` or `user`."""
        return httpx.post(self.http, params={"database": "otel"} | settings, content=sql, timeout=60)

    def rows(self, sql: str, **settings: str) -> list[dict[str, Any]]:
        """Return the rows of a query as JSON has them, with 64-bit integers as numbers."""
        response = self.run(
            f"{sql} FORMAT JSONEachRow", **({"output_format_json_quote_64bit_integers": "0"} | settings)
        )
        assert response.status_code == httpx.codes.OK, response.text
        return [json.loads(line) for line in response.text.splitlines()]


@contextmanager
def run_clickhouse(folder: Path, port: int | None = None) -> Iterator[ClickHouse]:
    """Run a server until the block ends; its data stay in `folder` for the next run there."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    command = [sys.executable, str(SERVER), str(port), str(folder / "clickhouse")]
    with _process("clickhouse", command, {}, folder, (port, "/ping")) as process:
        running = ClickHouse(port, process.pid)
        httpx.post(running.http, content="CREATE DATABASE IF NOT EXISTS otel", timeout=60).raise_for_status()
        yield running
