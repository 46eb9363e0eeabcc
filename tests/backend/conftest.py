"""One back end for all tests that only send and ask; tests that stop or starve one run their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backend.running import Up, run_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Run a back end; tests share it, so each uses service names of its own."""
    with run_up(tmp_path_factory.mktemp("up")) as running:
        yield running
