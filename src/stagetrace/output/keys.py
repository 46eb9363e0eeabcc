"""Keys of JSON answers."""

from __future__ import annotations

from typing import Any


def keys_of(record: Any, *without: str, **others: Any) -> dict[str, Any]:
    """Return the fields of a record as keys of JSON: without some, and with others in place of them or beside them."""
    fields = record._asdict() if hasattr(record, "_asdict") else vars(record)
    return {**{name: value for name, value in fields.items() if name not in without}, **others}


def completeness(reason: str | None = None) -> dict[str, Any]:
    """Return the keys with which each JSON answer begins; `reason`: what is missing, if anything is."""
    return {"complete": True} if reason is None else {"complete": False, "reason": reason}
