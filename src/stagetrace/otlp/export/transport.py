"""One OTLP request over gRPC or HTTP: our call on a channel or connection, as OTEL_EXPORTER_OTLP_* says.

The variables mean what they mean to the official exporters; a test compares what arrives (docs/decisions/047). A
transport tries once: the sender decides whether and when to try again.
"""

from __future__ import annotations

import gzip
import re
import time
import zlib
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote, urlparse

from stagetrace import __version__, log
from stagetrace.otlp.export.connection import Connection
from stagetrace.otlp.export.response import Outcome, grpc_failure, grpc_success, http_fault, http_outcome
from stagetrace.settings import ENDPOINT, RETRYABLE_CODES, SETTINGS, has_grpc, otlp, protocol
from stagetrace.system.threads import yield_interpreter

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import grpc

_SERVICE: Final = "/opentelemetry.proto.collector"
# By signal, as the names of variables have it.
_METHODS: Final = {
    "TRACES": f"{_SERVICE}.trace.v1.TraceService/Export",
    "METRICS": f"{_SERVICE}.metrics.v1.MetricsService/Export",
}
_USER_AGENT: Final = f"stagetrace/{__version__}"
_TIMEOUT_S: Final = 10.0
_RETRYABLE: Final = ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
_COMPRESS: Final[dict[str, Callable[[bytes], bytes]]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class Transport(Protocol):
    """A connection to one OTLP receiver."""

    def send(self, request: bytes) -> Outcome:
        """Send a serialized request for the export of its signal once; return what the receiver made of it."""

    def close(self) -> None:
        """Close the connection; a gRPC call that is under way ends."""


class GrpcTransport:
    """The service's Export method, called with bytes on a channel of grpcio."""

    def __init__(self, signal: str = "TRACES") -> None:
        try:
            import grpc
        except ImportError as error:
            fix = "`pip install grpcio`, or set OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
            raise ImportError(f"OTLP over gRPC needs grpcio, which cannot be imported ({error}): {fix}") from error
        self._grpc = grpc
        self._signal = signal
        self._timeout_s = _timeout_s(signal)
        self._metadata = tuple(_headers(signal).items())
        self._retryable = frozenset(code.upper() for code in RETRYABLE_CODES.read() or _RETRYABLE)
        self._closed = False
        self._open_channel = self._channel_opener()
        self._connect()

    def _connect(self) -> None:
        self._channel = self._open_channel()
        self._export = self._channel.unary_unary(_METHODS[self._signal], None, None)  # bytes in, bytes out

    def _channel_opener(self) -> Callable[[], grpc.Channel]:
        url = urlparse(endpoint := otlp("ENDPOINT", self._signal) or "http://localhost:4317")
        address = url.netloc or endpoint
        options = (("grpc.primary_user_agent", _USER_AGENT),)
        gzipped = _compression(("gzip",), self._signal) == "gzip"
        compression = self._grpc.Compression.Gzip if gzipped else self._grpc.Compression.NoCompression
        if _is_insecure(url.scheme, self._signal):
            return partial(self._grpc.insecure_channel, address, options, compression)
        return partial(self._grpc.secure_channel, address, self._credentials(), options, compression)

    def _credentials(self) -> grpc.ChannelCredentials:
        provided: grpc.ChannelCredentials | None = _provided("GRPC", self._grpc.ChannelCredentials, self._signal)
        if provided is not None:
            return provided
        names = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
        files = [SETTINGS[f"OTEL_EXPORTER_OTLP_{self._signal}_{name}"].text() for name in names]
        if not files[0]:  # then the others are not those of the signal either
            files = [SETTINGS[f"OTEL_EXPORTER_OTLP_{name}"].text() for name in names]
        if not files[0]:  # the official exporter then ignores the other two
            return self._grpc.ssl_channel_credentials()
        return self._grpc.ssl_channel_credentials(*map(_read, files))

    def send(self, request: bytes) -> Outcome:
        """Call Export; after UNAVAILABLE connect anew, since a channel waits ever longer before it does."""
        yield_interpreter()
        try:
            body = self._export(request, timeout=self._timeout_s, metadata=self._metadata)
        except self._grpc.RpcError as error:
            call: Any = error
            code = call.code().name
            if code == "UNAVAILABLE" and not self._closed:
                self._channel.close()
                self._connect()
            return grpc_failure(code, call.details() or "", dict(call.trailing_metadata() or ()), self._retryable)
        return grpc_success(body)

    def close(self) -> None:
        """Close the channel, which cancels a call that is under way."""
        self._closed = True
        self._channel.close()


class HttpTransport:
    """POST over a connection that is kept: of the standard library, or of requests where a credential provider is."""

    def __init__(self, signal: str = "TRACES") -> None:
        base = ENDPOINT.text() or "http://localhost:4318"
        own = SETTINGS[f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"].text()
        url = own or f"{base.removesuffix('/')}/v1/{signal.lower()}"
        self._timeout_s = _timeout_s(signal)
        compression = _compression(("gzip", "deflate"), signal)
        self._compress = _COMPRESS.get(compression)
        encoding = {"content-encoding": compression} if self._compress is not None else {}
        self._headers = {
            "content-type": "application/x-protobuf",
            "user-agent": _USER_AGENT,
            **encoding,
            **_headers(signal),
        }
        if not protocol(signal) and not has_grpc():
            log.once(
                "no grpcio",
                f"OTEL_EXPORTER_OTLP_PROTOCOL is not set and grpcio is not installed: spans go over HTTP to {url}.\n"
                "If gRPC is meant, pip install grpcio; if HTTP is, set the variable to http/protobuf.",
            )
        self._way: _Way = (Connection if _provider("HTTP", signal) is None else _Session)(url, signal)

    def send(self, request: bytes) -> Outcome:
        """Post the request, once more at once where the connection failed: it may have been an idle one."""
        yield_interpreter()
        body = request if self._compress is None else self._compress(request)
        deadline = time.monotonic() + self._timeout_s
        try:
            try:
                return self._way.post(body, self._headers, self._timeout_s)
            except Exception as error:
                left = deadline - time.monotonic()
                if not self._way.is_lost(error) or left <= self._timeout_s / 2:
                    raise
                return self._way.post(body, self._headers, left)
        except Exception as error:  # noqa: BLE001 -- whatever has happened, no OTLP receiver has responded
            return http_fault(error)

    def close(self) -> None:
        """Close idle connections."""
        self._way.close()


class _Way(Protocol):
    """How requests are posted to one URL."""

    def post(self, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Outcome:
        """Post once; raise what has kept it from a response."""

    def is_lost(self, error: Exception) -> bool:
        """Return whether the connection failed, and another one may not."""

    def close(self) -> None:
        """Close idle connections."""


class _Session:
    """A session of requests that a credential provider makes; it brings proxies and the rest itself."""

    def __init__(self, url: str, signal: str) -> None:
        import requests

        self._url = url
        self._error = requests.ConnectionError
        self._session = _provided("HTTP", requests.Session, signal)
        # Given with each request: a session's own authority gives way to REQUESTS_CA_BUNDLE.
        self._authority = otlp("CERTIFICATE", signal) or None
        key, certificate = otlp("CLIENT_KEY", signal), otlp("CLIENT_CERTIFICATE", signal)
        if certificate:
            self._session.cert = (certificate, key) if key else certificate

    def post(self, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Outcome:
        """Post once."""
        received = self._session.post(
            self._url, data=body, headers=headers, timeout=timeout_s, verify=self._authority, allow_redirects=False
        )
        found = {name.lower(): value for name, value in received.headers.items()}
        return http_outcome(received.status_code, received.reason or "", found, received.content)

    def is_lost(self, error: Exception) -> bool:
        """Return whether the connection failed, and another one may not."""
        return isinstance(error, self._error)

    def close(self) -> None:
        """Close idle connections."""
        self._session.close()


# By the names of the official exporters' entry points, to which `otlp` in OTEL_TRACES_EXPORTER resolves.
TRANSPORTS: Final[dict[str, Callable[[str], Transport]]] = {
    "otlp_proto_grpc": GrpcTransport,
    "otlp_proto_http": HttpTransport,
}


def _headers(signal: str) -> dict[str, str]:
    found = parsed_headers(otlp("HEADERS", signal))
    for name, value in list(found.items()):
        if not (name + value).isprintable():
            _log_malformed(name if name.isprintable() else "")
            del found[name]
    return found


# As in W3C baggage: a name, and a value in printable ASCII, percent-encoded. As the official exporters we also take a
# value with spaces, which is no such value; it is then used as it is.
_NAME: Final = r"[!#-'*+\-.0-9A-Z^-z|~]+"
_HEADER: Final = re.compile(rf"({_NAME})[ \t]*=[ \t]*([ !#-+\--:<-\[\]-~]*)")


def parsed_headers(text: str) -> dict[str, str]:
    """Return the headers that OTEL_EXPORTER_OTLP_HEADERS lists, with names in lower case; log what is malformed."""
    headers: dict[str, str] = {}
    for one in map(str.strip, text.split(",")):
        found = _HEADER.fullmatch(one)
        if found is None:
            if one:
                name = one.partition("=")[0].strip()
                _log_malformed(name if "=" in one and re.fullmatch(_NAME, name) else "")
            continue
        name, value = found[1], found[2].strip()
        if " " not in value:
            name, value = unquote(name), unquote(value)
        headers[name.strip().lower()] = value.strip()
    return headers


def _log_malformed(name: str) -> None:
    """Log that a header is not sent; without its value, which may be a secret."""
    which = f"the header {name!r}" if name else "a header"
    log.once(
        f"otlp header {name}",
        f"{which} in OTEL_EXPORTER_OTLP_HEADERS is malformed and not sent.\n"
        "Write NAME=VALUE, separated by commas, with other characters than printable ASCII percent-encoded.",
    )


def _timeout_s(signal: str) -> float:
    text = otlp("TIMEOUT", signal)
    try:
        return float(text) if text else _TIMEOUT_S
    except ValueError:
        log.once("otlp timeout", f"OTEL_EXPORTER_OTLP_TIMEOUT={text} is not a number of seconds; using {_TIMEOUT_S:g}.")
        return _TIMEOUT_S


def _compression(known: tuple[str, ...], signal: str) -> str:
    name = otlp("COMPRESSION", signal).lower() or "none"
    if name not in ("none", *known):
        can_be = ", ".join(("none", *known))
        log.once("otlp compression", f"OTEL_EXPORTER_OTLP_COMPRESSION={name} can be {can_be}; sending uncompressed.")
    return name if name in known else "none"


def _is_insecure(scheme: str, signal: str) -> bool:
    asked = otlp("INSECURE", signal).lower()
    return scheme != "https" and (asked == "true" if asked else scheme == "http")


def _read(path: str) -> bytes | None:
    if not path:
        return None
    try:
        with open(path, "rb") as file:  # noqa: PTH123 -- no more is asked of it
            return file.read()
    except FileNotFoundError:
        log.once(f"otlp {path}", f"there is no file {path}, which OTEL_EXPORTER_OTLP_* names; going on without it.")
        return None


def _provider(kind: str, signal: str) -> str | None:
    """Return the name of the credential provider that OTEL_PYTHON_EXPORTER_OTLP_* gives."""
    settings = [f"OTEL_PYTHON_EXPORTER_OTLP_{one}_CREDENTIAL_PROVIDER" for one in (f"{kind}_{signal}", kind)]
    return next(filter(None, (SETTINGS[setting].text() for setting in settings)), None)


def _provided(kind: str, wanted: type, signal: str) -> Any:
    """Return what the credential provider makes that OTEL_PYTHON_EXPORTER_OTLP_* names, or None; raise if it fails."""
    name = _provider(kind, signal)
    if name is None:
        return None
    from importlib.metadata import entry_points

    (point,) = entry_points(group="opentelemetry_otlp_credential_provider", name=name)
    provided = point.load()()
    if not isinstance(provided, wanted):
        raise TypeError(f"the credential provider {name!r} made a {type(provided).__name__}, not a {wanted.__name__}")
    return provided
