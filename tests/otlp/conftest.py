"""What several files here need: a receiver, no processors of other tests, short waits."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from missing import unused
from otlp.receiver import Receiver, run_receiver
from otlp.schedules import IN_C, Implementation
from pki import make_pki
from stagetrace import guard, log
from stagetrace.otlp.export import batch_processor, sender, spool

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of certificates; `folder` in it holds the authority as OpenSSL looks for it, `netrc` a user."""
    made = make_pki(tmp_path_factory.mktemp("pki"))
    (made / "folder").mkdir()
    (made / "folder" / "ca.pem").write_bytes((made / "ca.pem").read_bytes())
    subprocess.run(["openssl", "rehash", str(made / "folder")], check=True, capture_output=True)
    (made / "netrc").write_text("machine 127.0.0.1 login mine password its\n")
    (made / "netrc of others").write_text("machine other login mine password its\n")
    return made


@pytest.fixture
def no_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the processors of other tests until this one ends."""
    monkeypatch.setattr(batch_processor, "_processors", type(batch_processor._processors)())


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten what would make the tests wait; nothing is asserted of it."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setattr(sender, "LONGEST_BACKOFF_S", 0.2)
    monkeypatch.setattr(spool, "LOOK_AGAIN_AFTER_S", 0.2)
    monkeypatch.setattr(spool, "CLAIM_AGAIN_AFTER_S", 0.1)
    log._logged.discard("spool")
    guard.failures.clear()


@pytest.fixture(scope="session")
def native() -> Implementation:
    if IN_C is None:
        unused()
    return IN_C
