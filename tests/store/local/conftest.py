"""A store that is open for writing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stagetrace.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore.open(tmp_path / "store") as opened:
        yield opened
