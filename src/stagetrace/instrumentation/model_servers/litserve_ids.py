"""The id of a request in LitServe's queues: LitServe's own, and our reference to the request after it."""

from __future__ import annotations

from typing import Any
from uuid import UUID

MARK = " stagetrace:"  # in an id, between LitServe's own and the reference
REASON = "worker"  # what a request in these queues waits for


def split(uid: str) -> tuple[Any, str]:
    """Return LitServe's own id, and the request reference."""
    text, _, rest = uid.partition(MARK)
    kind, _, named = rest.partition(" ")
    return (UUID(text) if kind == "UUID" else text), named
