"""The one way into the store, shared by both receivers: bounded memory and inflation, a refusal for each failure."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final, Protocol

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from stagetrace.backend.counters import ThrottledLog
from stagetrace.backend.refusal import (
    ABANDONED,
    BUSY,
    INTERNAL,
    MALFORMED,
    SLOW,
    STORE,
    TOO_LARGE,
    UNSUPPORTED,
    Refused,
)
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.request import MalformedRequest, TooManyHolders

if TYPE_CHECKING:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.options import Limits
    from stagetrace.store.local import Appended, LocalStore

# --- Decompression that stops at a limit: a sender chooses the size to which a body inflates.

ENCODINGS: Final = ("gzip", "deflate", "zstd", "identity")
_STEP: Final = 1 << 20
# zlib copies the rest of its input at each step, and behind each of gzip's members: 64 MiB may have millions of these.
_ZLIB_INPUT: Final = 1 << 14
_GZIP: Final = 16 + zlib.MAX_WBITS
_GZIP_MAGIC: Final = b"\x1f\x8b"
# A frame of known size may ask for that size as its window; others could ask for gigabytes.
_ZSTD_WINDOW: Final = 64 << 20
# A block of 4 bytes may stand for 128 KiB, so this many bytes for 8 MiB at most.
_ZSTD_STEP: Final = 256


class InflateLimits(Protocol):
    """The part of `intake.RequestLimits` that this module needs: both raise Refused."""

    def check(self) -> None:
        """Return if the work may continue."""

    def grow(self, count: int) -> None:
        """Hold `count` more bytes."""


def inflate(body: bytes, encoding: str, most: int, limits: InflateLimits) -> bytes:
    """Return `body` as it was before `encoding`. Each chunk counts against `limits` before it is kept.

    Raise Refused where it would have more than `most` bytes, is damaged or cut off, the encoding is unknown, or
    `limits` refuses.
    """
    if encoding == "identity":
        return body
    chunks: list[bytes] = []
    total = 0
    for chunk in _chunks(body, encoding):
        limits.check()
        total += len(chunk)
        if total > most:
            raise too_large(most)
        limits.grow(len(chunk))
        if chunk:
            chunks.append(chunk)
    return b"".join(chunks)


def inflate_unnamed(body: bytes, most: int, limits: InflateLimits) -> bytes:
    """Return a gRPC message decompressed, if it was compressed: gRPC names the encoding only to itself.

    Every field of an export request is number 1 with a length, so it starts with 0x0a: neither with gzip's two bytes
    nor with zlib's, which could at most be a field that OTLP does not have.
    """
    if body[:2] == _GZIP_MAGIC:
        return inflate(body, "gzip", most, limits)
    if body[:1] == b"\x78" and int.from_bytes(body[:2], "big") % 31 == 0:
        return inflate(body, "deflate", most, limits)
    return body


def too_large(limit: int) -> Refused:
    """Return the refusal of a request beyond `limit`."""
    return Refused(TOO_LARGE, f"the request has more than {limit} bytes decompressed; send smaller batches")


def _chunks(body: bytes, encoding: str) -> Iterator[bytes]:
    """Yield what `body` inflates to; nothing, too, after a bounded step."""
    if encoding == "gzip":
        return _zlib(body, _GZIP)
    if encoding == "deflate":
        # HTTP's deflate is zlib's format; some clients send the bare stream.
        wrapped = len(body) > 1 and body[0] & 15 == 8 and int.from_bytes(body[:2], "big") % 31 == 0  # noqa: PLR2004
        return _zlib(body, zlib.MAX_WBITS if wrapped else -zlib.MAX_WBITS)
    if encoding == "zstd":
        return _zstd(body)
    raise Refused(UNSUPPORTED, f"content-encoding {encoding[:40]!r} is not one of {', '.join(ENCODINGS)}")


def _zlib(body: bytes, wbits: int) -> Iterator[bytes]:
    at = 0
    while at < len(body):  # gzip: members may follow each other
        stream = zlib.decompressobj(wbits)
        while not stream.eof:
            given = stream.unconsumed_tail
            if not given:
                given = body[at : at + _ZLIB_INPUT]
                at += len(given)
            try:
                chunk = stream.decompress(given, _STEP)
            except zlib.error as error:
                raise Refused(MALFORMED, f"the body cannot be decompressed: {error}") from None
            if not given and not chunk and not stream.eof:
                raise Refused(MALFORMED, "the compressed body is cut off")
            yield chunk
        if wbits != _GZIP:
            return
        at -= len(stream.unused_data)


def _zstd(body: bytes) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise Refused(UNSUPPORTED, "zstd needs zstandard here: pip install 'stagetrace[backend]'") from None
    at = 0
    try:
        while at < len(body):  # frames may follow each other
            stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()
            while not stream.eof:
                if at >= len(body):
                    raise Refused(MALFORMED, "the compressed body is cut off")
                # One input is inflated at once as a whole, so the input is passed in small steps.
                yield stream.decompress(body[at : at + _ZSTD_STEP])
                at += _ZSTD_STEP
            at = min(at, len(body)) - len(stream.unused_data)
    except zstandard.ZstdError as error:
        raise Refused(MALFORMED, f"the body cannot be decompressed: {error}") from None


# --- The one way into the store, shared by both receivers: bounded memory, counters, and the refusal for each failure.

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

    def __init__(
        self, store: LocalStore, counters: Counters, limits: Limits, stopping: threading.Event | None = None
    ) -> None:
        self._store = store
        self.counters = counters
        self.limits = limits
        self.stopping = stopping or threading.Event()  # set when the back end ends: unfinished requests are refused
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

    def mark(self, text: str) -> dict[str, Any]:
        """Name this moment and return the mark as JSON has it. Raise Refused."""
        try:
            return self._store.mark(text)._asdict()
        except StoreError as error:
            raise Refused(MALFORMED, str(error)) from None

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
