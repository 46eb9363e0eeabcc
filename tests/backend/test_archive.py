"""`stagetrace up --archive`: copies reach the bucket, an outage harms nothing, and each command reads them there."""

from __future__ import annotations

import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from backend.processes import until
from backend.running import fail_to_start, post, request, run_up
from backends import free_port
from cli.running import answered
from s3 import HOURS, S3, run_s3
from stagetrace.store.local import LocalStore, delta
from stagetrace.store.local.store import ARCHIVE_SPREAD_MS
from store.local.made import judged
from store.local.made import request as made

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.service
EVER = ("--since", "1970-01-01T00:00:00Z")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose `data` holds spans that were received two hours ago."""
    now_ms = delta.now_ms
    with monkeypatch.context() as patch:
        patch.setattr(delta, "now_ms", lambda: now_ms() - HOURS * ARCHIVE_SPREAD_MS)
        start = time.time_ns() - HOURS * ARCHIVE_SPREAD_MS * 1_000_000
        with LocalStore.open(tmp_path / "data") as store:
            store.append(made([judged(number, breached=number % 2 == 0, start=start) for number in range(1, 11)]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def known(patch: pytest.MonkeyPatch, s3: S3) -> None:
    """Let the commands of this process find a server."""
    for name, value in s3.environment.items():
        patch.setenv(name, value)


def test_closed_files_reach_the_bucket_and_the_open_ones_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage from the start on, during which spans are taken in as ever; said once, and counted."""
    s3 = S3(free_port(), 0)
    known(monkeypatch, s3)
    with run_up(folder, "--archive", f"{s3.url}/", env=s3.environment) as up:
        assert up.ready["archive"] == s3.url
        assert post(up, request("now").SerializeToString()).status_code == 200
        until(lambda: up.metric("stagetrace_archive_failures") >= 2)
        assert (up.metric("stagetrace_archive_copied_files"), up.metric("stagetrace_store_unarchived_files")) == (0, 1)
        said = (folder / "up.log").read_text()
        assert said.count("NETWORK_CONNECTION") == 1
        assert "no span is lost" in said
        with run_s3(folder, port=s3.port) as running:
            until(lambda: up.metric("stagetrace_archive_copied_files") == 1)
            assert up.metric("stagetrace_archive_copied_bytes") > 0
            assert up.metric("stagetrace_store_spans_expired_unarchived") == 0
            assert "can be written again" in (folder / "up.log").read_text()
            assert [name.rpartition("/")[2][-8:] for name in running.names()] == ["ive.json", ".parquet"]
            until(lambda: up.metric("stagetrace_store_unarchived_spans") <= 1)
            query = "SELECT * FROM requests WHERE name <> 'now' ORDER BY span_id"
            there = answered("query", query, "--store", s3.url, *EVER)
            assert len(there["rows"]) == 10
            assert there["rows"] == answered("query", query, "--store", folder / "data", *EVER)["rows"]
            for verb in ("breaches", "stages"):
                asked = (verb, "--service", "api", *EVER, "--store")
                assert answered(*asked, s3.url) == answered(*asked, folder / "data")


def test_a_process_that_was_killed_copies_each_file_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_s3(folder) as s3:
        known(monkeypatch, s3)
        for _ in range(2):
            with run_up(folder, "--archive", s3.url, env=s3.environment) as up:
                until(s3.names)
                os.killpg(up.process.pid, signal.SIGKILL)
                up.process.wait()
        with run_up(folder, "--archive", s3.url, env=s3.environment) as up:
            until(lambda: up.metric("stagetrace_store_unarchived_files") == 0)
        assert len(s3.names()) == 2
        found = answered("breaches", "--each", "--store", s3.url, *EVER)
        assert len(found["breaches"]) == 5


def test_a_server_that_does_not_answer_delays_neither_spans_nor_the_end(folder: Path) -> None:
    """It takes connections and is silent: the copy hangs, in a thread that nothing waits for."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        s3 = S3(silent.getsockname()[1], 0)
        with run_up(folder, "--archive", s3.url, env=s3.environment) as up:
            before = time.monotonic()
            for _ in range(20):
                assert post(up, request("now").SerializeToString()).status_code == 200
            assert time.monotonic() - before < 10
            before = time.monotonic()
            assert up.stop() == 0
            assert time.monotonic() - before < 40


@pytest.mark.parametrize("url", ["traces", "s3://", "s3://Bucket_/x", "http://bucket/x", "s3://bucket/x?y=1"])
def test_a_url_that_names_no_archive_is_refused(tmp_path: Path, url: str) -> None:
    said = fail_to_start("--data", str(tmp_path / "data"), "--archive", url)
    assert "--archive" in said
    assert "write s3://BUCKET/PREFIX" in said
    assert not (tmp_path / "data").exists()
