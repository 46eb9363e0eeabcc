"""How long a CUDA device works for a call, by two events around it in torch's stream.

A call of torch returns when its work is queued on the device. Nothing here waits for the device: the events are read
when the request is over, or when a span needs its parent, and only if the device has passed them (`query`). While any
thread captures a CUDA graph, no event is made, recorded or asked: that can invalidate the graph.
"""

from __future__ import annotations

import functools
import sys
from collections import deque
from contextlib import suppress
from threading import Lock, RLock
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.semconv import DEVICE_PENDING, DEVICE_TIME_MS, INFERENCE, ML_DEVICE

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.request.request import Request

MAX_PAIRS = 1_024  # of one device: as many calls may be unread
MAX_UNREAD = 64  # of one request
DRIFT = 50e-6  # at most, of the device's clock against the host's
RENEW_NS = 5_000_000_000

_devices: dict[str, _Device] = {}
_captures: set[int] = set()  # ids of the graphs that are being captured, by any thread


def begin_on_device(attributes: dict[str, Any], request: Request) -> Timing | None:
    """Record the begin of a call with these attributes, if it is on a CUDA device; return what is to be ended."""
    device = attributes.get(ML_DEVICE)
    return _begin(device, attributes, request) if device is not None and device.startswith("cuda") else None


@guarded
def _begin(name: str, attributes: dict[str, Any], request: Request) -> Timing | None:
    cuda = sys.modules["torch"].cuda
    if not cuda.is_initialized() or cuda.is_current_stream_capturing():
        return None  # nothing runs now
    device = _devices.get(name) or _devices.setdefault(name, _Device())
    calls = request.late
    is_full = isinstance(calls, DeviceCalls) and calls.is_full(request)
    pair = None if is_full or _captures else device.take(cuda)
    if pair is None:
        attributes[DEVICE_PENDING] = True
        return None
    return Timing(device, pair, attributes, cuda.current_stream(name))


class _Pair:
    """Two events of a device, and the time by the wall clock just before the first was recorded."""

    __slots__ = ("_device", "at", "begin", "end")

    def __init__(self, device: _Device, make: Callable[[], Any]) -> None:
        self._device = device
        device.made += 1
        self.at = 0
        self.begin = make()
        self.end = make()

    def __del__(self) -> None:
        self._device.made -= 1


class _Device:
    """The pairs of one device, and what is known of its clock."""

    def __init__(self) -> None:
        self.made = 0  # pairs that exist: those in use and those below
        self._free: deque[_Pair] = deque()
        self._late: deque[_Pair] = deque()  # of requests that are over, which the device had not passed
        self._reading = RLock()  # guards the two below
        self._reference: Any = None  # an event that the device has passed
        self._reference_at = 0  # not before this time

    def take(self, cuda: Any) -> _Pair | None:
        """Return a pair that can be recorded, None if too many are in use."""
        with suppress(IndexError):  # another thread may take the last one meanwhile
            if self._late and self._late[0].end.query():
                return self._late.popleft()
            return self._free.popleft()
        if self.made >= MAX_PAIRS:
            return None
        return _Pair(self, functools.partial(cuda.Event, enable_timing=True))

    def give_back(self, pair: _Pair, *, is_passed: bool) -> None:
        """Take back a pair."""
        (self._free if is_passed else self._late).append(pair)

    def read(self, pair: _Pair) -> tuple[float, int]:
        """Return how long the device took between two events that it has passed (ms), and when it passed the second.

        That is rather too early than too late: the device has not begun before the host had recorded the first event,
        nor while it was busy with what other calls had queued, which the distance to an earlier event shows.
        """
        with self._reading:
            took: float = pair.begin.elapsed_time(pair.end)
            began = pair.at
            if self._reference is not None:
                since = self._reference.elapsed_time(pair.begin) * 1e6
                began = max(began, self._reference_at + int(since - abs(since) * DRIFT))
            until, now = began + int(took * 1e6), time_ns()
            if until > now:  # the wall clock stepped back
                until, began, self._reference = now, pair.at, None
            if self._reference is None or began == pair.at or began - self._reference_at > RENEW_NS:
                pair.begin, self._reference = self._reference, pair.begin
                self._reference_at = began
                if pair.begin is None:
                    pair.begin = type(self._reference)(enable_timing=True)
            return took, until


class Timing:
    """The device's work for one call."""

    __slots__ = ("attributes", "called", "device", "ended", "is_recorded", "pair", "stream")

    def __init__(self, device: _Device, pair: _Pair, attributes: dict[str, Any], stream: Any) -> None:
        self.device = device
        self.pair = pair
        self.attributes = attributes
        self.stream = stream
        self.is_recorded = False
        self.called = pair.at = time_ns()
        pair.begin.record(stream)

    @guarded_end
    def stop(self) -> None:
        """Record the end of the call."""
        if not _captures:
            self.pair.end.record(self.stream)
            self.is_recorded = True

    @guarded_end
    def end(self, request: Request, ended: int) -> None:
        """Let the request read it later; `ended` is when the call has returned."""
        if not self.is_recorded:
            self.attributes[DEVICE_PENDING] = True
            return
        self.ended = ended
        calls = request.late
        if not isinstance(calls, DeviceCalls):
            calls = request.late = DeviceCalls()
        calls.add(self)


class DeviceCalls:
    """The calls of one request whose events were not read yet."""

    def __init__(self) -> None:
        self._unread: list[Timing] = []
        self._reading = Lock()  # guards what is read; who does not get it leaves the reading to its holder
        self._until = 0
        self._last: dict[str, Any] = {}

    def add(self, timing: Timing) -> None:
        """Add a call that has ended on the host."""
        self._unread.append(timing)

    def is_full(self, request: Request) -> bool:
        """Return whether there is no room for one more, after those were read that can be."""
        unread = self._unread
        if len(unread) >= MAX_UNREAD:
            self.read(request)
        if len(unread) < MAX_UNREAD:
            return False
        unread[-1].attributes[DEVICE_PENDING] = True  # of whose visit to the stage the next call may be a part
        return True

    @guarded_end
    def read(self, request: Request) -> None:
        """Let each call be the inference until the device was done with it, as far as that is known yet."""
        if not self._reading.acquire(blocking=False):
            return
        try:
            while self._unread and not _captures and self._unread[0].pair.end.query():
                self._read_one(request, self._unread.pop(0))
        finally:
            self._reading.release()

    def _read_one(self, request: Request, timing: Timing) -> None:
        took, until = timing.device.read(timing.pair)
        timing.device.give_back(timing.pair, is_passed=True)
        attributes = self._visit(timing)
        attributes[DEVICE_TIME_MS] = round(attributes.get(DEVICE_TIME_MS, 0) + took, 3)
        self._last, self._until = attributes, max(until, timing.ended)
        if until > timing.ended:
            request.is_unsorted = True
            request.enter(INFERENCE, None, timing.ended)
            request.leave(INFERENCE, until)

    def _visit(self, timing: Timing) -> dict[str, Any]:
        """Return the attributes of a call's stage: it goes on where the device was not done with the call before."""
        if timing.called > self._until:
            return timing.attributes
        if DEVICE_PENDING in timing.attributes:
            self._last[DEVICE_PENDING] = True
        return self._last

    @guarded_end
    def conclude(self, request: Request) -> None:
        """Read what can be, as the request is over; mark the other calls."""
        self.read(request)
        for timing in self._unread:
            if not _captures and timing.pair.end.query():  # of another stream than those before it
                self._read_one(request, timing)
                continue
            timing.attributes[DEVICE_PENDING] = self._visit(timing)[DEVICE_PENDING] = True
            timing.device.give_back(timing.pair, is_passed=False)
        self._unread.clear()


def begin_capture(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a CUDA graph that begins its capture, and notes that."""

    @functools.wraps(method)
    def begin(self: Any, *args: Any, **kwargs: Any) -> Any:
        _captures.add(id(self))
        try:
            return method(self, *args, **kwargs)
        except BaseException:
            _captures.discard(id(self))
            raise

    return begin


def end_capture(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method of a CUDA graph that ends its capture, and notes that."""

    @functools.wraps(method)
    def end(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        finally:
            _captures.discard(id(self))

    return end
