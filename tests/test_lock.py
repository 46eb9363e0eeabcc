"""requirements-dev.txt pins all that CI installs, by version and hash."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

import pytest
import tomllib  # type: ignore[import-not-found]  # there from 3.11 on, which the tests need
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from environments import ROOT

LOCK = (ROOT / "requirements-dev.txt").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WANTED = [
    *PYPROJECT["project"]["dependencies"],
    *PYPROJECT["project"]["optional-dependencies"]["backend"],
    *PYPROJECT["dependency-groups"]["dev"],
]
EXCLUDED = {"pandas"}  # as `make lock` has it


def entries() -> list[str]:
    """Return each entry with its hashes, on one line."""
    return [one for one in LOCK.replace("\\\n", "").splitlines() if not one.startswith("#")]


def applies(one: Requirement, extra: str = "") -> bool:
    return one.marker is None or one.marker.evaluate({"extra": extra})


def locked() -> dict[str, str]:
    """Return the version of each package that this Python gets."""
    found = [Requirement(re.sub(r" +--hash=\S+", "", one)) for one in entries()]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in found if applies(one)}


@pytest.mark.parametrize("wanted", WANTED)
def test_each_requirement_is_satisfied(wanted: str) -> None:
    one = Requirement(wanted)
    version = locked().get(canonicalize_name(one.name))
    assert not applies(one) or (version and version in one.specifier), f"{wanted}, not {version}: run `make lock`"


def test_each_entry_has_hashes_and_names_no_index() -> None:
    assert all(re.fullmatch(r"[\w.-]+==\S+( ; [^#]+?)?( +--hash=sha256:[0-9a-f]{64})+", one) for one in entries())
    assert "://" not in LOCK


def test_what_is_locked_needs_nothing_else() -> None:
    """Installed without dependencies, the list has to be whole."""
    pinned = locked()
    for name in pinned:
        try:
            needed = [Requirement(one) for one in requires(name) or ()]
        except PackageNotFoundError:  # installed before the list was changed
            continue
        missing = {canonicalize_name(one.name) for one in needed if applies(one)} - set(pinned) - EXCLUDED
        assert not missing, f"{name} needs {missing}: run `make lock`"
