"""An in-memory DuckDB: opened, allowed to spill to disk, and locked before it runs a user's SQL."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.errors import StoreError
from stagetrace.installed_from import requirement

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_SQL: Final = Path(__file__).parent / "sql"


def sql(name: str) -> str:
    """Return the SQL of `sql/NAME.sql`."""
    return (_SQL / f"{name}.sql").read_text(encoding="utf-8")


def connect() -> DuckDBPyConnection:
    """Return an empty in-memory database. Raise StoreError where DuckDB is not installed."""
    try:
        import duckdb
    except ImportError:
        raise needs("this", "duckdb") from None
    return duckdb.connect(":memory:", config={"python_enable_replacements": False})


def rows_of(result: DuckDBPyConnection) -> list[dict[str, Any]]:
    """Return the rows of a result, column -> value."""
    names = [column for column, *_ in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def spill(connection: DuckDBPyConnection) -> None:
    """Let a database use disk where memory is short: a folder of its own, which a locked one may write to, too."""
    folder = Path(tempfile.gettempdir()) / f"stagetrace-{uuid.uuid4().hex}"  # DuckDB makes it, and takes it away
    connection.execute("SET temp_directory = $1", [str(folder)])


def needs(what: str, library: str) -> StoreError:
    """Return the error for a library that is not installed."""
    return StoreError(f"{what} needs {library}, which is not installed\npip install {requirement('backend')}")


def lock(connection: DuckDBPyConnection, files: Sequence[str] = ()) -> None:
    """Leave the connection no file but `files`, no extension, no change of this."""
    connection.execute("SET allowed_paths = $1", [list(files)])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
