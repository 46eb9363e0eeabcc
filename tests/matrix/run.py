"""Run the application of a cell untraced and traced, and return what was recorded as its line of the page."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

import instrumentation.grpc_client as rpc
import services
from matrix.cells import API, INSTRUMENT, LIMIT_MS, OWN, SDK, Cell
from matrix.environment import Environment, environment
from sink import Sink, assert_tiled, receive, run_sink

if TYPE_CHECKING:
    from collections.abc import Iterator

APPS: Final = Path(__file__).parent / "apps"
DIRECTORY: Final = str(APPS)
COMMANDS: Final = {
    "wsgiref": (str(APPS / "wsgi.py"),),
    "asgi": ("-m", "uvicorn", "asgi:app", "--app-dir", DIRECTORY, "--port", "{port}"),
    "fastapi": ("-m", "uvicorn", "with_fastapi:app", "--app-dir", DIRECTORY, "--port", "{port}"),
    "flask": ("-m", "gunicorn", "with_flask:app", "--chdir", DIRECTORY, "-b", "127.0.0.1:{port}"),
    "grpc": (),
}
HEADINGS: Final = ("Python", "application", "OpenTelemetry", "other packages", "spans go by", "stages of the breach")
CALLS: Final = ("health", "spanned", "late", "fail", "echo")
SHOWN: Final = (
    *("fastapi", "starlette", "pydantic", "uvicorn", "flask", "gunicorn"),
    *("grpcio", "protobuf", "requests", "urllib3", "google-auth"),
)


class HttpSink:
    """An OTLP receiver by HTTP that hands what arrives to a sink."""

    def __init__(self, sink: Sink) -> None:
        self.senders: set[str] = set()  # the user agents
        senders = self.senders

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    senders.add(str(self.headers["user-agent"]))
                    receive(sink, ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def _sinks() -> Iterator[tuple[Sink, HttpSink]]:
    with run_sink() as sink:
        by_http = HttpSink(sink)
        try:
            yield sink, by_http
        finally:
            by_http.stop()


class Served:
    """What a run of the application has answered, and what is known of its end."""

    def __init__(self, answers: dict[str, Any], traces: dict[str, str], code: int, log: str) -> None:
        self.answers = answers
        self.traces = traces
        self.code = code
        self.log = log


def _http_answer(response: Any) -> tuple[int, list[tuple[str, str]], bytes]:
    headers = [(name, value) for name, value in response.headers.multi_items() if name != "date"]
    return response.status_code, headers, response.content


def serve(cell: Cell, env: dict[str, str], python: str, folder: Path) -> Served:
    """Serve the application until SIGTERM, and ask it everything."""
    answers: dict[str, Any] = {}
    traces: dict[str, str] = {}
    launcher = [str(Path(python).with_name(INSTRUMENT))] if cell.otel == INSTRUMENT else []
    if cell.app == "grpc":
        with rpc.run_service(folder, str(APPS / "with_grpc"), env, [*launcher, python]) as called:
            for name in CALLS[:-1]:
                traces[name], answers[name] = called.call(name, b"!", service="matrix.Work")
            code = called.stop(signal.SIGTERM)
        return Served(answers, traces, code, called.log)
    argv = [*launcher, python, *COMMANDS[cell.app]]
    with services.run_service(folder, argv=argv, env=env) as service:
        for name in CALLS:
            method = "POST" if name == "echo" else "GET"
            body = {"json": {"text": "été"}} if name == "echo" else {}
            traces[name], response = service.call(method, f"/{name}", **body)
            answers[name] = _http_answer(response)
        code = service.stop()
    return Served(answers, traces, code, service.log)


def run(cell: Cell, folder: Path) -> list[str]:
    """Check a cell and return its line: Python, application, OpenTelemetry, other packages, sender, stages."""
    made = environment(cell)
    assert {name: made.after.get(name) for name in made.before} == made.before, "the installation changed a package"
    assert set(made.after) - set(made.before) == {"stagetrace"}
    with _sinks() as (sink, by_http):
        env = _variables(cell, made, sink, by_http)
        untraced = serve(
            cell, {name: value for name, value in env.items() if name != "STAGETRACE"}, made.python, folder
        )
        traced = serve(cell, env, made.python, folder)
        assert traced.answers == untraced.answers
        assert traced.code == untraced.code
        assert not _complaints(traced.log), traced.log[-6000:]
        assert ("without the GIL" in traced.log) is cell.python.endswith("t")
        names = _check_spans(cell, sink, traced.traces)
        sent_by = _sender(by_http.senders)
    otel = cell.otel + (f" {cell.version}" if cell.version else "")
    others = ", ".join(f"{name} {made.before[name]}" for name in SHOWN if name in made.before)
    return [cell.python, cell.app, otel, others or "nothing", sent_by, " ".join(names)]


def _variables(cell: Cell, made: Environment, sink: Sink, by_http: HttpSink) -> dict[str, str]:
    """Return the variables of the traced service. Only the flush at its end delivers its spans."""
    by_grpc = "grpcio" in made.before and cell.otel not in (OWN, INSTRUMENT)
    env = services.recorded(sink.endpoint if by_grpc else by_http.endpoint, f"* within {LIMIT_MS}ms", **services.AT_END)
    env |= {"MATRIX_OTEL": cell.otel, "OTEL_SERVICE_NAME": "matrix"}
    if cell.otel == INSTRUMENT:
        env |= {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "OTEL_TRACES_EXPORTER": "otlp"}
        env |= {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    return env


def _complaints(log: str) -> list[str]:
    words = ("fault of stagetrace", "cannot patch", "not patched", "nothing is recorded", "cannot deliver")
    return [line for line in log.splitlines() if any(word in line for word in words)]


def _sender(agents: set[str]) -> str:
    """Return what has sent the spans; `agents` are the user agents of those that came by HTTP."""
    if not agents:
        return "gRPC"
    return "HTTP" if all("stagetrace" in agent.lower() for agent in agents) else "the service's exporter"


def _check_spans(cell: Cell, sink: Sink, traces: dict[str, str]) -> list[str]:
    """Check what was recorded of the requests; return the stages of the late one."""
    requests = {name: sink.request(trace_id) for name, trace_id in traces.items()}
    for request in requests.values():
        assert_tiled(request)
    breached = {name: request.entry.attributes["sla.breached"] for name, request in requests.items()}
    assert breached == {name: name == "late" for name in requests}
    late = requests["late"].entry.attributes
    assert (late["sla.breach.stage"], late["sla.breach.cause"]) == ("handler", "io_wait"), late["sla.breach.evidence"]
    code = str(late.get("sla.breach.code"))
    assert ("work.py:" in code and code.endswith(" in late")) == (not cell.is_free_threaded), code
    assert all(request.entry.service == "matrix" for request in requests.values())
    if cell.otel in (API, SDK, OWN, INSTRUMENT):
        request = requests["spanned"]
        (work,) = [span for span in request.others if span.name == "work"]
        handlers = [stage for stage in request.stages if stage.name == "handler"]
        assert work.parent_id in [span.span_id for span in (*handlers, *request.others)]
        assert (work.attributes["answer"], work.scope) == (42, "app")
    return list(dict.fromkeys(requests["late"].names))
