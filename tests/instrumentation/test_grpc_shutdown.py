"""However a gRPC service ends, each finished RPC is delivered; with nobody to deliver to, the end comes anyway."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from at_once import at_once
from instrumentation.grpc_client import Service, run_service
from instrumentation.grpc_traced import APPS
from otlp.receiver import Receiver, run_receiver

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")
SERVER = 2


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with run_receiver() as running:
        yield running


def environment(receiver: Receiver, **more: str) -> dict[str, str]:
    return {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": "* within 1s",
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc,
        # Far longer than the test: what arrives was delivered because the end came.
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
        "ON_SIGTERM": "5",
        **more,
    }


def ask(service: Service, count: int) -> list[str]:
    """Make RPCs, four at a time; return their traces."""
    answered: list[str] = []
    left = list(range(count))

    def work(_: int) -> None:
        while left:
            left.pop()
            trace_id, got = service.call("Predict")
            assert got.code == "OK"
            answered.append(trace_id)

    at_once(work, range(4))
    assert len(answered) >= count - 4
    return answered


def check(receiver: Receiver, answered: list[str]) -> None:
    """All that was answered was delivered, once."""
    entries = [span.trace_id.hex() for span in receiver.spans() if span.kind == SERVER]
    assert sorted(set(answered) - set(entries)) == []
    assert len([trace for trace in entries if trace in set(answered)]) == len(answered)


@pytest.mark.parametrize("app", APPS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["stop", "ctrl-c"])
def test_the_end_delivers_everything(app: str, number: signal.Signals, receiver: Receiver, tmp_path: Path) -> None:
    """The signal comes at once after the last answer: what is still being recorded is waited for."""
    with run_service(tmp_path, app, environment(receiver)) as service:
        answered = ask(service, 60)
        service.stop(number)
    check(receiver, answered)


@pytest.mark.parametrize(("app", "native"), [("grpc_threads", "1"), ("grpc_aio", "0")], ids=["in C", "in Python"])
def test_a_process_that_handles_no_sigterm_delivers_and_ends_by_it(
    app: str, native: str, receiver: Receiver, tmp_path: Path
) -> None:
    """All that has ended; to whoever started it, it ends as it does untraced."""
    env = environment(receiver, ON_SIGTERM="", STAGETRACE_NATIVE=native)
    with run_service(tmp_path, app, env) as service:
        answered = ask(service, 60)
        assert service.stop(signal.SIGTERM) == -signal.SIGTERM
    check(receiver, answered)


@pytest.mark.parametrize("app", APPS)
def test_what_finishes_in_the_grace_is_delivered(app: str, receiver: Receiver, tmp_path: Path) -> None:
    """With all that has finished before, though no exit handler runs."""
    with run_service(tmp_path, app, environment(receiver, HARD_END="1")) as service:
        answered = ask(service, 60)
        trace_id, call = service.begin_sleep(0.5)
        service.stop(signal.SIGTERM)
        assert call.result() == {}
    check(receiver, [*answered, trace_id])


@pytest.mark.parametrize("app", APPS)
def test_with_nobody_to_deliver_to_the_end_comes_and_the_loss_is_said(
    app: str, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.stop()
    with run_service(tmp_path, app, environment(receiver)) as service:
        ask(service, 10)
        service.stop(signal.SIGTERM)
        assert "not all spans were delivered" in service.log
