"""A local store to write to, whoever has it open."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from stagetrace.backend.control import Running
    from stagetrace.store.local import LocalStore


def open_writer(folder: Path) -> LocalStore | Running:
    """Open the store in `folder`, or go through the `stagetrace up` that has it open.

    Raise StoreError if neither can be.
    """
    from stagetrace.store.local import LocalStore, StoreTaken

    try:
        return LocalStore.open(folder)
    except StoreTaken as taken:
        if taken.control is None:
            raise
        from stagetrace.backend.control import Running

        return Running(folder, taken.control)
