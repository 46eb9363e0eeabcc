"""Run moto, which answers as S3 does, as a server of its own with an empty bucket; and fill an archive in it."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest

from backends import LOOPBACK, _process, free_port
from stagetrace.backend.archiver import copy_closed
from stagetrace.store.local.store import ARCHIVE_SPREAD_MS
from stagetrace.store.s3.archive import Archive

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stagetrace.store.local import LocalStore

BUCKET = "traces"
HOURS = 2  # after which every file is closed


@dataclass(frozen=True)
class S3:
    """The address of a running server."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        """Return the URL for `stagetrace --store` and `--archive`."""
        return f"s3://{BUCKET}/some/where"

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which it is found."""
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{self.port}", **keys}

    def names(self) -> list[str]:
        """Return the names of all objects, the empty one aside that PyArrow makes of a folder."""
        listed = httpx.get(f"http://{LOOPBACK}:{self.port}/{BUCKET}?list-type=2").text
        names = [part.partition("</Key>")[0] for part in listed.split("<Key>")[1:]]
        return [name for name in names if not name.endswith("/unfinished/")]


@contextmanager
def run_s3(folder: Path, port: int | None = None) -> Iterator[S3]:
    """Run a server until the block ends; its bucket ends with it."""
    port = port or free_port()
    command = [sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)]
    with _process("moto", command, {}, folder, (port, "/moto-api/")) as process:
        httpx.put(f"http://{LOOPBACK}:{port}/{BUCKET}").raise_for_status()
        yield S3(port, process.pid)


def fill(store: LocalStore, url: str) -> int:
    """Close all files of a store, as time does, and copy them to an archive; return how many."""
    store.flush()
    now = store._clock.now
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store._clock, "now", lambda: now() + HOURS * ARCHIVE_SPREAD_MS)
        store._tidy()
        archive, copied = Archive(url), 0
        archive.begin()
        while found := list(copy_closed(store, archive)):
            copied += len(found)
    return copied
