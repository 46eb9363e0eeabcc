"""A receiver for each test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from otlp.receiver import Receiver, run_receiver

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running
