"""The store of the embedded back end: a folder with a Delta Lake table and a log, one writer, any readers."""

from __future__ import annotations

from stagetrace.store.local.folder import StoreTaken
from stagetrace.store.local.reader import LocalReader, open_url
from stagetrace.store.local.store import Appended, LocalStore, StoreFull

__all__ = ["Appended", "LocalReader", "LocalStore", "StoreFull", "StoreTaken", "open_url"]
