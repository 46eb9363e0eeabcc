"""See what a receiver answers to the official exporters, which keep only whether it was a success.

Transport, TLS, headers and compression stay theirs. Their loop of retries, up to ten seconds that cannot be
interrupted, gives way to the sending thread's own, which puts breaches first and knows of the spool. Private parts are
replaced for it: if one is missing, nothing is, and the exporter works as it came (docs/decisions/010).
"""

from __future__ import annotations

import functools
import sys
import time
from typing import TYPE_CHECKING, Any

from stagetrace import log
from stagetrace.otlp.encode.span_encoder import EncodedSpans
from stagetrace.otlp.export.exporter import BREATH_S
from stagetrace.otlp.export.response import Answer, grpc_failure, grpc_success, http_answer
from stagetrace.real_threads import sleep

if TYPE_CHECKING:
    from collections.abc import Callable

_METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Serialized(EncodedSpans):
    """Passes for the message where an exporter would serialize it: it is serialized already."""

    def SerializePartialToString(self) -> bytes:  # noqa: N802 -- protobuf's name
        """Return the request."""
        return self.request


class Watch:
    """The last answer that one exporter got."""

    encoded = Serialized

    def __init__(self) -> None:
        self.answer: Answer | None = None

    def begin(self) -> None:
        """Forget the last one."""
        self.answer = None


def watch(exporter: Any) -> Watch | None:
    """Watch an official OTLP exporter from now on; None, and nothing changed, if it is not built as expected."""
    seen = Watch()
    name = type(exporter).__module__
    try:
        if name == "opentelemetry.exporter.otlp.proto.grpc.trace_exporter":
            _watch_grpc(exporter, seen)
        elif name == "opentelemetry.exporter.otlp.proto.http.trace_exporter":
            _watch_http(exporter, seen)
        else:
            return None
    except Exception as error:  # noqa: BLE001 -- other releases
        log.debug(f"the answers to {name} cannot be seen ({type(error).__name__}: {error})")
        return None
    return seen


def _watch_grpc(exporter: Any, seen: Watch) -> None:
    retryable = frozenset(code.name for code in exporter._retryable_error_codes)  # noqa: SLF001
    make_stub, channel, _ = exporter._stub, exporter._channel, exporter._client.Export  # noqa: SLF001
    if not callable(make_stub) or not callable(exporter._translate_data):  # noqa: SLF001
        raise TypeError("no stub")
    _pass_serialized(exporter)

    def stub(channel: Any) -> _Stub:
        return _Stub(channel, seen, retryable)

    exporter._client = stub(channel)  # noqa: SLF001
    exporter._stub = stub  # noqa: SLF001 -- it makes a new channel when a receiver was away
    exporter._retryable_error_codes = frozenset()  # noqa: SLF001


class _Stub:
    """Takes the place of TraceServiceStub: the same call, with bytes in and out."""

    def __init__(self, channel: Any, seen: Watch, retryable: frozenset[str]) -> None:
        self._export = channel.unary_unary(
            _METHOD, request_serializer=_serialize, response_deserializer=None, _registered_method=True
        )
        self._seen = seen
        self._retryable = retryable

    def Export(self, request: Any, **kwargs: Any) -> Any:  # noqa: N802 -- the protocol's name
        """Make the call; note the answer."""
        from grpc import RpcError

        sleep(BREATH_S)
        try:
            body = self._export(request, **kwargs)
        except RpcError as error:
            call: Any = error
            trailers = dict(call.trailing_metadata() or ())
            self._seen.answer = grpc_failure(call.code().name, call.details() or "", trailers, self._retryable)
            raise
        self._seen.answer = grpc_success(body)
        return body


def _serialize(request: Any) -> bytes:
    serialized: bytes = request.SerializePartialToString()
    return serialized


def _watch_http(exporter: Any, seen: Watch) -> None:
    client = exporter._client  # noqa: SLF001
    transport = client._transport  # noqa: SLF001
    if not callable(transport.request) or not callable(transport.close) or not callable(client.export):
        raise TypeError("no transport")
    _pass_serialized(exporter)
    _prefer_own_authority(transport)
    client._transport = _Transport(transport, seen)  # noqa: SLF001


def _prefer_own_authority(transport: Any) -> None:
    """Let OTEL_EXPORTER_OTLP_CERTIFICATE win over REQUESTS_CA_BUNDLE, which requests prefers to a session's own."""
    session = getattr(transport, "_session", None)
    if session is not None and isinstance(session.verify, str):
        session.request = functools.partial(session.request, verify=session.verify)


class _Transport:
    """Stands before an HTTP exporter's transport: notes the answer, and passes a failure on as one to give up on."""

    def __init__(self, transport: Any, seen: Watch) -> None:
        self._transport = transport
        self._seen = seen

    def request(self, *args: Any, **kwargs: Any) -> Any:
        result = self._request(*args, **kwargs)
        if result.status_code is None:  # whatever happened, no OTLP receiver has answered
            error = result.error
            self._seen.answer = Answer(delivered=False, again=True, reason=f"{type(error).__name__}: {error}"[:200])
            return _Failed(error)
        headers = {key.lower(): value for key, value in result.headers().items()}
        answer = http_answer(result.status_code, result.reason or "", headers, result.content())
        self._seen.answer = answer
        return result if answer.delivered else _Failed(ConnectionError(answer.reason))

    def _request(self, *args: Any, timeout: float, **kwargs: Any) -> Any:
        """Make the request, once more at once where the connection failed: it may have been an old one."""
        deadline = time.monotonic() + timeout
        result = self._transport.request(*args, timeout=timeout, **kwargs)
        left = deadline - time.monotonic()
        if result.error is not None and self._transport.is_connection_error(result.error) and left > timeout / 2:
            result = self._transport.request(*args, timeout=left, **kwargs)
        return result

    def is_connection_error(self, _error: Exception | None) -> bool:
        return False

    def close(self) -> None:
        self._transport.close()


class _Failed:
    """A result without a status, which the exporter does not retry."""

    status_code = None
    reason = None

    def __init__(self, error: Exception | None) -> None:
        self.error = error


def _pass_serialized(exporter: Any) -> None:
    """Let the exporter's module take what is serialized already, as it is, in place of parsing and writing it again."""
    module: Any = sys.modules[type(exporter).__module__]
    encode: Callable[[Any], Any] = module.encode_spans
    if getattr(encode, "passes_serialized", False):
        return

    def encode_spans(spans: Any) -> Any:
        return spans if isinstance(spans, Serialized) else encode(spans)

    encode_spans.passes_serialized = True  # type: ignore[attr-defined]
    module.encode_spans = encode_spans
