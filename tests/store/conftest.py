"""A Jaeger of each storage, shared by all tests: each test uses service names of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends import Jaeger, run_jaeger
from conftest import need

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", params=["memory", "badger"])
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """Run Jaeger with memory storage, then with badger."""
    need("jaeger")
    with run_jaeger(tmp_path_factory.mktemp(request.param), storage=request.param) as running:
        yield running
