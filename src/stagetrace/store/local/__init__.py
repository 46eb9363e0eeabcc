"""The store of the embedded back end: a folder with a Delta Lake table and a log, one writer, any readers."""

from __future__ import annotations

from pathlib import Path

from stagetrace import config
from stagetrace.store.local.folder import StoreTaken
from stagetrace.store.local.reader import LocalReader, open_url
from stagetrace.store.local.store import Appended, LocalStore, StoreFull

__all__ = ["Appended", "LocalReader", "LocalStore", "StoreFull", "StoreTaken", "default_folder", "open_url"]


def default_folder() -> Path:
    """Return where the store is unless told otherwise."""
    data = config.DATA_HOME.read() or Path.home() / ".local" / "share"
    return Path(data) / "stagetrace"
