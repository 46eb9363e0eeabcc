"""What a receiver will not take, for its settings or ours, or for what is in one batch: nothing else pays for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from grpc import StatusCode

from otlp.receiver import Receiver, Reply
from otlp.sending import AWAY, files, processor, put, request, wait_for
from stagetrace.otlp.export import sender
from stagetrace.otlp.export.spool import Spool

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("code", [StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED, StatusCode.UNIMPLEMENTED])
def test_a_wrong_token_or_address_costs_nothing_where_there_is_a_spool(
    code: StatusCode, receiver: Receiver, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The settings are put right: here the receiver's, or those of the next process."""
    receiver.always = Reply(code=code, takes=False)
    made = processor(receiver, Spool(tmp_path))
    put(made, "first", "second")
    assert made.force_flush()
    assert made.counts()["spooled"] == 2
    assert code.name in capfd.readouterr().err
    made.shutdown()
    receiver.always = Reply()
    later = processor(receiver, Spool(tmp_path))
    receiver.wait_for(lambda r: sorted(r.names()) == ["first", "second"])
    wait_for(lambda: files(tmp_path) == [])
    later.shutdown()


def test_without_a_spool_a_wrong_token_is_a_counted_loss(receiver: Receiver) -> None:
    receiver.always = Reply(code=StatusCode.UNAUTHENTICATED, takes=False)
    made = processor(receiver, None)
    put(made, "lost")
    made.force_flush()
    made.shutdown()
    assert {k: v for k, v in made.counts().items() if v} == {"received": 1, "refused": 1}


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "LONGEST_BACKOFF_S", 0.05)


def _refuse_poison(receiver: Receiver) -> None:
    respond = receiver.respond

    def respond_but(request: bytes, headers: dict[str, str]) -> Reply:
        receiver.always = AWAY if b"poison" in request else Reply()
        return respond(request, headers)

    receiver.respond = respond_but  # type: ignore[method-assign]


@pytest.mark.thorough
@pytest.mark.usefixtures("no_patience")
@pytest.mark.parametrize("breach", [True, False])
def test_a_batch_that_is_never_taken_does_not_hold_up_the_others(
    breach: bool, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a proxy responds 502 each time to what it finds too long; neither its own class nor the other waits."""
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    _refuse_poison(receiver)
    made = processor(receiver, None)
    put(made, "poison", breach=breach)
    put(made, *(f"bad {number}" for number in range(3)), breach=True)
    put(made, *(f"good {number}" for number in range(3)))
    receiver.wait_for(lambda r: len(r.names()) >= 6)
    wait_for(lambda: made.counts()["delivered"] == 6)  # the last response may still be on its way
    counts = made.counts()  # once: it goes to and fro
    assert counts["waiting"] + counts["in_hand"] == 1
    made.shutdown()


@pytest.mark.usefixtures("no_patience")
def test_nor_does_one_in_the_spool(receiver: Receiver, tmp_path: Path) -> None:
    Spool(tmp_path).write(request("poison"), 1, breach=True)
    for name in ("one", "two"):
        Spool(tmp_path).write(request(name), 1, breach=False)
    _refuse_poison(receiver)
    made = processor(receiver, Spool(tmp_path))
    receiver.wait_for(lambda r: sorted(r.names()) == ["one", "two"])
    receiver.wait_for(lambda _: len(files(tmp_path)) == 1)  # the response may still be on its way
    made.shutdown()
    assert len(files(tmp_path)) == 1
