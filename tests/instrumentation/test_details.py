"""Tokenizers, images, redis and SQL inside a request: details and client spans under the stage that called them."""

from __future__ import annotations

import socketserver
import subprocess
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from environments import interpreter_with
from services import Service, clean_environment, run_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Request, Sink

pytestmark = pytest.mark.usefixtures("services")

NEEDS = (
    *("fastapi", "uvicorn", "numpy", "tokenizers", "pillow", "redis", "sqlalchemy<2.1"),
    *("opentelemetry-instrumentation-redis", "opentelemetry-instrumentation-sqlalchemy"),
)
SLOW_S = 0.15
INTERNAL, CLIENT = 1, 3
# Of each case, by stage: the details with their library and number of calls, and the client spans.
EXPECTED: dict[str, dict[str, list[Any]]] = {
    "documents": {
        "preprocess": [("tokenize", "tokenizers", 400)],
        "inference": [],
        "postprocess": [("detokenize", "tokenizers", 2)],
    },
    "batch": {"preprocess": [("tokenize", "tokenizers", 1)], "inference": [], "postprocess": []},
    "within": {"inference": [("tokenize", "tokenizers", 1)], "preprocess": [], "postprocess": []},
    "images": {
        "preprocess": [("image.transform", "PIL", 10), ("image.decode", "PIL", 5)],
        "inference": [],
        "postprocess": [],
    },
    "broken_image": {"handler": [("image.decode", "PIL", 1, 1)]},
    "copied": {"handler": [("tokenize", "tokenizers", 1)]},
    "overridden": {"handler": [("image.decode", "PIL", 1), ("image.transform", "PIL", 1)]},
    "raises": {"handler": [("tokenize", "tokenizers", 1, 1)]},
    "threads": {"handler": [("tokenize", "tokenizers", 4)]},
    "cached": {"handler": ["GET", "FAIL"]},
    "async_cache": {"handler": ["GET", "GET"]},
    "slow_cache": {"preprocess": ["GET"], "inference": [], "postprocess": []},
    "rows": {"handler": ["SELECT"]},
    "late_engine": {"handler": ["SELECT", "NO"]},
}


class _Redis(socketserver.StreamRequestHandler):
    """Speaks as much of redis's protocol as its client needs."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                self.rfile.readline()
                words.append(self.rfile.readline().strip())
            if words[0] == b"GET":
                time.sleep(SLOW_S if words[1] == b"slow" else 0)
                self.wfile.write(b"$5\r\nvalue\r\n")
            else:
                self.wfile.write(b"-ERR unknown\r\n" if words[0] == b"FAIL" else b"+OK\r\n")


@pytest.fixture(scope="module")
def cache() -> Iterator[str]:
    """Return the port of a server that is redis to its client."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Redis) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield str(server.server_address[1])
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def argv() -> list[str]:
    return [interpreter_with(NEEDS), "-m", "uvicorn", "preparing:app", "--port", "{port}"]


@pytest.fixture(scope="module")
def traced(sink: Sink, folder: Path, argv: list[str], cache: str) -> Iterator[Service]:
    env = sink.environment(REDIS_PORT=cache, STAGETRACE_SLA="GET /case/{name} within 100ms")
    with run_service(folder, argv=argv, env=env) as running:
        yield running
        assert "fault of stagetrace" not in running.log


@pytest.fixture(scope="module")
def untraced(folder: Path, argv: list[str], cache: str) -> Iterator[Service]:
    with run_service(folder, argv=argv, env={"REDIS_PORT": cache}) as running:
        yield running


def tree(request: Request) -> dict[str, list[Any]]:
    """Return the children of each stage of the handler: details, and the operations of client spans."""
    found: dict[str, list[Any]] = {stage.name: [] for stage in request.stages}
    names = {stage.span_id: stage.name for stage in request.stages}
    for span in sorted(request.others, key=lambda one: one.start):
        values = span.attributes
        if span.kind == CLIENT:
            found[names[span.parent_id]].append(span.name.split()[0])
            continue
        assert span.kind == INTERNAL
        failed = [values["stagetrace.detail.failed"]] if "stagetrace.detail.failed" in values else []
        detail = (span.name, values["stagetrace.detail.library"], values["stagetrace.detail.calls"], *failed)
        found[names[span.parent_id]].append(detail)
    return {name: children for name, children in found.items() if name not in ("network.send", "queue")}


@pytest.mark.parametrize("case", EXPECTED)
def test_each_call_is_under_the_stage_that_made_it(case: str, traced: Service, untraced: Service, sink: Sink) -> None:
    trace_id, response = traced.call("GET", f"/case/{case}")
    assert response.content == untraced.call("GET", f"/case/{case}")[1].content
    count = sum(map(len, EXPECTED[case].values()))
    # Spans of a breach arrive before others.
    sink.wait_for(lambda _: len(sink.request(trace_id).others) >= count)
    assert tree(sink.tiled(trace_id)) == EXPECTED[case]


def test_a_breach_names_the_redis_that_it_waited_for(traced: Service, sink: Sink, cache: str) -> None:
    request, _ = sink.traced(traced, "GET", "/case/slow_cache")
    entry = request.entry.attributes
    assert (entry["sla.breach.stage"], entry["sla.breach.cause"]) == ("preprocess", "downstream")
    assert entry["sla.breach.peer"] == f"localhost:{cache}"


def test_an_injected_fault_is_logged_once_and_changes_no_response(
    folder: Path, argv: list[str], cache: str, untraced: Service
) -> None:
    env = {
        "STAGETRACE": "1",
        "REDIS_PORT": cache,
        "APP": "preparing",
        "BREAK": "stagetrace.instrumentation.detail:working_for",
    }
    with run_service(folder, argv=[one.replace("preparing", "broken") for one in argv], env=env) as service:
        for case in ("documents", "images", "raises"):
            assert service.call("GET", f"/case/{case}")[1].content == untraced.call("GET", f"/case/{case}")[1].content
        assert service.log.count("injected fault") == 2, service.log  # of two patches


def test_each_case_of_the_app_is_tested(untraced: Service) -> None:
    assert set(untraced.call("GET", "/cases")[1].json()) == set(EXPECTED)


def printed(argv: list[str], code: str, **env: str) -> list[str]:
    """Return the lines that a script prints in a process that is activated, and serves from `serve()` on."""
    start = "import sys\nfrom stagetrace.system.import_hooks import finder\nserve = finder.begin_serving\n"
    done = subprocess.run(
        [argv[0], "-W", "error", "-c", start + textwrap.dedent(code)],
        env={**clean_environment(), "STAGETRACE": "1", **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).splitlines()


def test_a_process_that_serves_nothing_imports_no_opentelemetry(argv: list[str]) -> None:
    code = """
        import redis, sqlalchemy, tokenizers, PIL.Image
        print(sorted(name for name in sys.modules if name.startswith("opentelemetry")))
    """
    assert printed(argv, code) == printed(argv, code, STAGETRACE="0")  # redis imports some itself


INSTRUMENTED = """
    import logging, redis, sqlalchemy
    logging.basicConfig()
    from opentelemetry.instrumentation.redis import RedisInstrumentor
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    engine = sqlalchemy.create_engine("sqlite://")
    {before}
    serve()
    {after}
    def layers(function):
        return 1 + layers(function.__wrapped__) if hasattr(function, "__wrapped__") else 0
    listeners = engine.dispatch.before_cursor_execute
    print(layers(redis.Redis.execute_command), layers(sqlalchemy.create_engine), len(listeners))
"""
APPLY = "RedisInstrumentor().instrument(); SQLAlchemyInstrumentor().instrument(engine=engine)"


@pytest.mark.parametrize(
    ("before", "after", "env", "expected"),
    [
        ("", "", {}, "1 2 1"),
        ("", APPLY, {}, "1 3 1"),  # the service's own takes over, without a warning
        (APPLY, "", {}, "1 3 1"),
        ("", "", {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "redis,sqlalchemy"}, "0 2 0"),
        ("import opentelemetry.instrumentation.auto_instrumentation", "", {}, "0 2 0"),
    ],
)
def test_an_instrumentation_is_applied_once(
    before: str, after: str, env: dict[str, str], expected: str, argv: list[str]
) -> None:
    assert printed(argv, INSTRUMENTED.format(before=before, after=after), **env) == [expected]


TRACED_ENGINE = """
    import sqlalchemy
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    serve()
    trace.set_tracer_provider(provider)
    engine = sqlalchemy.create_engine("sqlite://")
"""


def test_outside_a_request_a_database_makes_no_span(argv: list[str]) -> None:
    code = """
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text("SELECT 1"))
        with trace.get_tracer("ours").start_as_current_span("parent"):
            connection.execute(sqlalchemy.text("SELECT 2"))
    print([one.name for one in exporter.get_finished_spans()])
    """
    assert printed(argv, TRACED_ENGINE + code) == ["['SELECT', 'parent']"]


STATEMENTS = """
    with engine.connect() as connection, trace.get_tracer("ours").start_as_current_span("parent"):
        found = sqlalchemy.text("SELECT :bound, 'literal', 'redis://u:hunter2@h'"), {"bound": "bound"}
        assert connection.execute(*found).fetchall() == [("bound", "literal", "redis://u:hunter2@h")]
        try:
            connection.execute(sqlalchemy.text("SELECT no_such FROM nowhere WHERE a = :bound"), {"bound": "hunter2"})
        except sqlalchemy.exc.OperationalError as error:
            assert "hunter2" in str(error)
    for one in exporter.get_finished_spans()[:2]:
        print(one.attributes["db.statement"])
        print(one.status.status_code.name, one.status.description, [event.attributes for event in one.events])
    assert "hunter2" not in "".join(one.to_json() for one in exporter.get_finished_spans())
"""


@pytest.mark.parametrize(("mode", "description"), [("type", "None"), ("message", "no such table: nowhere")])
def test_a_statement_and_its_error_are_recorded_without_credentials(
    mode: str, description: str, argv: list[str]
) -> None:
    assert printed(argv, TRACED_ENGINE + STATEMENTS, STAGETRACE_RECORD_EXCEPTIONS=mode) == [
        "SELECT ?, 'literal', 'redis://REDACTED@h'",
        "UNSET None []",
        "SELECT no_such FROM nowhere WHERE a = ?",
        f"ERROR {description} []",
    ]
