"""A call of torch on a CUDA device is the inference until the device is done, as far as that is known without waiting.

No GPU is needed: `Device` does what `torch.cuda` documents of events and streams, on a clock of its own.
"""

from __future__ import annotations

import struct
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrace import guard, log
from stagetrace.instrumentation.models import device_time, marked
from stagetrace.instrumentation.models.device_time import MAX_UNREAD, begin_on_device
from stagetrace.patches import torch
from stagetrace.request.current import current
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stagetrace.tracing.span_context import SpanContext

START = 1_700_000_000_000_000_000
MS = 1_000_000


class Device:
    """A CUDA device with one stream, and the host's clock, which only tests move.

    The host queues work and events, and the device passes them in this order. Of events that it has not passed
    `elapsed_time` raises, `synchronize` is never to be called, and nothing is to be done while a graph is captured.
    """

    def __init__(self, skew: float = 0) -> None:
        self.now = START
        self.skew = skew  # of the device's clock
        self.idle_at = START  # when the device has done all that is queued
        self.is_capturing = False  # a thread captures a graph
        self.is_initialized = True
        self.is_recorded = False  # what is queued goes into a graph, and does not run
        self.made: list[Any] = []
        device = self

        class Event:
            def __init__(self, *, enable_timing: bool = False) -> None:
                assert enable_timing
                self.at: int | None = None
                device.made.append(self)

            def record(self, stream: Any) -> None:
                assert not device.is_capturing
                assert stream == "stream of cuda:0"
                self.at = max(device.idle_at, device.now)

            def query(self) -> bool:
                assert not device.is_capturing
                return self.at is None or self.at <= device.now

            def elapsed_time(self, end: Event) -> float:
                if not (self.at and end.at and self.query() and end.query()):
                    raise RuntimeError("both events must be recorded and completed")
                exact = (end.at - self.at) * (1 + device.skew) / MS
                return struct.unpack("f", struct.pack("f", exact))[0]  # type: ignore[no-any-return]

            def synchronize(self) -> None:
                raise AssertionError("a synchronise")

        self.cuda = SimpleNamespace(
            Event=Event,
            current_stream=lambda name: f"stream of {name}",
            is_initialized=lambda: self.is_initialized,
            is_current_stream_capturing=lambda: self.is_recorded,
        )

    def time(self) -> int:
        return self.now

    def host(self, ms: float) -> None:
        """Let the host work."""
        self.now += round(ms * MS)

    def queue(self, ms: float) -> None:
        """Queue work for the device."""
        self.idle_at = max(self.idle_at, self.now) + round(ms * MS)

    def wait(self) -> None:
        """Wait for the device, as `.cpu()` does."""
        self.now = max(self.now, self.idle_at)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    yield from _device(monkeypatch)


def _device(monkeypatch: pytest.MonkeyPatch, skew: float = 0) -> Iterator[Device]:
    one = Device(skew)
    monkeypatch.setitem(sys.modules, "torch", one)
    for module in (device_time, marked):
        monkeypatch.setattr(module, "time_ns", one.time)
    monkeypatch.setattr(marked, "sample", lambda _: None)
    monkeypatch.setattr(marked, "DIVIDED_NS", 10**18)
    monkeypatch.setattr(marked, "_called", {"net"})
    monkeypatch.setattr(device_time, "_devices", {})
    monkeypatch.setattr(guard, "failures", {})
    monkeypatch.setattr(log, "_logged", set())
    monkeypatch.setattr(device_time, "_captures", set())
    yield one
    for switch in guard._switches.values():
        switch.off = False


class Asked:
    """A request of a service, on the device's clock."""

    def __init__(self, device: Device, where: str = "cuda:0", during: Callable[[], object] = lambda: None) -> None:
        self.device = device
        self.record = Request(device.time, device.now)
        self.record.bound = True
        self.record._entry = _context(1)
        self.start = device.now

        def call(launch_ms: float, device_ms: float) -> str:
            device.host(launch_ms / 2)
            device.queue(device_ms)
            during()
            device.host(launch_ms / 2)
            return "result"

        attributes = {"ml.model.name": "net", "ml.device": where}
        self._call = marked.marked(
            call, lambda *_: attributes, where=torch.__name__, is_method=False, timer=begin_on_device
        )

    def call(self, launch_ms: float, device_ms: float) -> None:
        """Call the model: the host takes so long to launch its work, of which the device has so much."""
        token = current.set(self.record)
        try:
            assert self._call(launch_ms, device_ms) == "result"
        finally:
            current.reset(token)

    def stages(self) -> list[tuple[str, float, dict[str, Any]]]:
        """End it; return its stages: name, length in ms, and what is known of the device."""
        segments = self.record.close(self.start, self.device.now).segments()
        assert [one.start for one in segments[1:]] == [one.end for one in segments[:-1]]
        found = [(one.stage, (one.end - one.start) / MS, _of_device(one.attributes)) for one in segments]
        self.record.abandon()
        return found


def _of_device(attributes: Any) -> dict[str, Any]:
    prefix = "stagetrace.device."
    return {name.removeprefix(prefix): value for name, value in attributes.items() if name.startswith(prefix)}


def _context(span_id: int) -> SpanContext:
    from stagetrace.tracing.span_context import SpanContext

    return SpanContext(1, span_id, is_remote=False)


def test_the_wait_for_the_device_is_the_inference_and_not_postprocessing(device: Device) -> None:
    request = Asked(device)
    device.host(3)
    request.call(1, 40)
    device.wait()
    device.host(2)
    assert request.stages() == [
        ("preprocess", 3, {}),
        ("inference", 40.5, {"time_ms": 40.5}),  # the device waits for the host first
        ("postprocess", 2, {}),
    ]


def test_a_device_that_is_done_before_the_call_returns_changes_no_stage(device: Device) -> None:
    request = Asked(device)
    request.call(4, 1)
    device.host(2)
    assert request.stages() == [("inference", 4, {"time_ms": 4.0}), ("postprocess", 2, {})]


def test_what_the_host_does_while_the_device_works_is_part_of_the_inference(device: Device) -> None:
    request = Asked(device)
    request.call(1, 9.5)
    device.host(6)
    device.wait()
    device.host(2)
    assert request.stages() == [("inference", 10, {"time_ms": 10.0}), ("postprocess", 2, {})]


def test_where_the_device_is_not_done_at_the_end_that_is_marked(device: Device) -> None:
    request = Asked(device)
    request.call(1, 40)
    device.host(2)
    assert request.stages() == [("inference", 1, {"pending": True}), ("postprocess", 2, {})]
    device.wait()
    later = Asked(device)
    later.call(1, 2)
    device.wait()
    assert later.stages() == [("inference", 2.5, {"time_ms": 2.5})]
    assert len(device.made) == 2 + 1  # the events of the first are used again, and one is the reference


def test_a_model_on_the_cpu_is_not_timed(device: Device) -> None:
    request = Asked(device, "cpu")
    request.call(1, 0)
    assert request.stages() == [("inference", 1, {})]
    assert device.made == []


def test_a_process_that_has_not_initialised_cuda_is_not_made_to(device: Device) -> None:
    device.is_initialized = False
    request = Asked(device)
    request.call(1, 0)
    assert request.stages() == [("inference", 1, {})]
    assert device.made == []


def test_a_call_whose_stream_is_captured_is_not_timed(device: Device) -> None:
    device.is_recorded = True
    request = Asked(device)
    request.call(1, 0)
    assert request.stages() == [("inference", 1, {})]
    assert device.made == []


def test_calls_before_the_device_is_done_are_one_inference(device: Device) -> None:
    request = Asked(device)
    request.call(1, 10)
    device.host(0.5)
    request.call(1, 10)
    device.wait()
    device.host(2)
    request.call(1, 3)
    device.wait()
    first, *rest = request.stages()
    assert (first[0], first[2]) == ("inference", {"time_ms": 20.5})
    assert 20.5 - 0.001 <= first[1] <= 20.5  # by the greatest drift of the clocks over 10 ms
    assert [(name, known) for name, _, known in rest] == [("preprocess", {}), ("inference", {"time_ms": 3.5})]


def test_a_call_is_read_though_one_in_another_stream_is_not_done(device: Device) -> None:
    request = Asked(device)
    request.call(1, 0.5)
    device.made[1].at += 1_000 * MS
    device.host(2)
    request.call(1, 5)
    device.wait()
    assert request.stages() == [
        ("inference", 1, {"pending": True}),
        ("preprocess", 2, {}),
        ("inference", 5.5, {"time_ms": 5.5}),
    ]


def test_the_wait_behind_the_work_of_other_requests_is_the_inference_too(device: Device) -> None:
    before = Asked(device)
    before.call(1, 1)
    device.wait()
    before.stages()
    device.host(100)
    other = Asked(device)
    other.call(1, 30)
    request = Asked(device)
    request.call(1, 10)
    device.wait()
    device.host(2)
    (name, took, known), (last, _, _) = request.stages()
    assert (name, known, last) == ("inference", {"time_ms": 10.0}, "postprocess")
    # It ends 40.5 ms after the begin of the other one, or by the greatest drift of the clocks earlier.
    assert 39.5 - 0.01 <= took <= 39.5


def test_without_an_earlier_call_that_wait_is_not_known(device: Device) -> None:
    device.queue(30)
    request = Asked(device)
    request.call(1, 10)
    device.wait()
    assert request.stages() == [("inference", 10, {"time_ms": 10.0}), ("postprocess", 30, {})]


def test_a_clock_that_stepped_back_makes_no_stage_longer_than_its_request(device: Device) -> None:
    request = Asked(device)
    request.call(1, 1)
    device.wait()
    request.stages()
    device.host(10)
    device.now -= 5_000 * MS
    device.idle_at -= 5_000 * MS
    for event in device.made:
        if event.at is not None:
            event.at -= 5_000 * MS  # the device's own clock goes on
    for _ in range(2):
        request = Asked(device)
        request.call(1, 2)
        device.wait()
        device.host(1)
        (name, took, _), *_ = request.stages()
        assert (name, took <= 3.5) == ("inference", True)


def test_a_span_that_starts_after_the_wait_is_below_the_postprocessing(device: Device) -> None:
    request = Asked(device)
    request.call(1, 40)
    device.wait()
    device.host(1)
    parent = request.record.stage_context()
    device.host(1)
    segments = request.record.close(request.start, device.now).segments()
    assert [(one.stage, one.context) for one in segments] == [("inference", None), ("postprocess", parent)]
    assert parent is not None


def test_pairs_are_bounded_and_used_again(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Asked(device)
    device.queue(1_000)
    for _ in range(MAX_UNREAD + 3):
        request.call(0.01, 1)
        device.host(0.01)
    device.wait()
    (name, _, known), _ = request.stages()
    assert (name, known) == ("inference", {"time_ms": float(MAX_UNREAD), "pending": True})  # of the others
    assert len(device.made) == 2 * MAX_UNREAD + 1
    monkeypatch.setattr(device_time, "MAX_PAIRS", 2)
    monkeypatch.setattr(device_time, "_devices", {})
    device.made.clear()
    requests = []
    for _ in range(3):
        requests.append(Asked(device))
        requests[-1].call(1, 5)
    device.wait()
    firsts = [one.stages()[0][2] for one in requests]
    assert firsts == [{"time_ms": 5.5}, {"time_ms": 5.0}, {"pending": True}]
    assert len(device.made) == 2 * 2 + 1


def test_an_abandoned_request_gives_its_events_back(device: Device) -> None:
    for _ in range(50):
        request = Asked(device)
        request.call(1, 5)
        device.wait()
        request.record.abandon()
        device.host(1)
    assert len(device.made) == 3


class Graph:
    """The part of `torch.cuda.CUDAGraph` that is patched."""

    device: Device

    def capture_begin(self, pool: Any = None) -> None:
        if pool == "wrong":
            raise RuntimeError(pool)
        self.device.is_capturing = True

    def capture_end(self) -> None:
        self.device.is_capturing = False


def test_while_any_thread_captures_a_graph_no_event_is_touched(device: Device) -> None:
    graphs = SimpleNamespace(CUDAGraph=type("CUDAGraph", (Graph,), {**vars(Graph), "device": device}))
    torch.patch_graphs(graphs)  # type: ignore[arg-type]
    graph = graphs.CUDAGraph()
    before = Asked(device)
    before.call(1, 5)
    device.wait()
    across = Asked(device)
    with pytest.raises(RuntimeError, match="wrong"):
        graph.capture_begin(pool="wrong")
    across.call(1, 5)
    graph.capture_begin()
    within = Asked(device)
    within.call(1, 5)
    assert within.stages() == [("inference", 1, {"pending": True})]
    assert across.stages()[0] == ("inference", 1, {"pending": True})
    assert before.record.stage_context() is not None
    graph.capture_end()
    device.wait()
    inferences = [(took, known) for name, took, known in before.stages() if name == "inference"]
    assert inferences == [(1, {"time_ms": 5.5}), (4.5, {})]  # since the stage between is the parent of a span
    assert len(device.made) == 4 + 1


def test_a_call_during_which_a_capture_begins_is_marked(device: Device) -> None:
    request = Asked(device, during=lambda: device_time._captures.add(1))
    request.call(1, 5)
    device_time._captures.clear()
    assert request.stages() == [("inference", 1, {"pending": True})]


@pytest.mark.parametrize("part", ["record", "query", "elapsed_time", "__init__"])
def test_an_injected_fault_is_counted_and_changes_no_result(
    part: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("injected fault")

    monkeypatch.setattr(device.cuda.Event, part, fails)
    for _ in range(12):
        request = Asked(device)
        request.call(1, 5)
        device.wait()
        device.host(1)
        stages = request.stages()
        assert stages[0][:2] == ("inference", 1)
        assert "time_ms" not in stages[0][2]
    assert sum(guard.failures.values()) >= 10


ACTIONS: dict[str, Callable[[Device, list[Asked], float], Any]] = {
    "request": lambda device, requests, _: requests.append(Asked(device)),
    "call": lambda _, requests, ms: requests[-1].call(0.1, ms) if requests else None,
    "host": lambda device, _, ms: device.host(ms),
    "long": lambda device, _, ms: device.host(1_000 * ms),
    "wait": lambda device, *_: device.wait(),
    "other work": lambda device, _, ms: device.queue(ms),
}


@given(
    skew=st.sampled_from([0, 4e-5, -4e-5]),
    steps=st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), st.floats(0.01, 20)), max_size=40),
)
def test_the_inference_never_ends_after_the_device(skew: float, steps: list[tuple[str, float]]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        for device in _device(patched, skew):
            requests: list[Asked] = []
            done_at: dict[int, int] = {}
            for action, ms in steps:
                ACTIONS[action](device, requests, ms)
                if action == "call" and requests:
                    done_at[id(requests[-1])] = max(device.idle_at, device.now)
            device.wait()
            for request in requests:
                segments = request.record.close(request.start, device.now).segments()
                ends = [one.end for one in segments if one.stage == "inference"]
                if ends:
                    assert max(ends) <= done_at[id(request)] + 2_000  # the events' resolution
                request.record.abandon()
