"""What every test may ask for: a running Jaeger, and a Collector in front of it, one of each for the whole session."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends import BackendMissing, Collector, Jaeger, binary, run_collector, run_jaeger
from heavy import HEAVY
from missing import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `heavy`, unless `make test-heavy` asks for it."""
    for item in items:
        if not HEAVY and item.get_closest_marker("heavy"):
            item.add_marker(pytest.mark.skip(reason="make test-heavy runs this"))


def need(name: str) -> None:
    """Skip where a binary is not built; under CI fail instead, or a green run could have tested nothing."""
    try:
        binary(name)
    except BackendMissing as error:
        missing(str(error))


@pytest.fixture(scope="session")
def backends() -> None:
    """Need both binaries, for tests that run processes of their own."""
    need("jaeger")
    need("otelcol")


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """Run Jaeger with memory storage; tests share it, so each uses a service name of its own."""
    need("jaeger")
    folder: Path = tmp_path_factory.mktemp("jaeger")
    with run_jaeger(folder) as running:
        yield running


@pytest.fixture(scope="session")
def collector(tmp_path_factory: pytest.TempPathFactory, jaeger: Jaeger) -> Iterator[Collector]:
    """Run a Collector that feeds `jaeger`."""
    need("otelcol")
    with run_collector(tmp_path_factory.mktemp("collector"), jaeger) as running:
        yield running
