"""Requests of these tests began long ago, by made-up clocks: each would be late, and sampled if a thread were quick."""

from __future__ import annotations

import pytest

from stagetrace.causes.stall_sampler import stall_sampler


@pytest.fixture(autouse=True)
def _not_sampled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no request of a span processor sampled, but in tests of stalls."""
    if "stall" not in request.path.name:
        monkeypatch.setattr(stall_sampler, "add", lambda *_: None)
