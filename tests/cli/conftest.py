"""The file of literal spans, for all tests that only read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cli import literal

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return literal.write(tmp_path_factory.mktemp("literal"))
