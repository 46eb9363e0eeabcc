"""Folders that DuckDB writes to where memory is short: private to this user, and deleted with their database.

DuckDB makes such files readable by everyone, so each database has a folder that nobody else can enter. A lock on the
folder lasts as long as its process, so that the next one finds and deletes what a killed process left.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.errors import StoreError
from stagetrace.system.packages import requirement

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there, and nothing cleared away
    fcntl = None  # type: ignore[assignment]

PREFIX: Final = "stagetrace-spill-"
MOST_BYTES: Final = 16 * 1024**3  # of one database, and at most half of what the disk has free
_ATTEMPTS: Final = 5
_cleared: set[Path] = set()  # parents in which this process has looked for what others left


class Folder(NamedTuple):
    """A folder with its lock; `process` made it, and a fork of that must not delete it."""

    path: Path
    lock: int
    process: int

    @property
    def limit(self) -> str:
        """Return how much may be written here, as DuckDB takes it."""
        return f"{min(MOST_BYTES, shutil.disk_usage(self.path).free // 2) >> 10}KiB"

    def remove(self) -> None:
        """Delete the folder."""
        if os.getpid() == self.process:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self.lock)


def make(store: Path | None = None) -> Folder | None:
    """Return a new folder: in the folder of a store of this user's, else among temporary files; None where neither is.

    A store's disk has room for what is computed of it, while temporary files are often in memory.
    """
    for parent in _parents(store):
        with suppress(OSError):
            _clear(parent)
            return _make_folder(parent)
    return None


def _parents(store: Path | None) -> list[Path]:
    parents = []
    with suppress(OSError):
        if store is not None and os.name == "posix" and store.stat().st_uid == os.geteuid():
            parents.append(store)
    with suppress(OSError):  # there may be no folder for temporary files
        parents.append(Path(tempfile.gettempdir()))
    return parents


def _make_folder(parent: Path) -> Folder:
    for _ in range(_ATTEMPTS):
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # with mode 0700
        lock = os.open(path, os.O_RDONLY)
        if _lock_folder(lock) and path.exists():  # else another process took it for one that was left
            return Folder(path, lock, os.getpid())
        os.close(lock)
    raise FileNotFoundError(parent)


def _lock_folder(folder: int) -> bool:
    """Lock an open folder; return False where another process has it. Some file systems lock nothing."""
    try:
        if fcntl is not None:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _clear(parent: Path) -> None:
    """Delete what processes of this user left that were killed."""
    if parent in _cleared or fcntl is None:
        return
    _cleared.add(parent)
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(folder).st_uid == os.geteuid():
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(folder)


# --- An in-memory DuckDB: opened, interrupted, closed, and locked before it runs a user's SQL.


class _Opened(NamedTuple):
    """A connection that `connect` made: in which thread, and what deletes its folder, at the latest at the end."""

    thread: int
    remove: Callable[[], object] | None


_lock = threading.Lock()  # guards the next
_open: weakref.WeakKeyDictionary[DuckDBPyConnection, _Opened] = weakref.WeakKeyDictionary()
_sharers = 1  # databases that are open at one time in a process that serves
_SQL: Final = Path(__file__).parent / "sql"


def sql(name: str) -> str:
    """Return the SQL of `sql/NAME.sql`."""
    return (_SQL / f"{name}.sql").read_text(encoding="utf-8")


def share_memory(among: int) -> None:
    """Have so many databases at one time share the memory that each would take: 80 % of what there is."""
    global _sharers  # noqa: PLW0603
    _sharers = among


def connect(store: Path | None = None) -> DuckDBPyConnection:
    """Return an empty in-memory database, which goes on disk where memory is short: beside the `store` it is about.

    `close` it. Raise StoreError where DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise needs("this", "duckdb") from None
    folder = make(store)
    connection = duckdb.connect(
        ":memory:",
        config={
            "python_enable_replacements": False,
            "temp_directory": "" if folder is None else str(folder.path),
        },
    )
    with suppress(duckdb.InvalidInputException):  # in a notebook without ipywidgets, where there is none
        connection.execute("SET enable_progress_bar = false")  # it would stand on stdout, amid the answer
    if _sharers > 1:
        limit = connection.execute("SELECT current_setting('memory_limit')").fetchone() or ("",)
        number, unit = limit[0].split()  # 18.8 GiB
        connection.execute(f"SET memory_limit = '{float(number) / _sharers:.2f} {unit}'")
    if folder is not None:
        connection.execute("SET max_temp_directory_size = $1", [folder.limit])
    remove = None if folder is None else weakref.finalize(connection, folder.remove)
    with _lock:
        _open[connection] = _Opened(threading.get_ident(), remove)
    return connection


def close(connection: DuckDBPyConnection) -> None:
    """Close a connection, and delete what its database wrote to disk if that is its own."""
    connection.close()
    with _lock:
        opened = _open.pop(connection, None)
    if opened is not None and opened.remove is not None:
        opened.remove()


def interrupt(threads: Collection[int] | None = None) -> None:
    """End the queries in all open databases of this process, or in those that `threads` opened, each by an error."""
    with _lock:
        connections = [one for one, opened in _open.items() if threads is None or opened.thread in threads]
    for connection in connections:
        with suppress(Exception):  # it was closed meanwhile
            connection.interrupt()


def abandon() -> None:
    """Delete what all open databases of this process wrote to disk, before the process ends in their midst."""
    with _lock:
        folders = [opened.remove for opened in _open.values()]
    for remove in folders:
        if remove is not None:
            remove()


def rows_of(result: DuckDBPyConnection) -> list[dict[str, Any]]:
    """Return the rows of a result, column -> value."""
    names = [column for column, *_ in result.description or ()]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def needs(what: str, library: str, extra: str = "backend") -> StoreError:
    """Return the error for a library that is not installed."""
    return StoreError(f"{what} needs {library}, which is not installed\npip install {requirement(extra)}")


def lock(connection: DuckDBPyConnection, files: Sequence[str] = ()) -> None:
    """Leave the connection no file but `files`, no extension, no change of this."""
    connection.execute("SET allowed_paths = $1", [list(files)])
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
