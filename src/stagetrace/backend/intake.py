"""The one way into the store, shared by both receivers: bounded memory, counters, and the refusal for each failure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from stagetrace.backend.inflate import too_large
from stagetrace.backend.refusal import ABANDONED, BUSY, INTERNAL, MALFORMED, SLOW, STORE, TOO_LARGE, Refused
from stagetrace.backend.throttled_log import ThrottledLog
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.request import MalformedRequest, TooManyHolders

if TYPE_CHECKING:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.options import Limits
    from stagetrace.store.local import Appended, LocalStore

_WORK_S: Final = 10  # of decompressing and decoding one request; waiting for the store excluded
LARGE: Final = 256 << 10  # a request that is decoded apart from others, so that it does not delay them
_ALONE: Final = 16 << 20  # one that is decoded alone
_STALLED_S: Final = 0.5  # without progress: the body is refused if other requests need its memory
_BUSY: Final = "too many requests are being written at this moment; send this one again"
STALLED: Final = "other requests needed the memory of this one, whose body had stalled; send it again"


class RequestLimits:
    """The limits of one request in work: the bytes that it holds, the time of its work, and whether it is still wanted.

    The bytes are released when the `with` block of `limit_request` ends.
    """

    def __init__(self, intake: Intake) -> None:
        self._intake = intake
        self._deadline: float | None = None
        self._abandoned = False
        self.held = 0
        self.stop_receiving: Callable[[], object] | None = None  # set while the body is being received
        self.was_stopped = False

    def abandon(self) -> None:
        """Have the work on this request end at its next `check`: its client has disconnected."""
        self._abandoned = True

    def begin(self) -> None:
        """Let the time limit of the work begin at the next `check`: until now the request waited."""
        self._deadline = None

    def check(self) -> None:
        """Raise Refused where the request was abandoned, took too long, or the back end is stopping.

        Work whose length a sender chooses calls this at its start and between its steps.
        """
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + _WORK_S
        if self._abandoned:
            raise Refused(ABANDONED, "the client disconnected")
        if self._intake.stopping.is_set():
            raise Refused(ABANDONED, "the back end is stopping; send this request again")
        if now > self._deadline:
            raise Refused(TOO_LARGE, f"the request takes more than {_WORK_S} s to read; send smaller batches")

    def grow(self, count: int) -> None:
        """Hold `count` more. Raise Refused where all requests together would hold too much."""
        self._intake.hold(self, count)

    @contextmanager
    def receiving(self, stop_receiving: Callable[[], object]) -> Iterator[None]:
        """Receive the body meanwhile. Any thread may call `stop_receiving`, once it stalls and others need bytes."""
        self.stop_receiving = stop_receiving
        self._intake.progress(self)
        try:
            yield
        finally:
            self._intake.received(self)

    def progress(self) -> None:
        """Note that the body is not stalled."""
        self._intake.progress(self)


class Intake:
    """Takes requests into the store.

    `_lock` guards `_held`, the bytes of all requests in work, and `_receiving`, when the bodies that are being received
    last made progress, the longest ago first.
    """

    def __init__(self, store: LocalStore, counters: Counters, limits: Limits) -> None:
        self._store = store
        self.counters = counters
        self.limits = limits
        self.stopping = threading.Event()  # set when the back end ends: unfinished requests are refused
        self._lock = threading.Lock()
        self._held = 0
        self._decoding_alone = threading.Lock()
        self._log = ThrottledLog()
        self._receiving: dict[RequestLimits, float] = {}

    @contextmanager
    def limit_request(self) -> Iterator[RequestLimits]:
        """Yield the limits of one request; release its bytes afterwards."""
        limits = RequestLimits(self)
        try:
            yield limits
        finally:
            with self._lock:
                self._held -= limits.held

    def hold(self, limits: RequestLimits, count: int) -> None:
        """Count bytes as held. Raise Refused where they would be too many, and no body has stalled that holds some."""
        with self._lock:
            while self._held + count > self.limits.in_flight and not limits.was_stopped:
                self._release_stalled()
            if limits.was_stopped:
                raise Refused(BUSY, STALLED)
            self._held += count
            limits.held += count

    def _release_stalled(self) -> None:
        """Release the bytes of the body that has stalled longest, and stop to receive it."""
        latest = time.monotonic() - _STALLED_S
        limits = next((one for one, since in self._receiving.items() if one.held and since < latest), None)
        if limits is None or limits.stop_receiving is None:
            raise Refused(BUSY, _BUSY)
        del self._receiving[limits]
        self._held -= limits.held
        limits.held = 0
        limits.was_stopped = True
        limits.stop_receiving()

    def progress(self, limits: RequestLimits) -> None:
        """Note that a body is being received, and made progress."""
        with self._lock:
            self._receiving.pop(limits, None)
            if not limits.was_stopped:
                self._receiving[limits] = time.monotonic()

    def received(self, limits: RequestLimits) -> None:
        """Note that a body is received, or no longer wanted."""
        with self._lock:
            self._receiving.pop(limits, None)

    def append(self, transport: str, request: bytes, limits: RequestLimits) -> Appended:
        """Store one serialized export request and return how many spans were stored. Raise Refused."""
        if len(request) > self.limits.request:
            raise too_large(self.limits.request)
        try:
            with self._limit_decoding(request, limits):
                appended = self._store.append(request, limits.check)
        except TooManyHolders as error:
            raise Refused(TOO_LARGE, str(error)) from None
        except MalformedRequest as error:
            raise Refused(MALFORMED, str(error)) from None
        except StoreError as error:
            raise Refused(STORE, str(error)) from None
        self.counters.add("accepted_spans", transport, appended.accepted)
        self.counters.add("rejected_spans", transport, appended.rejected)
        return appended

    @contextmanager
    def _limit_decoding(self, request: bytes, limits: RequestLimits) -> Iterator[None]:
        """Let the time limit of a large request begin now, and only one of the largest be decoded at a time.

        Large ones have waited until now. Decoding takes memory of four times the size, and CPU time of others.
        """
        with self._decoding_alone if len(request) > _ALONE else nullcontext():
            if len(request) > LARGE:
                limits.begin()
            yield

    def append_counts(
        self, transport: str, request: bytes, limits: RequestLimits, *, is_json: bool = False
    ) -> ExportMetricsServiceResponse:
        """Store the request counts of one export of metrics durably, and return the response. Raise Refused."""
        from stagetrace.backend.counts import LARGEST, parse

        if len(request) > min(LARGEST, self.limits.request):
            raise too_large(min(LARGEST, self.limits.request))
        export = parse(request, limits.check, is_json=is_json)
        if export.points:
            try:
                self._store.append_counts(export.points)
            except StoreError as error:
                raise Refused(STORE, str(error)) from None
        self.counters.add("stored_counts", transport, len(export.points))
        self.counters.add("ignored_data_points", transport, export.discarded)
        return export.response()

    def metrics(self) -> str:
        """Return the counters, the bytes in work and the store's own figures, in Prometheus' text form."""
        gauges = {f"store_{name}": value for name, value in self._store.stats().items()}
        return self.counters.text({**gauges, "requests_in_flight_bytes": self._held})

    @contextmanager
    def counted(self, transport: str) -> Iterator[None]:
        """Count one request and its refusal; any other error becomes a refusal without details."""
        self.counters.add("requests", transport)
        try:
            yield
        except Refused as refused:
            self.counters.add("refused_requests", refused.kind.name)
            if refused.kind in (BUSY, SLOW):
                self._log.warning(refused.kind.name, f"a request over {transport} was refused: {refused.message}")
            raise
        except Exception as error:
            self._log.error(transport, f"a request over {transport} failed: {type(error).__name__}: {error}")
            self.counters.add("refused_requests", INTERNAL.name)
            raise Refused(INTERNAL, "the back end failed on this request; see its log") from error


def export_response(appended: Appended) -> ExportTraceServiceResponse:
    """Return the response to an export: empty where everything was accepted, as OTLP requires."""
    response = ExportTraceServiceResponse()
    if appended.rejected:
        response.partial_success.rejected_spans = appended.rejected
        response.partial_success.error_message = appended.reason or ""
    return response
