"""A full disk: ingest is refused so that senders keep their spans, reading goes on, and room mends it."""

from __future__ import annotations

import secrets
import subprocess
from typing import TYPE_CHECKING

import grpc
import pytest
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from backend.processes import until
from backend.running import Up, export, post, request, run_up, stored_spans, trailers
from missing import missing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return a file system that the file `ballast` fills, but for 24 MiB more than the store leaves free."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(folder)], check=False)
    if made.returncode:
        missing("a file system of its own needs root")
    try:
        (folder / "ballast").write_bytes(bytes(72 * MIB))
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(up: Up, trace: bytes) -> int:
    """Send until the store refuses; return how many spans were acknowledged."""
    for acknowledged in range(200):
        sent = request(secrets.token_hex(MIB // 4), service="full", trace=trace)
        answer = post(up, sent.SerializeToString())
        if answer.status_code != 200:
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            refused = Status.FromString(answer.content)
            assert refused.code == grpc.StatusCode.UNAVAILABLE.value[0]
            assert "room" in refused.message
            assert refused.details[0].type_url.endswith("google.rpc.RetryInfo")
            return acknowledged
    raise AssertionError("the disk never got full")


def count(up: Up, trace: bytes) -> int:
    return len(stored_spans(up, trace.hex()))


def test_a_full_disk_refuses_and_recovers(small_disk: Path) -> None:
    trace = secrets.token_bytes(16)
    with run_up(small_disk) as up:
        acknowledged = fill(up, trace)
        assert acknowledged > 0
        # What was taken gets smaller as it moves from the log to the table: without this there might be room again.
        (small_disk / "more ballast").write_bytes(bytes(44 * MIB))
        with grpc.insecure_channel(up.target()) as channel, pytest.raises(grpc.RpcError) as caught:
            export(channel, request("x" * MIB, service="full").SerializeToString())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-status-details-bin" in trailers(caught.value)
        assert count(up, trace) == acknowledged
        assert up.metric('stagetrace_refused_requests_total{reason="store"}') >= 2
        (small_disk / "ballast").unlink()
        (small_disk / "more ballast").unlink()
        after = request("after", service="full", trace=trace).SerializeToString()
        until(lambda: post(up, after).status_code == 200)
        assert count(up, trace) == acknowledged + 1
        assert up.stop() == 0
    with run_up(small_disk) as up:
        assert count(up, trace) == acknowledged + 1
