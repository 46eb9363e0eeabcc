"""Reading side: stores that hold spans, each named by a URL and opened by `open_store`."""

from __future__ import annotations

from stagetrace.store.base import Breaches, Entry, Reader, Relations, Selection, SpanRow, Trace, open_store

__all__ = ["Breaches", "Entry", "Reader", "Relations", "Selection", "SpanRow", "Trace", "open_store"]
