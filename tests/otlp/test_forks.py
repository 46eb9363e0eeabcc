"""A process that forks while it delivers: parent and child deliver their own spans, once, and neither hangs."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from otlp.sending import processor_of, put
from services import run_python
from stagetrace.otlp.export.response import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from otlp.receiver import Receiver
    from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_forked_child_sends_its_own_spans_and_not_its_parents(protocol: str, receiver: Receiver) -> None:
    """As under gunicorn --preload, where the parent has recorded and sent something before."""
    code = f"""
import os
from opentelemetry.sdk.trace import TracerProvider
from stagetrace.otlp.export.batch_processor import otlp_processor
provider = TracerProvider(shutdown_on_exit=False)
made = otlp_processor("otlp_proto_{protocol}", "there")
provider.add_span_processor(made)
provider.get_tracer("t").start_span("sent before").end()
assert made.force_flush()
provider.get_tracer("t").start_span("parent").end()
child = os.fork()
if child == 0:
    provider.get_tracer("t").start_span("child").end()
    assert made.force_flush()
    assert made.counts()["received"] == 1, made.counts()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert made.force_flush()
"""
    endpoint = receiver.endpoint(protocol)
    done = run_python("-c", code, OTEL_BSP_SCHEDULE_DELAY="60000", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert done.returncode == 0, done.stderr
    assert sorted(receiver.names()) == ["child", "parent", "sent before"]


class Slow:
    """Sends until a test ends that, or for `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.begin_again(seconds)

    def begin_again(self, seconds: float) -> None:
        self.begun, self.goes_on, self.sent = threading.Event(), threading.Event(), threading.Event()
        self._seconds = seconds

    def send(self, _request: bytes) -> Outcome:
        self.begun.set()
        self.goes_on.wait(self._seconds)
        self.sent.set()
        return Outcome(delivered=True)

    def close(self) -> None:
        """Nothing is open."""


@contextmanager
def sending(transport: Slow, made: EncodingSpanProcessor) -> Iterator[None]:
    """Run the block while the processor sends a span by this exporter, and check that it is delivered."""
    put(made, "x")
    thread = threading.Thread(target=made.force_flush)
    thread.start()
    assert transport.begun.wait(60)
    yield
    transport.goes_on.set()
    thread.join()
    assert made.force_flush()
    counts = made.counts()
    assert counts["delivered"] == counts["received"]


def sent_before_fork(transport: Slow) -> bool:
    """Fork; return whether the batch had been sent by then."""
    child = os.fork()
    if child == 0:
        os._exit(7 if transport.sent.is_set() else 8)
    return {7: True, 8: False}[os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]


def test_a_fork_waits_for_the_batch_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a thread is inside gRPC, gRPC's handlers for a fork do nothing; calls in the child end by their deadline.

    A busy machine shows it now and then. Here a transport that takes its time stands for gRPC.
    """
    monkeypatch.setattr("stagetrace.otlp.export.client._FORK_WAITS_FOR_BATCH_S", 60)
    transport = Slow(0.3)
    made = processor_of(transport)
    with sending(transport, made):
        assert sent_before_fork(transport)
    made.shutdown()


def test_a_fork_does_not_wait_for_a_delivery_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first one does, for a bounded time; the next batch is waited for again."""
    transport = Slow(60)
    monkeypatch.setattr("stagetrace.otlp.export.client._FORK_WAITS_FOR_BATCH_S", 0.01)
    made = processor_of(transport)
    with sending(transport, made):
        assert not sent_before_fork(transport)
        monkeypatch.setattr("stagetrace.otlp.export.client._FORK_WAITS_FOR_BATCH_S", 1_000)
        assert not sent_before_fork(transport)
    transport.begin_again(0.3)
    with sending(transport, made):
        assert sent_before_fork(transport)
    made.shutdown()


def test_a_fork_while_the_exporter_is_loaded_leaves_the_child_able_to_load_it(tmp_path: Path) -> None:
    """Of a module whose import is under way in another thread, the child would wait for the end for ever."""
    (tmp_path / "slow.py").write_text("import time\nbegun()\ntime.sleep(0.5)\n")
    code = """
import builtins, os, signal, threading
from stagetrace.otlp.export import client
from stagetrace.otlp.export.batch_processor import EncodingSpanProcessor
client._FORK_WAITS_FOR_LOADING_S = 60
begun = threading.Event()
builtins.begun = begun.set
def make():
    import slow
    return slow
exporting = client.ExportClient(make, "there")
made = EncodingSpanProcessor(exporting)
loading = threading.Thread(target=exporting.load)
loading.start()
assert begun.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(30)
    import slow
    os._exit(not exporting.load())
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
loading.join()
"""
    done = run_python("-c", code, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
