"""The test suites of opentelemetry-instrumentation-asgi and -fastapi, from their sdists, on applications traced by us.

Two questions. Beside: with their instrumentation active in an application that a server of ours serves, does each of
their tests end as it does without us? Instead: for the requests that their tests make, does our entry span say what
theirs says? What differs is listed with its reason in docs/opentelemetry-suites.md, which is read here: what is not
there fails, and so does what is there and differs no more.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest

from backends import CACHE
from missing import missing
from services import AS_STOCK, PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterable

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "opentelemetry-suites.md").read_text()
SUITES = ("asgi", "fastapi")
WITHIN_S = 300

pytestmark = [pytest.mark.heavy, pytest.mark.sample]


def sdist(suite: str) -> Path:
    """Return the unpacked sdist of the installed version, downloaded once."""
    name = f"opentelemetry-instrumentation-{suite}"
    cache = CACHE / "sdists"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name.replace('-', '_')}-{version(name)}"
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "tests").exists():
            what = ["--no-deps", "--no-binary", name, f"{name}=={version(name)}"]
            argv = [PYTHON, "-m", "pip", "download", "--quiet", "--dest", str(cache), *what]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode:
                missing(f"the sdist of {name} cannot be had: {done.stderr[-1000:]}")
            with tarfile.open(f"{folder}.tar.gz") as packed:
                packed.extractall(cache, filter="data")
    return folder


def run(suite: str, how: str, folder: Path, *, notes: bool) -> tuple[dict[str, bool], dict[str, Any]]:
    """Run a suite; return which of its tests passed, and the spans of each if `notes`."""
    report, spans = folder / f"{suite}-{how}-{notes}.xml", folder / f"{suite}-{how}.json"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "STAGETRACE", "PYTEST"))}
    env = {**clean, "ORACLE": how, "PYTHONPATH": str(Path(__file__).parent), "STAGETRACE_STATUS": "0"}
    env |= {} if how == "alone" else {"STAGETRACE": "1", **AS_STOCK}
    env |= {"ORACLE_SPANS": str(spans)} if notes else {}
    options = ["-q", "-p", "traced", "-p", "no:cacheprovider", f"--junit-xml={report}", "-o", "junit_family=xunit1"]
    argv = [PYTHON, "-B", "-m", "pytest", *options, "tests"]
    done = subprocess.run(
        argv, cwd=sdist(suite), env=env, capture_output=True, text=True, check=False, timeout=WITHIN_S
    )
    assert done.returncode in (0, 1), done.stdout[-4000:] + done.stderr[-4000:]
    assert "fault of stagetrace" not in done.stderr, done.stderr[-4000:]
    passed: dict[str, bool] = {}
    for case in ET.parse(report).iter("testcase"):  # noqa: S314 -- pytest's own
        if case.find("skipped") is None:
            said = case.attrib
            test = "::".join((Path(said["file"]).name, said["classname"].rpartition(".")[2], said["name"]))
            broken = case.find("failure") is not None or case.find("error") is not None
            passed[test] = passed.get(test, True) and not broken
    return passed, json.loads(spans.read_text()) if notes else {}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, bool], Any]:
    """Return what each run gave, by suite, by how, and by whether spans were noted."""
    folder = tmp_path_factory.mktemp("suites")
    for suite in SUITES:
        sdist(suite)
    keys = list(product(SUITES, (("alone", False), ("beside", False), ("alone", True), ("instead", True))))
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda key: run(key[0], key[1][0], folder, notes=key[1][1]), keys)
        return {(suite, *how): one for (suite, how), one in zip(keys, found, strict=True)}


def listed(heading: str) -> dict[str, str]:
    """Return, by pattern of tests, what the document's table under a heading says of them first."""
    section = DOCUMENT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:3] == "| `"]
    assert rows
    assert all(len(row) == 3 and row[2] for row in rows), "each has a reason"
    return {test: row[1] for row in rows for test in re.findall(r"`([^`]+)`", row[0])}


def compare(found: dict[str, str], heading: str) -> None:
    """Fail for each test that differs and is not listed, or otherwise, and for each pattern without any."""
    expected = listed(heading)
    wrong = [
        f"{test}: {what}" for test, what in found.items() if not any(_is(test, one, what, expected) for one in expected)
    ]
    stale = [one for one in expected if not any(_is(test, one, what, expected) for test, what in found.items())]
    assert not wrong, f"not listed under {heading}:\n" + "\n".join(wrong)
    assert not stale, f"listed under {heading}, and not so any more:\n" + "\n".join(stale)


def _is(test: str, pattern: str, what: str, expected: dict[str, str]) -> bool:
    return fnmatchcase(test, pattern) and what == expected[pattern].replace("`", "")


def test_beside_theirs_each_test_ends_as_it_does_without_us(runs: Any) -> None:
    found: dict[str, str] = {}
    for suite in SUITES:
        (alone, _), (beside, _) = runs[suite, "alone", False], runs[suite, "beside", False]
        assert len(alone) > 90
        assert alone.keys() == beside.keys()
        found |= {test: "fails" if passed else "passes now" for test, passed in alone.items() if passed != beside[test]}
    compare(found, "Beside")


def test_instead_of_theirs_our_entry_spans_say_the_same(runs: Any) -> None:
    found: dict[str, str] = {}
    compared = 0
    for suite in SUITES:
        theirs, ours = runs[suite, "alone", True][1], runs[suite, "instead", True][1]
        for test in sorted(theirs.keys() | ours.keys()):
            compared += min(len(theirs.get(test, ())), len(ours.get(test, ())))
            what = differences(theirs.get(test, []), ours.get(test, []))
            if what:
                found[test.removeprefix("tests/")] = what
    assert compared > 150
    compare(found, "Instead")


def differences(theirs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> str:
    """Return what differs between the spans of one test, but for what differs in all: see the document."""
    if len(theirs) != len(ours):
        return f"{len(ours)} of {len(theirs)} spans"
    keys: set[str] = set()
    for their, our in zip(map(as_ours, theirs), ours, strict=True):
        keys |= {key for key in their.keys() | our.keys() if their.get(key) != our.get(key)}
    return ", ".join(_shortened(keys))


def as_ours(span: dict[str, Any]) -> dict[str, Any]:
    """Return a span of theirs without what differs on purpose in every request."""
    wanted = {key: value for key, value in span.items() if key != "url.query"}
    if "server.address" in span:
        wanted["server.address"] = span["server.address"].rpartition(":")[0] or span["server.address"]
    if "http.route" not in span and span.get("url.path"):
        wanted["name"] = span["name"].removesuffix(f" {span['url.path']}")
    if "http.request.method" not in span:  # a websocket
        wanted.pop("http.response.status_code", None)
    return wanted


def _shortened(keys: Iterable[str]) -> list[str]:
    return sorted({re.sub(r"^(http\.\w+\.header)\..*", r"\1.*", key) for key in keys})
