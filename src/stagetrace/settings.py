"""Every environment variable that stagetrace reads, in one table; docs/environment.md describes each.

No other module reads the environment (a test checks it), except the two that load with the interpreter and must not
load this one: `activate.py`, `patches/registry.py`. Nothing is read before a `read` method is called.
"""

from __future__ import annotations

import os
import re
import sys

TYPE_CHECKING = False  # importing `typing` takes longer than all of this module
if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping
    from typing import Final

OFF: Final = ("", "0", "false")

# Which side reads a variable: services that are recorded, the commands, or both.
RECORDING: Final = "recording"
READING: Final = "reading"
BOTH: Final = "both"

SETTINGS: Final[dict[str, Setting]] = {}  # by name, in the order below
_OTEL: Final = "OTEL_"
_ITS_READER: Final = "stagetrace.otel_config"  # which is imported only where the variable is set


class Setting:
    """One variable. Each type of them has a method `read`, which gives the value that it has now, or its default."""

    __slots__ = ("about", "name", "side")

    def __init__(self, name: str, side: str, about: str) -> None:
        self.name = name
        self.side = side
        self.about = about
        SETTINGS[name] = self

    def raw(self) -> str | None:
        """Return the text as it is; None where the variable is not set."""
        given = otel() if self.name.startswith(_OTEL) else os.environ
        return given.get(self.name)

    def text(self) -> str:
        """Return the text without the white space around it; empty where the variable is not set."""
        return (self.raw() or "").strip()


class Switch(Setting):
    """On or off: `0` and `false` are off, other texts are on."""

    __slots__ = ("default",)

    def __init__(self, name: str, side: str, about: str, *, default: bool = False) -> None:
        super().__init__(name, side, about)
        self.default = default

    def read(self) -> bool:
        """Return whether it is on."""
        text = self.text().lower()
        return text not in OFF if text else self.default


class Choice(Setting):
    """On or off, which differ from not set at all."""

    __slots__ = ()

    def read(self) -> bool | None:
        """Return whether it is on; None where it is not set."""
        text = self.text().lower()
        return text not in OFF if text else None


class Text(Setting):
    """Any text without the white space around it."""

    __slots__ = ("default",)

    def __init__(self, name: str, side: str, about: str, default: str = "") -> None:
        super().__init__(name, side, about)
        self.default = default

    def read(self) -> str:
        """Return the text."""
        return self.text() or self.default


class Verbatim(Text):
    """Any text, white space included: a path or a secret."""

    __slots__ = ()

    def read(self) -> str:
        """Return the text."""
        return self.raw() or self.default


class Words(Setting):
    """Words, separated by commas."""

    __slots__ = ()

    def read(self) -> list[str]:
        """Return the words that are not empty."""
        return [word.strip() for word in self.text().split(",") if word.strip()]


class OneOf(Setting):
    """One of a few words; `setting_problems.one_of` reads it, and reports another one. The first is the default."""

    __slots__ = ("words",)

    def __init__(self, name: str, side: str, about: str, *words: str) -> None:
        super().__init__(name, side, about)
        self.words = words


class Number(Setting):
    """A whole number from 1 on; `setting_problems.whole_number` reads it, and reports an unusable one."""

    __slots__ = ("default",)

    def __init__(self, name: str, side: str, about: str, default: int) -> None:
        super().__init__(name, side, about)
        self.default = default


class Limit(Setting):
    """A whole number from 0 on, or empty for none; `setting_problems.limit` reads it, and reports an unusable one."""

    __slots__ = ()


SWITCH = Switch("STAGETRACE", BOTH, "switches recording on")
SLA = Text("STAGETRACE_SLA", RECORDING, "the objectives: an inline policy, or a file")
SPOOL = Text("STAGETRACE_SPOOL", RECORDING, "folder for spans that cannot be delivered")
SPOOL_MAX_BYTES = Number("STAGETRACE_SPOOL_MAX_BYTES", RECORDING, "limit of its size", 1 << 30)
RECORD_QUERY = Switch("STAGETRACE_RECORD_QUERY", RECORDING, "records the query string as `url.query`")
RECORD_EXCEPTIONS = OneOf("STAGETRACE_RECORD_EXCEPTIONS", RECORDING, "how much of one", "type", "message", "full")
RECORD_CLIENT = Switch("STAGETRACE_RECORD_CLIENT", RECORDING, "records the client's address and port")
REDACT = Words("STAGETRACE_REDACT", RECORDING, "parts of names of headers, parameters and members that are secret")
OTEL_DISABLED = Words("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", RECORDING, "instrumentations not to apply")
SERVER_TIMING = Choice("STAGETRACE_SERVER_TIMING", RECORDING, "to whom responses report their stages")
DISABLED = Words("STAGETRACE_DISABLED_INSTRUMENTATIONS", RECORDING, "packages that are not patched")
LOG = Text("STAGETRACE_LOG", BOTH, "log level on stderr", "info")
NATIVE = Switch("STAGETRACE_NATIVE", BOTH, "uses the parts that are in C", default=True)
STATUS = Text("STAGETRACE_STATUS", BOTH, "folder of the status files of serving processes; `0`: none")
STORE = Verbatim("STAGETRACE_STORE", READING, "store URL of the commands")
STORE_TOKEN = Verbatim("STAGETRACE_STORE_TOKEN", READING, "token or password for a store on another machine")
STORE_INSECURE = Switch("STAGETRACE_STORE_INSECURE", READING, "sends that token to other machines without TLS")

# Sources: what kernel and interpreter report.
SOCKET_WAIT = Switch("STAGETRACE_SOCKET_WAIT", RECORDING, "how long a request waited in its socket", default=True)
WIRE = Switch("STAGETRACE_WIRE", RECORDING, "round trip and retransmissions of a connection", default=True)
STALLS = Switch("STAGETRACE_STALLS", RECORDING, "stacks of requests while they are late", default=True)
CPU_WAIT = Switch("STAGETRACE_CPU_WAIT", RECORDING, "CPU time, and the wait for a CPU, of a thread", default=True)
GC_PAUSE = Switch("STAGETRACE_GC_PAUSE", RECORDING, "when the garbage collector ran", default=True)
USAGE = Switch("STAGETRACE_USAGE", RECORDING, "page faults that waited for a disk", default=True)
PRESSURE = Switch("STAGETRACE_PRESSURE", RECORDING, "how long the machine waited for CPUs", default=True)
THROTTLING = Switch("STAGETRACE_THROTTLING", RECORDING, "how long a CPU quota throttled this container", default=True)

# `stagetrace up`: what is described here is also the help of the flag.
DATA = Verbatim("STAGETRACE_DATA", READING, "folder of the local store; default: ~/.local/share/stagetrace")
HOST = Verbatim("STAGETRACE_HOST", READING, "address to listen on", "127.0.0.1")
GRPC_PORT = Verbatim("STAGETRACE_GRPC_PORT", READING, "OTLP over gRPC; 0 takes a free port", "4317")
HTTP_PORT = Verbatim("STAGETRACE_HTTP_PORT", READING, "OTLP over HTTP", "4318")
QUERY_GRPC_PORT = Verbatim("STAGETRACE_QUERY_GRPC_PORT", READING, "jaeger.api_v3 over gRPC", "16685")
QUERY_HTTP_PORT = Verbatim("STAGETRACE_QUERY_HTTP_PORT", READING, "jaeger.api_v3 over HTTP", "16686")
JAEGER_UI = Text(
    "STAGETRACE_JAEGER_UI", READING, "Jaeger's UI, to which the page links: its address, or a URL with {trace_id}"
)
SOURCE_URL = Text(
    "STAGETRACE_SOURCE_URL", READING, "where the page finds a line of code: a URL with {path}, {line} and {version}"
)
ALLOW_HOST = Verbatim("STAGETRACE_ALLOW_HOST", READING, "names in `Host`, beside local ones, separated by commas")
TOKEN = Verbatim(
    "STAGETRACE_TOKEN", READING, "ask every client for `authorization: Bearer SECRET`; a flag shows in `ps`"
)
TOKEN_FILE = Verbatim("STAGETRACE_TOKEN_FILE", READING, "file that holds this token, and nothing else")
INSECURE = Switch("STAGETRACE_INSECURE", READING, "take the token without TLS beyond loopback: readable on the way")
TLS_CERT = Verbatim("STAGETRACE_TLS_CERT", READING, "serve with TLS, every port: certificate chain, PEM")
TLS_KEY = Verbatim("STAGETRACE_TLS_KEY", READING, "its private key, PEM")
RETENTION = Verbatim(
    "STAGETRACE_RETENTION", READING, "drop spans received longer ago (36h, 7d), some a tenth later; default: keep all"
)
RETENTION_SIZE = Verbatim("STAGETRACE_RETENTION_SIZE", READING, "drop the oldest beyond this (500MB, 20GiB)")
ARCHIVE = Verbatim("STAGETRACE_ARCHIVE", READING, "copy closed files to this bucket: s3://BUCKET/PREFIX")
MAX_REQUEST = Verbatim("STAGETRACE_MAX_REQUEST", READING, "largest request, decompressed", "64MiB")
MAX_IN_FLIGHT = Verbatim("STAGETRACE_MAX_IN_FLIGHT", READING, "largest sum of requests held at one time", "256MiB")
SLA_ALERTS = Text(
    "STAGETRACE_SLA_ALERTS", READING, "evaluate the alerts of this policy: one line, or a file as sla.yaml"
)
WEBHOOK = Text("STAGETRACE_WEBHOOK", READING, "post these alerts to this URL; default: `webhook` of the policy file")
ALERTMANAGER = Text(
    "STAGETRACE_ALERTMANAGER", READING, "post them to this Alertmanager; default: `alertmanager` of the policy file"
)
NOTIFY = Verbatim(
    "STAGETRACE_NOTIFY", READING, "URLs of Apprise by which people hear of them, separated by spaces: Slack, e-mail ..."
)
WEBHOOK_TOKEN = Verbatim("STAGETRACE_WEBHOOK_TOKEN", READING, "bearer token for the webhook")
WEBHOOK_SECRET = Verbatim("STAGETRACE_WEBHOOK_SECRET", READING, "signs what is posted to the webhook (HMAC, SHA-256)")
ALERTMANAGER_TOKEN = Verbatim("STAGETRACE_ALERTMANAGER_TOKEN", READING, "bearer token for the Alertmanager")

# OpenTelemetry's, as far as we read them ourselves: its SDK and its exporters read these and others.


class _ConfigFile(Text):
    """The file that is read in place of all other OTEL_* variables."""

    __slots__ = ()

    def raw(self) -> str | None:
        """Return the text as it is; None where the variable is not set."""
        return os.environ.get(self.name)


CONFIG_FILE = _ConfigFile("OTEL_CONFIG_FILE", BOTH, "declarative configuration, in place of all other OTEL_* variables")
SDK_DISABLED = Text("OTEL_SDK_DISABLED", BOTH, "`true` records nothing")
TRACES_EXPORTER = Text("OTEL_TRACES_EXPORTER", RECORDING, "exporters of spans", "otlp")
METRIC_INTERVAL = Number("OTEL_METRIC_EXPORT_INTERVAL", RECORDING, "milliseconds between exports of metrics", 10_000)
METRICS_EXPORTER = Text("OTEL_METRICS_EXPORTER", RECORDING, "exporters of metrics")
PROTOCOL = Verbatim("OTEL_EXPORTER_OTLP_PROTOCOL", RECORDING, "`grpc` or `http/protobuf`")
TRACES_PROTOCOL = Verbatim("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", RECORDING, "the same for spans alone")
METRICS_PROTOCOL = Verbatim("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", RECORDING, "the same for metrics alone")
ENDPOINT = Verbatim("OTEL_EXPORTER_OTLP_ENDPOINT", RECORDING, "the receiver")
TRACES_ENDPOINT = Verbatim("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", RECORDING, "the receiver of spans alone")
METRICS_ENDPOINT = Text("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", RECORDING, "the receiver of metrics alone")
TIMEOUT = Verbatim("OTEL_EXPORTER_OTLP_TIMEOUT", RECORDING, "seconds that an export may take")
TRACES_TIMEOUT = Verbatim("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", RECORDING, "the same for spans alone")
METRICS_TIMEOUT = Verbatim("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", RECORDING, "the same for metrics alone")
for _name, _about in (
    ("HEADERS", "headers of each request"),
    ("COMPRESSION", "`gzip`, over HTTP `deflate` too, or `none`"),
    ("INSECURE", "`true`: no TLS over gRPC, where the endpoint has no scheme"),
    ("CERTIFICATE", "file of the authorities that may vouch for the receiver"),
    ("CLIENT_CERTIFICATE", "file of our own certificate"),
    ("CLIENT_KEY", "file of its key"),
):
    Text(f"OTEL_EXPORTER_OTLP_{_name}", RECORDING, _about)
    Text(f"OTEL_EXPORTER_OTLP_TRACES_{_name}", RECORDING, f"{_about}; for spans alone")
    Text(f"OTEL_EXPORTER_OTLP_METRICS_{_name}", RECORDING, f"{_about}; for metrics alone")
for _name in ("GRPC_TRACES", "GRPC_METRICS", "GRPC", "HTTP_TRACES", "HTTP_METRICS", "HTTP"):
    Text(f"OTEL_PYTHON_EXPORTER_OTLP_{_name}_CREDENTIAL_PROVIDER", RECORDING, "entry point that makes credentials")
RETRYABLE_CODES = Words("OTEL_PYTHON_EXPORTER_OTLP_GRPC_RETRYABLE_ERROR_CODES", RECORDING, "codes to be tried again")
SAMPLER = Text("OTEL_TRACES_SAMPLER", RECORDING, "head sampler")
SAMPLER_ARG = Verbatim("OTEL_TRACES_SAMPLER_ARG", RECORDING, "its argument")
ID_GENERATOR = Text("OTEL_PYTHON_ID_GENERATOR", RECORDING, "generator of trace ids and span ids", "random")
EXCLUDED_URLS = Verbatim("OTEL_PYTHON_EXCLUDED_URLS", RECORDING, "requests that are not recorded")
EXCLUDED_SERVICES = Words("OTEL_PYTHON_GRPC_EXCLUDED_SERVICES", RECORDING, "gRPC services that are not recorded")
CAPTURE_REQUEST = Text("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", RECORDING, "headers of requests")
CAPTURE_RESPONSE = Text("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE", RECORDING, "headers of responses")
SANITIZE_FIELDS = Text("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", RECORDING, "those without a value")
ALL_METHODS = Text("OTEL_PYTHON_INSTRUMENTATION_HTTP_CAPTURE_ALL_METHODS", RECORDING, "names any method of HTTP")
QUEUE_SIZE = Number("OTEL_BSP_MAX_QUEUE_SIZE", RECORDING, "how many spans may wait", 16_384)
BATCH_SIZE = Number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", RECORDING, "spans of a batch", 2_048)
# Small and frequent exports disturb a service less than large and rare ones.
SCHEDULE_DELAY = Number("OTEL_BSP_SCHEDULE_DELAY", RECORDING, "milliseconds from one export to the next", 1_000)
SPAN_VALUE_LENGTH = Limit("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", RECORDING, "characters of a value on a span")
VALUE_LENGTH = Limit("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", RECORDING, "characters of a value")
ATTRIBUTES = Limit("OTEL_ATTRIBUTE_COUNT_LIMIT", RECORDING, "attributes of a span, of an event, of a link")
SPAN_ATTRIBUTES = Limit("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", RECORDING, "attributes of a span")
EVENT_ATTRIBUTES = Limit("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", RECORDING, "attributes of an event")
LINK_ATTRIBUTES = Limit("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", RECORDING, "attributes of a link")
EVENTS = Limit("OTEL_SPAN_EVENT_COUNT_LIMIT", RECORDING, "events of a span")
LINKS = Limit("OTEL_SPAN_LINK_COUNT_LIMIT", RECORDING, "links of a span")
PROPAGATORS = Words("OTEL_PROPAGATORS", RECORDING, "how trace contexts travel; `tracecontext,baggage` by default")
RESOURCE_ATTRIBUTES = Verbatim("OTEL_RESOURCE_ATTRIBUTES", RECORDING, "attributes of what spans come from")
SERVICE_NAME = Text("OTEL_SERVICE_NAME", RECORDING, "the name of the service")
RESOURCE_DETECTORS = Words("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", RECORDING, "detectors of more such attributes")
TRACER_PROVIDER = Text("OTEL_PYTHON_TRACER_PROVIDER", RECORDING, "entry point of a tracer provider")

# Other programs'.
FLASK_APP = Verbatim("FLASK_APP", RECORDING, "the application of `flask run`")
QUART_APP = Verbatim("QUART_APP", RECORDING, "the application of `quart run`")
LITESTAR_APP = Verbatim("LITESTAR_APP", RECORDING, "the application of `litestar run`")
DJANGO_SETTINGS = Verbatim("DJANGO_SETTINGS_MODULE", RECORDING, "the settings of a Django project")
RUNTIME_DIR = Verbatim("XDG_RUNTIME_DIR", BOTH, "where `STAGETRACE_STATUS` lies by default")
TMPDIR = Verbatim("TMPDIR", BOTH, "where it lies without that folder", "/tmp")  # noqa: S108 -- in a folder of its own
DATA_HOME = Verbatim("XDG_DATA_HOME", READING, "where the local store lies by default")
CACHE_HOME = Verbatim("XDG_CACHE_HOME", READING, "where files of archives are kept that were read")
AWS_ENDPOINT_URL = Verbatim("AWS_ENDPOINT_URL", READING, "the server of the archive, where it is not AWS's")
AWS_ENDPOINT_URL_S3 = Verbatim("AWS_ENDPOINT_URL_S3", READING, "the same for S3 alone")
COLUMNS = Verbatim("COLUMNS", READING, "width of tables where the output is no terminal")
REQUESTS_CA_BUNDLE = Verbatim("REQUESTS_CA_BUNDLE", RECORDING, "file or folder of the authorities for OTLP over HTTP")
CURL_CA_BUNDLE = Verbatim("CURL_CA_BUNDLE", RECORDING, "the same, without that")
NETRC = Verbatim("NETRC", RECORDING, "file of users and passwords, in place of `~/.netrc`")
PYTHONPATH = Verbatim("PYTHONPATH", READING, "`stagetrace run` puts a folder in front")

# Parts of the names, of headers, query parameters and whatever has one in a text, whose values are not recorded.
SECRET: Final = (
    *("authoriz", "authentic", "x-auth", "cookie", "token", "secret", "passw", "pwd", "credential", "session"),
    *("signature", "api-key", "api_key", "apikey", "accesskey", "access-key", "access_key", "private", "jwt", "otp"),
)


def environment() -> dict[str, str]:
    """Return all variables of this process."""
    return dict(os.environ)


def otel() -> MutableMapping[str, str]:
    """Return where OTEL_* variables are read from: the environment, or what the file of OTEL_CONFIG_FILE says."""
    if not CONFIG_FILE.read():
        return os.environ
    from importlib import import_module

    found: dict[str, str] = import_module(_ITS_READER).config_file().variables
    return found


def otel_variables() -> dict[str, str]:
    """Return the OTEL_* variables of this process, those included that only OpenTelemetry reads."""
    return {name: text for name, text in otel().items() if name.startswith(_OTEL)}


def redacted() -> list[str]:
    """Return the words that make the value of a name secret: STAGETRACE_REDACT adds to those built in."""
    return [*SECRET, *REDACT.read()]


def excluded_urls(instrumentations: Iterable[str]) -> tuple[list[str], str]:
    """Return which variables exclude requests from recording, and their patterns, separated by commas.

    That is OTEL_PYTHON_<instrumentation>_EXCLUDED_URLS of these, as far as set, else OTEL_PYTHON_EXCLUDED_URLS.
    """
    specific = [name for name in map("OTEL_PYTHON_{}_EXCLUDED_URLS".format, instrumentations) if name in otel()]
    names = specific or [EXCLUDED_URLS.name]
    return names, ",".join(filter(None, map(otel().get, names)))


def exporters(signal: str, default: str) -> list[str]:
    """Return the entry point names of the exporters that OTEL_* asks for; none of them for `none`.

    `signal` is `TRACES` or `METRICS`. The plain name `otlp` is resolved by the protocol variables, by default gRPC, or
    HTTP where grpcio is not installed.
    """
    names = (SETTINGS[f"OTEL_{signal}_EXPORTER"].text() or default).split(",")
    return [resolved(signal, name.strip()) for name in names if name.strip() not in ("", "none")]


def no_exporter(name: str, known: Iterable[str]) -> tuple[str, str]:
    """Return what is wrong with an exporter that is not installed, as `resolved` names it, and what can be set."""
    if name.startswith("otlp ("):
        return f"there is no exporter of {name[6:-1]}", "OTEL_EXPORTER_OTLP_PROTOCOL can be http/protobuf or grpc"
    return f"there is no exporter {name!r}", f"OTEL_TRACES_EXPORTER can be {', '.join(sorted(known))}, none"


# The official exporters of OTLP, whose work transports of our own do, by protocol.
OTLP_EXPORTERS: Final = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


def resolved(signal: str, name: str) -> str:
    """Return the entry point name of an exporter: `otlp` is resolved by the protocol variables."""
    if name != "otlp":
        return name
    asked = protocol(signal) or ("grpc" if has_grpc() else "http/protobuf")
    return OTLP_EXPORTERS.get(asked, f"otlp ({asked})")


def protocol(signal: str) -> str:
    """Return what the protocol variables say; empty where none is set."""
    return (SETTINGS[f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"].raw() or PROTOCOL.read()).strip()


def has_grpc() -> bool:
    """Return whether grpcio is installed, without importing it, which takes 70 ms."""
    if "grpc" in sys.modules:
        return sys.modules["grpc"] is not None
    from importlib.util import find_spec

    found = find_spec("grpc")
    return found is not None and found.origin is not None  # a folder of that name has none


def otlp(name: str, signal: str = "TRACES") -> str:
    """Return OTEL_EXPORTER_OTLP_`signal`_`name`, else OTEL_EXPORTER_OTLP_`name`; empty where neither is set."""
    return SETTINGS[f"OTEL_EXPORTER_OTLP_{signal}_{name}"].text() or SETTINGS[f"OTEL_EXPORTER_OTLP_{name}"].text()


def endpoint() -> str:
    """Return where spans are sent, as OTEL_* says; for messages only."""
    http = "otlp_proto_http" in exporters("TRACES", "otlp")
    return otlp("ENDPOINT") or ("http://localhost:4318" if http else "http://localhost:4317")


# --- Which of the user's OTEL_* variables OpenTelemetry cannot use: what it raises then is no fault of ours.


def unusable(error: BaseException) -> str | None:
    """Return the variable, as `NAME=value`, for which OpenTelemetry raised this; None if it is about something else.

    Its own code has raised it, and the message has the variable's name, or a part of its value. Headers, which may be
    secret, are but named.
    """
    if not isinstance(error, ValueError) or not _raised_in(error).startswith("opentelemetry."):
        return None
    message = str(error)
    variables = {name: text for name, text in otel_variables().items() if text.strip()}
    for name in sorted(variables, key=len, reverse=True):
        if name in message:
            return _shown(name, variables[name])
    parts = [(part.strip(), name) for name, text in variables.items() for part in text.split(",") if part.strip()]
    found = [(len(part), name) for part, name in parts if _is_in(message, part)]
    return _shown(name := max(found)[1], variables[name]) if found else None


def _is_in(message: str, part: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(part)}(?!\w)", message) is not None


def _shown(name: str, value: str) -> str:
    return name if name.endswith("_HEADERS") else f"{name}={value}"


def _raised_in(error: BaseException) -> str:
    """Return the module whose code raised it."""
    traceback, module = error.__traceback__, ""
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__"))
        traceback = traceback.tb_next
    return module
