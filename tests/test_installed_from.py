"""The install command in errors works wherever this package was installed from: it may be on no index."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from stagetrace.system import packages

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({}, ["stagetrace[backend]"]),
        ({"url": "file:///a%20b/clone", "dir_info": {}}, ["/a b/clone[backend]"]),
        ({"url": "file:///clone", "dir_info": {"editable": True}}, ["-e", "/clone[backend]"]),
        ({"url": "file:///x.whl", "archive_info": {}}, ["stagetrace[backend] @ file:///x.whl"]),
        ({"url": "https://h/r", "vcs_info": {"vcs": "git"}}, ["stagetrace[backend] @ git+https://h/r"]),
    ],
)
def test_what_pip_takes(noted: dict[str, Any], expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_origin", lambda: noted)
    assert shlex.split(packages.requirement("backend")) == expected


def test_an_extra_is_optional(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_origin", dict)
    assert packages.requirement() == "stagetrace"


def test_this_installation_records_its_origin() -> None:
    """The tests run on an editable installation of this checkout."""
    assert shlex.split(packages.requirement("backend")) == ["-e", f"{ROOT}[backend]"]


@pytest.mark.parametrize("text", ["", "[]", "{", json.dumps({"url": 3, "dir_info": {}})])
def test_an_empty_record_is_no_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    class Distribution:
        def read_text(self, _name: str) -> str:
            return text

    monkeypatch.setattr(metadata, "distribution", lambda _name: Distribution())
    assert packages.requirement().startswith(("stagetrace", "'stagetrace"))


def test_no_message_names_an_index_that_does_not_have_it() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        if path.name != "intake.py":  # which tells another machine
            assert not re.search(r"pip install '?stagetrace", path.read_text()), path
