"""Stores for notebooks: the same requests in a local store, and in a file."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from answers.made import MS, Made, lines, store
from stagetrace import read as st

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LATE = 12


def requests() -> list[Made]:
    """Return 60 requests of the last minute, of which each fifth, of the tenant acme, misses its objective."""
    now = time.time_ns()
    return [
        Made(
            1 + number,
            now - (1 + number) * 1000 * MS,
            {"preprocess": 5.0, "inference": 100.0 if number % 5 == 0 else 10.0},
            within_ms=50,
            attributes={"tenant.id": "acme" if number % 5 == 0 else "<b>other</b>"},
            with_stage_spans=True,
        )
        for number in range(5 * LATE)
    ]


@pytest.fixture(scope="module", params=["local", pytest.param("file", marks=pytest.mark.thorough)])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("read")
    if request.param == "local":
        return store(folder / "store", requests()).as_uri().replace("file:", "local:")
    return lines(folder / "spans.jsonl", requests()).as_uri()


@pytest.fixture
def opened(url: str) -> Iterator[st.Store]:
    with st.open(url) as found:
        yield found
