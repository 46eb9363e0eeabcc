"""A list of requests takes two questions, and a store that is written to may answer them differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from answers.made import Made, reading, store
from stagetrace.store import answers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pytest

    from stagetrace.store.base import Relations


def test_a_request_that_is_gone_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = [Made(number, stages={"inference": 90.0, "mine": 5.0}, within_ms=50) for number in range(1, 5)]
    with reading(store(tmp_path / "store", late)) as relations:
        assert [one["stages"]["mine"] for one in answers.requests(relations)] == [5.0] * 4
        ask = type(relations).reduce

        def lacking_one(self: Relations, name: str, by: Sequence[str] = (), **values: object) -> list[dict[str, Any]]:
            found = ask(self, name, by, **values)
            return found[1:] if name == "whole" else found

        monkeypatch.setattr(type(relations), "reduce", lacking_one)
        assert len(answers.requests(relations)) == 3
        assert len(answers.breaches(relations, None)) == 4
