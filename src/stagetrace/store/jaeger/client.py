"""Calls to one Jaeger: TLS settings, a token, messages, timeouts, an explanation of each failure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Final

import grpc

from stagetrace.errors import StoreError
from stagetrace.store.access import FILES, TOKEN, Access, over_tls, parts_of, without_tls
from stagetrace.store.base import Closing, host_and_port
from stagetrace.store.jaeger import api_v3
from stagetrace.store.search_windows import DepthRefusedError

if TYPE_CHECKING:
    from google.protobuf.message import Message

# --- Access to one Jaeger: TLS settings of the store's URL, and a token of the environment.

DEFAULT_PORT: Final = 16685
_TLS_SCHEME: Final = "jaegers"
_SHOWN: Final = ", ".join(f"{name}=FILE" for name in FILES)


def parse(url: str) -> tuple[str, int, Access]:
    """Return host, port and access of `jaeger://HOST[:PORT]` or `jaegers://HOST[:PORT][?ca=FILE&cert=FILE&key=FILE]`.

    Raise StoreError for a bad URL, a file that is no PEM file, and a token that no header can carry
    or that would leave this machine without TLS.
    """
    if url.partition("://")[0].lower() != _TLS_SCHEME:
        host, port = host_and_port(url, DEFAULT_PORT)
        return host, port, without_tls(host, _TLS_SCHEME)
    address, _, query = url.partition("?")
    host, port = host_and_port(address, DEFAULT_PORT)
    return host, port, over_tls(url, parts_of(url, query, FILES, shown=_SHOWN))


# --- Calls to one Jaeger: messages, timeouts, and an explanation of each failure.

# One message holds one whole trace; gRPC's own limit of 4 MiB is a few thousand spans.
_MAX_MESSAGE_BYTES: Final = 256 << 20
_NS_PER_US: Final = 1000
_CALLS_AT_ONCE: Final = 8
_LONGEST_DETAILS: Final = 200  # of a server's error text; some send whole pages


class JaegerClient(Closing):
    """One connection to Jaeger's query port. Nothing is sent before the first call."""

    def __init__(self, host: str, port: int, timeout_s: float = 60.0, access: Access | None = None) -> None:
        """Prepare calls to `host:port`, each of which may take `timeout_s` seconds."""
        access = Access() if access is None else access
        target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.url = f"{_TLS_SCHEME if access.tls else 'jaeger'}://{target}"
        self._timeout_s = timeout_s
        self._access = access
        self._metadata = () if access.token is None else (("authorization", f"Bearer {access.token}"),)
        options = [("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES)]
        if access.tls:
            credentials = grpc.ssl_channel_credentials(access.ca, access.key, access.cert)
            self._channel = grpc.secure_channel(target, credentials, options)
        else:
            self._channel = grpc.insecure_channel(target, options)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def services(self) -> list[str]:
        """Return the services that Jaeger knows, in no order."""
        call = self._channel.unary_unary(
            api_v3.path("GetServices"),
            request_serializer=api_v3.GetServicesRequest.SerializeToString,
            response_deserializer=api_v3.GetServicesResponse.FromString,
        )
        with self._explaining():
            response: Any = call(api_v3.GetServicesRequest(), timeout=self._timeout_s, metadata=self._metadata)
        return list(response.services)

    def find(
        self, service: str, attributes: Mapping[str, str], window_us: tuple[int, int], depth: int
    ) -> Iterator[bytes]:
        """Yield whole traces, at most `depth`, in which a span of `service` with `attributes` started in [window_us).

        Each message is a serialized TracesData; the parts of one trace follow each other.

        Jaeger 2.13 takes both ends in (badger in whole microseconds), so the caller filters. Raise DepthRefusedError
        (memory storage: beyond its `max_traces`).
        """
        request: Any = api_v3.FindTracesRequest()
        query = request.query
        query.service_name = service
        query.attributes.update(attributes)
        query.start_time_min.FromNanoseconds(window_us[0] * _NS_PER_US)
        query.start_time_max.FromNanoseconds(window_us[1] * _NS_PER_US)
        query.search_depth = depth
        query.raw_traces = True  # else Jaeger may move spans to hide clock skew, and the stages would not tile
        with self._explaining():
            yield from self._call("FindTraces", request)

    def get_trace(self, trace_id: str) -> list[bytes]:
        """Return the parts of one trace, each a serialized TracesData; none if Jaeger does not hold it."""
        (parts,) = self.get_traces((trace_id,))
        return parts

    def get_traces(self, trace_ids: Iterable[str]) -> Iterator[list[bytes]]:
        """Yield the parts of each of these traces, in this order; several calls run while one is read."""
        waiting: deque[Any] = deque()
        try:
            with self._explaining():
                for trace_id in trace_ids:
                    waiting.append(self._call("GetTrace", api_v3.GetTraceRequest(trace_id=trace_id, raw_traces=True)))
                    if len(waiting) == _CALLS_AT_ONCE:
                        yield list(waiting.popleft())
                while waiting:
                    yield list(waiting.popleft())
        finally:
            for call in waiting:
                call.cancel()

    def _call(self, method: str, request: Message) -> Any:
        """Return an iterator of serialized responses; the call has started."""
        call = self._channel.unary_stream(
            api_v3.path(method), request_serializer=type(request).SerializeToString, response_deserializer=None
        )
        return call(request, timeout=self._timeout_s, metadata=self._metadata)

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Turn a gRPC error into one that names the remedy."""
        try:
            yield
        except grpc.RpcError as error:
            details = error.details() or ""
            if "search depth" in details:
                raise DepthRefusedError(details) from None
            what, remedy = explain(error.code(), details, self._timeout_s, self._access)
            raise StoreError(f"{self.url}: {what}\n{remedy}") from None


def explain(code: grpc.StatusCode, details: str, timeout_s: float, access: Access) -> tuple[str, str]:
    """Return the error and its remedy, from a gRPC status and its text."""
    shown = shorten(details, width=_LONGEST_DETAILS, placeholder=" ...")
    if code is grpc.StatusCode.UNAVAILABLE:
        return _explain_tls(details, access) or _explain_unavailable(shown, access)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return (
            f"a gRPC server answers there, but it has no {api_v3.SERVICE} ({shown})",
            "name Jaeger's gRPC query port, normally 16685 (4317 only takes spans in)",
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return (
            f"no response within {timeout_s:g} s",
            "check that this is Jaeger's gRPC query port, or ask for less time (--since)",
        )
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return (
            f"a response is too large ({shown})",
            f"a single trace may have {_MAX_MESSAGE_BYTES >> 20} MiB; ask for less time (--since)",
        )
    if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        has = access.token is not None
        what = f"it refuses the token in {TOKEN}" if has else "it refuses us without a token"
        return f"{what} ({shown})", f"set {TOKEN} to the token that this server was started with"
    return (
        f"Jaeger reports {code.name}: {shown or 'no details'}",
        "see its log; other stores and times may still answer",
    )


def _explain_tls(details: str, access: Access) -> tuple[str, str] | None:
    """Return the TLS error that gRPC's text reports, and its remedy; None for any other error."""
    if "CERTIFICATE_VERIFY_FAILED" in details:
        why = details.partition("CERTIFICATE_VERIFY_FAILED: ")[2].removesuffix(": OK") or "its certificate is not good"
        remedy = "check that the file named by ca= is of the authority that signed it"
        if access.ca is None:
            remedy = "name the file of the authority that signed it: jaegers://HOST:PORT?ca=FILE"
        return f"its certificate is not trusted ({why})", remedy
    if "Hostname Verification" in details:
        return (
            "its certificate is of another host than this",
            "name the host as the certificate does (openssl x509 -noout -ext subjectAltName shows it)",
        )
    if "WRONG_VERSION_NUMBER" in details:
        return "a server answers there, but not with TLS", "ask without TLS: jaeger://HOST:PORT"
    return None


def _explain_unavailable(details: str, access: Access) -> tuple[str, str]:
    """Return the error behind the code UNAVAILABLE, by gRPC's text, and its remedy."""
    low = details.lower()
    if "http/2" in low or "http1" in low:
        return (
            "a server answers there, but not in gRPC",
            "name Jaeger's gRPC query port, normally 16685 (16686 is its web page)",
        )
    if "lookup" in low or "dns" in low or "resolv" in low:
        return "there is no host of this name", "check the host in the store's URL"
    if "refused" in low or "timed out" in low or "unreachable" in low or "timeout" in low:
        return (
            f"no server listens there ({details})",
            "start Jaeger, or check host and port: its gRPC query port is normally 16685",
        )
    remedy = "a server with TLS does so: jaegers://HOST:PORT; else see its log"
    if access.tls:
        remedy = "see its log"
        if access.cert is None:
            remedy = f"a server that asks for a client's certificate does so: add cert=FILE&key=FILE; else {remedy}"
    return f"the connection broke ({details})", remedy
