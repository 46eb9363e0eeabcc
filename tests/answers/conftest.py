"""Each verb that answers is tried by `make test` over odd data and all at once; its own tests start many processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

IN_EACH_RUN = ("test_bad_input.py", "test_every_answer.py", "test_periods.py")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Leave the tests of single verbs to `make test-all`."""
    if item.path.name not in IN_EACH_RUN:
        item.add_marker("thorough")
