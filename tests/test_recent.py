"""A deque of recent items is copied whole, even if it changes meanwhile, as it can without the GIL."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from stagetrace.system.bounded import copied

if TYPE_CHECKING:
    from collections.abc import Iterator


class Changing(deque[int]):
    """Another thread appends during the first iteration."""

    changes = 1

    def __iter__(self) -> Iterator[int]:
        found = super().__iter__()
        yield next(found)
        if self.changes:
            self.changes -= 1
            self.append(3)
        yield from found


def test_what_changes_meanwhile_is_copied_anew() -> None:
    assert copied(Changing([1, 2])) == [1, 2, 3]
