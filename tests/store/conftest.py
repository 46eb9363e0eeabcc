"""A Jaeger of each storage, and the members of the reader contract, shared by all tests that only read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from backends import Jaeger, run_jaeger
from conftest import need
from store import members, spans

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session", params=["memory", "badger"])
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    """Run Jaeger with memory storage, then with badger; each test uses service names of its own."""
    need("jaeger")
    with run_jaeger(tmp_path_factory.mktemp(request.param), storage=request.param) as running:
        yield running


@pytest.fixture(scope="session", params=[members.parameter(name) for name in members.ALL])
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a store that holds the spans of `store.spans`, of each kind in turn."""
    with members.member(request.param, tmp_path_factory.mktemp(request.param), spans.ALL, spans.AGAIN) as url:
        yield url
