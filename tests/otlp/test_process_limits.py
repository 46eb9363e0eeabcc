"""Where no descriptor or thread is left, spans wait: gRPC would end the process, a failed import is for good."""

from __future__ import annotations

import _thread
from typing import Any

import pytest

from otlp.receiver import run_receiver
from services import run_python
from stagetrace.otlp.export.client import DESCRIPTORS, ExportClient, NoRoomError, require

SERVICE = """
import os, resource, sys, time
from opentelemetry import trace
import grpc  # as a service may that serves or calls something by it
from stagetrace.runtime.runtime import runtime
from stagetrace.otlp.export.batch_processor import processors

runtime.prepare_now()
(processor,) = processors()
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
held = []
try:
    while True:
        held.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
for _ in range(int(sys.argv[1])):
    os.close(held.pop())
with trace.get_tracer("t").start_as_current_span("waits"):
    pass
while processor.trouble() is None:
    time.sleep(0.01)
print(processor.trouble().reason, flush=True)
for number in held:
    os.close(number)
print(processor.force_flush(20_000), processor.counts()["delivered"])
"""


@pytest.mark.parametrize("left", range(4))
def test_a_service_without_descriptors_lives_on_and_sends_later(left: int) -> None:
    """It has two thousand connections, say, as the first batch is to go out."""
    with run_receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc, "STAGETRACE_STATUS": "0"}
        done = run_python("-c", SERVICE, str(left), **env)
        assert done.returncode == 0, done.stderr
        few = f"fewer than {DESCRIPTORS} file descriptors are left, see `ulimit -n`"
        assert done.stdout.splitlines() == [f"the exporter cannot be loaded yet: {few}", "True 1"]
        assert receiver.names() == ["waits"]


def test_where_no_thread_can_be_started_grpc_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    start = _thread.start_new_thread
    started: list[int] = []

    def few(*args: Any) -> int:
        if len(started) >= 3:
            raise RuntimeError("can't start new thread")
        started.append(1)
        return start(*args)

    monkeypatch.setattr(_thread, "start_new_thread", few)
    with pytest.raises(NoRoomError, match="threads can be started, which gRPC needs"):
        require(grpc=True)
    require(grpc=False)  # starts none


def test_an_interpreter_that_ends_lacks_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts no threads from Python 3.12 on; gRPC's own are not affected, and the last spans have to go out."""

    def refuses(*_: Any) -> int:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(_thread, "start_new_thread", refuses)
    require(grpc=True)


GIVEN_BACK = """
import os, time
from stagetrace.otlp.export.client import require
before = os.listdir("/proc/self/fd")
require(grpc=True)
print(os.listdir("/proc/self/fd") == before)
while len(os.listdir("/proc/self/task")) > 1:
    time.sleep(0.01)
"""


def test_what_is_tried_is_given_back() -> None:
    done = run_python("-c", GIVEN_BACK)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_spans_wait_until_there_is_room() -> None:
    problems = [NoRoomError("none"), NoRoomError("none"), ImportError("no such module")]
    made = ExportClient(lambda: (_ for _ in ()).throw(problems.pop(0)), "there")
    outcomes = [made.send(b"") for _ in range(4)]
    assert [(outcome.retryable, outcome.misdirected) for outcome in outcomes] == [(True, False)] * 2 + [
        (False, True)
    ] * 2
    assert outcomes[0].reason == "the exporter cannot be loaded yet: none"
    assert outcomes[-1].reason == "the exporter cannot be loaded: ImportError: no such module"
