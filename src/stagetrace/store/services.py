"""The error for a service that a store does not know: an empty answer would look like good news."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence


def check_known(service: str, known: Sequence[str], store: str) -> None:
    """Raise StoreError if `service` is not among the `known` ones of `store`."""
    if service not in known:
        has = f"it holds {', '.join(known)}" if known else "it holds no spans of any service yet"
        raise StoreError(f"{store}: there is no service {service!r}\n{has}")
