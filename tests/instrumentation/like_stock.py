"""The same requests to the same service, traced by OpenTelemetry's own instrumentation and by stagetrace."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from services import AS_STOCK, PYTHON, run_service
from sink import SERVER, attributes_in, run_sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

CALLER = "00f067aa0ba902b7"
STAGE = "ml.stage"
OURS = (
    STAGE,
    "sla.",
    "stagetrace.",
    "http.request.body.size",
    "http.response.body.size",
)


@dataclass(frozen=True)
class Case:
    """One request, as bytes on a socket or as messages over a websocket.

    `ours` is what stagetrace says otherwise than OpenTelemetry, on purpose; None in it takes an attribute away.
    `once`: ours has one event of an exception, which stock has twice, or not at all.
    """

    name: str
    target: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    protocol: str = "HTTP/1.1"
    websocket: Sequence[str] | None = None
    over: str = "tcp"
    traced: bool = True
    ours: Mapping[str, Any] = field(default_factory=dict)
    once: bool = False

    @property
    def trace_id(self) -> str:
        return hashlib.md5(self.name.encode(), usedforsecurity=False).hexdigest()

    def sent_headers(self) -> dict[str, str]:
        """Return the headers with those that every case has; an empty value leaves one out."""
        usual = {"Host": "service.example", "User-Agent": f"case {self.name}", "Connection": "close"}
        if self.traced:
            usual["traceparent"] = f"00-{self.trace_id}-{CALLER}-01"
        length = {"Content-Length": str(len(self.body))} if self.body else {}
        return {name: value for name, value in {**usual, **length, **self.headers}.items() if value}

    def ask(self, url: str, unix_socket: Path) -> Any:
        """Make the request; return the response, without the date."""
        if self.websocket is not None:
            return self._talk(url)
        head = "".join(f"{name}: {value}\r\n" for name, value in self.sent_headers().items())
        sent = f"{self.method} {self.target} {self.protocol}\r\n{head}\r\n".encode() + self.body
        with self._open(url, unix_socket) as connection:
            connection.sendall(sent)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        return re.sub(rb"(?mi)^(date|traceresponse): .*\r\n", b"", answer)

    def _open(self, url: str, unix_socket: Path) -> socket.socket:
        if self.over == "tcp":
            return socket.create_connection((urlsplit(url).hostname or "", urlsplit(url).port or 0), timeout=20)
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(unix_socket))
        return connection

    def _talk(self, url: str) -> list[Any]:
        said: list[Any] = []
        headers = {k: v for k, v in self.sent_headers().items() if k.startswith(("traceparent", "x-"))}
        agent = self.sent_headers()["User-Agent"]
        try:
            address = url.replace("http", "ws") + self.target
            with connect(address, additional_headers=headers, user_agent_header=agent) as websocket:
                for text in self.websocket or ():
                    websocket.send(text)
                    if text != "bye":
                        said.append(websocket.recv())
                answer: Any = websocket.response
                said += [header for header in answer.headers.raw_items() if header[0].startswith("x-")]
                with suppress(WebSocketException):
                    websocket.recv(20)
        except WebSocketException as error:
            said.append(type(error).__name__)
        return said


@dataclass
class Recorded:
    """What one set-up responded and recorded."""

    answers: dict[str, Any]
    spans: list[Any]
    log: str

    def of(self, case: Case) -> list[Any]:
        """Return the spans of one case, the entry span first."""
        trace_ids = {case.trace_id} | {
            span.trace_id.hex()
            for span in self.spans
            if attributes_in(span.attributes).get("user_agent.original") == f"case {case.name}"
        }
        spans = [span for span in self.spans if span.trace_id.hex() in trace_ids]
        return sorted(spans, key=lambda span: span.start_time_unix_nano)

    def entry(self, case: Case) -> Any:
        """Return the entry span, the first of a case: FastAPI's own telemetry gives a mounted app a second one."""
        return next((span for span in self.of(case) if span.kind == SERVER), None)

    def others(self, case: Case) -> list[dict[str, Any]]:
        """Return what spans under the entry span say but for their parents, stage spans left out."""
        spans = [shown(span) for span in self.of(case) if span.kind != SERVER]
        native = "fastapi."  # from FastAPI's own telemetry, in a mounted app
        return [{**span, "parent": ""} for span in spans if STAGE not in span and not span["name"].startswith(native)]

    def metric(self, name: str) -> dict[str, Any]:
        """Return a metric as the console exporter printed it last, by the scope that recorded it."""
        found: dict[str, Any] = {}
        for match in re.finditer(r"^\{$", self.log, re.MULTILINE):
            printed, _ = json.JSONDecoder().raw_decode(self.log, match.start())
            for resource in printed["resource_metrics"]:
                for scope in resource["scope_metrics"]:
                    for metric in scope["metrics"]:
                        if metric["name"] == name:
                            found[scope["scope"]["name"]] = metric
        return found


Both = tuple[Recorded, Recorded]
UVICORN = (PYTHON, "two_sockets.py")
JSON = {"Content-Type": "application/json"}
# The same for each framework.
SHARED = [
    Case("plain", "/plain"),
    Case("path parameter", "/items/7"),
    Case("query", "/plain?q=1&token=abc"),
    Case("422", "/validated", "POST", JSON, b'{"number": "x"}'),
    Case("201 and a body", "/validated", "POST", JSON, b'{"number": 3}'),
    Case("a broken body", "/validated", "POST", JSON, b"{"),
    Case("409", "/status/409"),
    Case("503", "/status/503"),
    Case("raise", "/raise"),
    Case("head of a get", "/plain", "HEAD"),
    Case("options", "/plain", "OPTIONS"),
    Case("stream", "/stream"),
    Case("user", "/user"),
    Case("child", "/child"),
    Case("trace state", "/context", headers={"tracestate": "a=1,b=2"}),
    Case("baggage", "/context", headers={"baggage": "user=7,tier=gold"}),
    Case("no parent", "/plain", traced=False),
    Case("broken parent", "/plain", headers={"traceparent": "00-zz-1-01"}, traced=False),
    Case("unsampled", "/child", headers={"traceparent": f"00-{'ab' * 16}-{CALLER}-00"}),
    Case("no user agent", "/plain", headers={"User-Agent": ""}),
    Case("robot", "/plain", headers={"User-Agent": "Googlebot/2.1"}),
    Case("HTTP/1.0", "/plain", protocol="HTTP/1.0"),
    Case("unix socket", "/plain", over="unix"),
]
# Asked for, and set, in the environment: captured headers, B3, a response propagator, urls left out.
SET_UP = {
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": "x-asked.*,Authorization,cookie",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": "X-Answer.*,set-cookie,content-type",
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS": ".*hidden.*",
    **{f"OTEL_PYTHON_{name}_EXCLUDED_URLS": "/stream,/items/[0-9]+$" for name in ("FASTAPI", "FLASK", "DJANGO")},
    "OTEL_PYTHON_EXCLUDED_URLS": "/plain",
    "OTEL_PROPAGATORS": "b3,tracecontext,baggage",
    "OTEL_PYTHON_INSTRUMENTATION_HTTP_CAPTURE_ALL_METHODS": "1",
    "RESPONSE_PROPAGATOR": "1",
}
REDACTED = ["[REDACTED]"]
TOKEN_REDACTED = {"http.response.header.x_answer_token": REDACTED}
ANSWER_REDACTED = {**TOKEN_REDACTED, "http.response.header.set_cookie": REDACTED}
SECRETS_REDACTED = {"http.request.header.authorization": REDACTED, "http.request.header.cookie": REDACTED}
B3 = f"{'2' * 32}-{CALLER}-1"
SHARED_OF_SET_UP = [
    Case("left out", "/stream"),
    Case("left out by pattern", "/items/7"),
    Case("not left out", "/items/7a"),
    Case("the general variable gives way", "/plain"),
    Case("B3", "/context", headers={"b3": B3}, traced=False),
    Case("B3 unsampled", "/context", headers={"b3": B3[:-1] + "0"}, traced=False),
    Case("B3 and W3C", "/context", headers={"b3": B3}),
]


@contextmanager
def recorded(
    folder: Path, app: str, cases: Sequence[Case], env: Mapping[str, str], argv: Sequence[str] = UVICORN
) -> Iterator[Recorded]:
    """Serve `app`, make all requests, stop; yield what came of them."""
    unix_socket = folder.parent / "socket"
    unix_socket.unlink(missing_ok=True)
    with run_sink() as sink:
        sends = {name: value for name, value in sink.environment().items() if name != "STAGETRACE"}
        socket = {"OTEL_SEMCONV_STABILITY_OPT_IN": "http", "UNIX_SOCKET": str(unix_socket), "MODULE": app}
        command = [part.replace("{app}", app).replace("{socket}", str(unix_socket)) for part in argv]
        with run_service(folder, argv=command, env={**sends, **socket, **env}) as service:
            answers = {case.name: case.ask(service.url, unix_socket) for case in cases}
            service.stop()
            yield Recorded(answers, list(sink.protos), service.log)


def both(
    folder: Path, cases: Sequence[Case], env: Mapping[str, str], app: str = "semantics", argv: Sequence[str] = UVICORN
) -> Both:
    """Return what OpenTelemetry's instrumentation and what stagetrace record of an application."""
    ours = {"STAGETRACE": "1", "STAGETRACE_SLA": "* within 60s", "OTEL_METRICS_EXPORTER": "console", **AS_STOCK}
    for name in ("stock", "ours"):
        (folder / name).mkdir(parents=True)
    with recorded(folder / "stock", "stock", cases, {"SERVICE": app, **env}, argv) as stock:
        pass
    with recorded(folder / "ours", app, cases, {**env, **ours}, argv) as own:
        pass
    return stock, own


def shown(span: Any) -> dict[str, Any]:
    """Return all that a span says but for ids and times of its own, and ports, which are free ones."""
    attributes = attributes_in(span.attributes)
    for port in ("client.port", "server.port"):
        if attributes.get(port, 0) > 1:
            attributes[port] = "a port"
    return {
        "name": span.name,
        "kind": span.kind,
        "parent": span.parent_span_id.hex(),
        "flags": span.flags,
        "state": span.trace_state,
        "status": (span.status.code, span.status.message),
        "events": [(event.name, _comparable(attributes_in(event.attributes))) for event in span.events],
        "links": [
            (link.trace_id.hex(), link.span_id.hex(), link.flags, attributes_in(link.attributes)) for link in span.links
        ],
        "dropped": (span.dropped_attributes_count, span.dropped_events_count, span.dropped_links_count),
        "keys": len(span.attributes)
        - len({one.key for one in span.attributes}),  # more than none: an attribute sent twice
        **attributes,
    }


def _comparable(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return an event's attributes, of a stack trace the application's frames only."""
    stack = attributes.get("exception.stacktrace")
    if stack is not None:
        lines = stack.splitlines()
        frames = [line for line in lines if "/semantics" in line]
        attributes["exception.stacktrace"] = [*frames, lines[-1]]
    return attributes


def without_ours(span: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in span.items() if not key.startswith(OURS)}


def expected(span: dict[str, Any], case: Case) -> dict[str, Any]:
    """Return what stagetrace is to say where OpenTelemetry's instrumentation says `span`."""
    wanted = {key: value for key, value in span.items() if key != "url.query" and case.ours.get(key, "") is not None}
    address = wanted.get("server.address")
    if address is not None:
        wanted["server.address"] = address.rsplit(":", 1)[0]
    return wanted | {key: value for key, value in case.ours.items() if value is not None}


def compare(
    case: Case,
    recorded: Both,
    answer: Callable[[Any], Any] = lambda answer: answer,
    route: Callable[[dict[str, Any]], dict[str, Any]] = lambda span: span,
) -> None:
    """Compare both set-ups: `answer` gives what of an answer is compared, `route` what is expected of stock's span."""
    stock, ours = recorded
    assert answer(ours.answers[case.name]) == answer(stock.answers[case.name])
    theirs, own = stock.entry(case), ours.entry(case)
    assert (own is None) == (theirs is None)
    if own is not None:
        says, wanted = without_ours(shown(own)), expected(route(shown(theirs)), case)
        if case.once:
            assert [name for name, _ in says["events"]] == ["exception"]
            wanted["events"] = wanted["events"][:1] or says["events"]
        assert says == wanted
        assert sum(span.kind == SERVER for span in ours.of(case)) == 1
    others = ours.others(case)
    for span in others:
        if span["name"].startswith("BackgroundTask"):
            ((_, entry, _, _),) = span["links"]
            assert entry == own.span_id.hex()
            span["links"] = []
    assert others == stock.others(case)


def unrecorded(cases: Sequence[Case], recorded: Both) -> list[str]:
    """Return the names of the cases of which nothing was recorded."""
    return [case.name for case in cases if recorded[1].entry(case) is None]
