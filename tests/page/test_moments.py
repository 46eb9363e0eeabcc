"""Releases and marks: set by a command or a POST, drawn over time, and candidates for since when."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect

from backend.running import environment, run_up
from page.conftest import violations
from page.data import MINUTE, request
from stagetrace.errors import StoreError
from stagetrace.store import open_store
from stagetrace.store.base import Mark, Selection
from stagetrace.store.local import LocalStore
from stagetrace.store.local import marks as stored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from page.conftest import OpenPage

EVER = Selection(0, 2**62)
TOKEN = "open/sesame+=~"  # noqa: S105 -- made for these tests


def mark(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "stagetrace.cli.main", "mark", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, env=environment())


def marks_of(folder: Path) -> list[str]:
    with open_store(str(folder)) as reader, reader.relations(EVER) as relations:
        return [text for _, text in relations.marks]


def some(at: int, version: str, *, is_late: bool = False) -> bytes:
    """Return a request of a release."""
    message = request(random.Random(at), at, is_late=is_late, service="shop")
    attributes = message.resource_spans[0].resource.attributes
    attributes.add(key="service.version").value.string_value = version
    return message.SerializeToString()


def test_marks_are_kept_in_order_of_time_and_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text is one line that shows; what is no mark in the file is none."""
    monkeypatch.setattr(stored, "MOST", 3)
    for at in (5, 1, 4, 2):
        stored.add(tmp_path, Mark(at, f"mark {at}"))
    assert [one.at_unix_nano for one in stored.read(tmp_path)] == [2, 4, 5]
    assert stored.add(tmp_path, Mark(9, " a\n\x1b[2J b ")).text == "a \\x1b[2J b"
    for text in ("", " \n", "x" * 201):
        with pytest.raises(StoreError, match="a mark has 1 to 200 characters"):
            stored.add(tmp_path, Mark(1, text))
    with (tmp_path / stored.FILE).open("ab") as file:
        file.write(b'{"at_unix_nano": 1\n[]\n{"at_unix_nano": 7, "text": "seven"}')
    assert [one.at_unix_nano for one in stored.read(tmp_path)] == [4, 5, 7, 9]


def test_a_mark_is_of_the_time_of_the_selection(tmp_path: Path) -> None:
    with LocalStore.open(tmp_path) as store:
        at = store.mark("deploy").at_unix_nano
        for selection, found in ((EVER, 1), (Selection(at, at + 1), 1), (Selection(at + 1, at + 2), 0)):
            with store.reader() as reader, reader.relations(selection) as relations:
                assert len(relations.marks) == found


@pytest.mark.usefixtures("services")
def test_a_command_sets_a_mark_with_a_running_back_end_and_without(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with LocalStore.open(data):
        pass
    done = mark("deploy 1.5.0", "--store", str(data), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == "deploy 1.5.0"
    with run_up(tmp_path):
        assert mark("through up", "--store", str(data)).returncode == 0
        refused = mark("x" * 201, "--store", str(data))
        assert refused.returncode == 2
        assert "a mark has 1 to 200 characters" in refused.stderr
    assert marks_of(data) == ["deploy 1.5.0", "through up"]


@pytest.mark.usefixtures("services")
def test_a_post_sets_a_mark_with_the_token_alone(tmp_path: Path) -> None:
    """Of no web page of another site; and of nothing that is no mark."""
    with run_up(tmp_path, f"--token={TOKEN}") as up:
        url, own = f"{up.url('http_port')}/v1/marks", {"authorization": f"Bearer {TOKEN}"}
        assert httpx.post(url, json={"text": "no"}).status_code == 401
        assert httpx.post(url, json={"text": "no"}, headers=own | {"origin": "http://evil.test"}).status_code == 403
        for wrong in (b"", b"[]", b'{"text": 1}', b"[" * 9000, json.dumps({"text": ""}).encode(), b"\xff"):
            refused = httpx.post(url, content=wrong, headers=own)
            assert refused.status_code in (400, 413), (wrong[:20], refused.text)
            assert refused.json()["message"]
        before = time.time_ns()
        made = httpx.post(url, json={"text": "deploy"}, headers=own).raise_for_status().json()
        assert made["text"] == "deploy"
        assert before <= made["at_unix_nano"] <= time.time_ns()
    assert marks_of(tmp_path / "data") == ["deploy"]


def fill_with_a_release(folder: Path) -> None:
    """Store requests of a release, and those of the next one, of which more are late; a mark stands where it began."""
    now = time.time_ns()
    with LocalStore.open(folder) as store:
        for number in range(400):
            at = now - 10 * MINUTE + number * MINUTE // 50
            store.append(some(at, "1.4.0" if number < 250 else "1.5.0", is_late=number >= 250 and bool(number % 2)))
        stored.add(folder, Mark(now - 3 * MINUTE, "switched the cache off"))


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("released")
    fill_with_a_release(folder / "data")
    with run_up(folder) as up:
        yield up.url("query_http_port")


def test_the_moments_of_a_selection(released: str) -> None:
    url = f"{released}/board/moments.json"
    found = httpx.get(url, params={"since": "1h"}).raise_for_status().json()
    assert [(one["kind"], one["text"]) for one in found["moments"]] == [
        ("release", "release 1.5.0"),
        ("mark", "switched the cache off"),
    ]
    assert found["all"] == 2
    assert httpx.get(url, params={"since": "150s"}).json()["moments"] == []


@pytest.mark.parametrize(
    ("path", "plot"), [("/board", "#board-bars .u-over"), ("/heatmap", ".heat .plot"), ("/stages", ".course > svg")]
)
def test_releases_and_marks_are_lines_with_their_texts(
    open_page: OpenPage, released: str, path: str, plot: str
) -> None:
    """Each at its place of the time axis; and in words below."""
    page = open_page(released, f"{path}?since=20m")
    lines = page.locator(".moment")
    expect(lines).to_have_count(2)
    expect(lines.nth(0).locator("span")).to_have_text("release 1.5.0")
    expect(lines.nth(1).locator("span")).to_have_text("switched the cache off")
    expect(page.locator(".moments-list li")).to_have_count(2)
    found = httpx.get(f"{released}/board/moments.json?since=20m").json()["moments"]
    box, first, second = (one.bounding_box() for one in (page.locator(plot), lines.nth(0), lines.nth(1)))
    assert box is not None
    assert first is not None
    assert second is not None
    assert box["x"] < first["x"] < second["x"] < box["x"] + box["width"]
    # Requests began ten minutes ago and ended two ago; the window of the board is twenty minutes.
    if path == "/board":
        minute = box["width"] / 20
        assert second["x"] - first["x"] == pytest.approx(
            (found[1]["at_ms"] - found[0]["at_ms"]) / 60_000 * minute, rel=0.1
        )
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert violations(page) == []


@pytest.mark.thorough
def test_since_when_names_a_mark(tmp_path: Path) -> None:
    """Where a version changed as well, the version; else the mark that stands where the breaches began."""
    data = tmp_path / "data"
    now = time.time_ns()
    with LocalStore.open(data) as store:
        for number in range(600):
            at = now - 20 * MINUTE + number * MINUTE // 40
            store.append(some(at, "1.4.0", is_late=number >= 300 and bool(number % 2)))
        stored.add(data, Mark(now - 20 * MINUTE + 300 * MINUTE // 40, "switched the cache off"))
    keys = answer("causes", data)
    assert [one["release"] for one in keys["changes"]] == [
        {
            "key": "mark",
            "value": "switched the cache off",
            "model": None,
            "at_unix_nano": keys["changes"][0]["at_unix_nano"],
        }
    ]
    keys = answer("drift", data)
    assert {"service": "", "key": "mark", "value": "switched the cache off"}.items() <= keys["releases"][0].items()
    assert any(one["release"] and one["release"]["key"] == "mark" for one in keys["changes"])


def answer(verb: str, data: Path) -> dict[str, Any]:
    argv = [sys.executable, "-m", "stagetrace.cli.main", verb, "--store", str(data), "--since", "1h", "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False, env=environment())
    found: dict[str, Any] = json.loads(done.stdout)
    return found
