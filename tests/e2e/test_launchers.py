"""The main job, under each launcher: through the real Collector into the real Jaeger, and back.

The set of traces that `stagetrace breaches` names equals the set of requests that the client made slow.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import stagetrace
from backend.processes import until
from backends import free_port
from cli.running import answered, cli, printed, process, refused
from services import AT_END, LAUNCHERS, Service, recorded, run_service, wsgi_command
from sink import assert_tiled, run_sink
from stagetrace import semconv
from stagetrace.causes.cause import WORDS

if TYPE_CHECKING:
    from backends import Collector, Jaeger

pytestmark = pytest.mark.usefixtures("services")

THRESHOLD_MS = 700  # far more than a request takes that waits for nothing, on a busy machine too
SLOW_S = 0.9
POLICY = f"POST /predict within {THRESHOLD_MS}ms for 99%; POST /async-predict within {THRESHOLD_MS}ms"
REQUESTS, SLOW = 16, 4
CODE = ("ml.py:34 in predict", "ml.py:42 in async_predict")  # what slow requests wait in
SIX_STAGES = {"network.receive", "queue", "preprocess", "inference", "postprocess", "network.send"}


def environment(endpoint: str, service_name: str) -> dict[str, str]:
    return recorded(endpoint, POLICY, OTEL_SERVICE_NAME=service_name, **AT_END)


def drive(service: Service) -> dict[str, bool]:
    """Make the requests, eight at a time, the slow ones first; return by trace id whether each was slow."""
    work = [(path, number < SLOW // 2) for number in range(REQUESTS // 2) for path in ("/predict", "/async-predict")]

    def ask(one: tuple[str, bool]) -> tuple[str, bool]:
        path, is_slow = one
        body = {"inference_s": 0.0, "preprocess_s": SLOW_S if is_slow else 0.0}
        trace_id, response = service.call("POST", path, json=body)
        assert response.status_code == 200
        return trace_id, is_slow

    with ThreadPoolExecutor(8) as pool:
        slow = dict(pool.map(ask, work))
    assert len(slow) == REQUESTS
    return slow


def wait_for_breaches(store: str, service_name: str, count: int) -> dict[str, Any]:
    """Ask until `count` breaches are there, then once more after a pause, to see any that are too many."""
    command = ("breaches", "--each", "--store", store, "--service", service_name, "--since", "15m")

    def are_there() -> bool:
        done = cli(*command, "--json")  # a service is unknown before its first span has come
        return done.returncode == 0 and len(json.loads(done.stdout)["breaches"]) >= count

    until(are_there)
    time.sleep(0.3)
    answer: dict[str, Any] = answered(*command)
    return answer


def check(answer: dict[str, Any], slow: dict[str, bool], service_name: str, *, waits: bool = True) -> None:
    """Check the breaches; `waits`: whether the wait for a thread is shown of each handler that is synchronous."""
    assert answer["complete"] is True
    assert sorted(breach["trace_id"] for breach in answer["breaches"]) == sorted(one for one in slow if slow[one])
    assert len(answer["breaches"]) == SLOW
    for breach in answer["breaches"]:
        assert breach["service"] == service_name
        assert breach["stage"] == "preprocess"
        assert breach["threshold_ms"] == THRESHOLD_MS
        assert breach["duration_ms"] > THRESHOLD_MS
        assert breach["overrun_ms"] == pytest.approx(breach["duration_ms"] - THRESHOLD_MS, abs=1e-6)
        assert sum(breach["stages"].values()) == pytest.approx(breach["duration_ms"], abs=1e-3)
        if waits:
            assert set(breach["stages"]) == SIX_STAGES - ({"queue"} if breach["route"] == "/async-predict" else set())
        else:
            assert set(breach["stages"]) | {"queue"} == SIX_STAGES
    starts = [breach["start_unix_nano"] for breach in answer["breaches"]]
    assert starts == sorted(starts, reverse=True)


SMOKE = ("uvicorn", "gunicorn", "hypercorn --workers 2", "python -m")


@pytest.mark.parametrize(
    "launcher", [pytest.param(one, marks=pytest.mark.smoke if one in SMOKE else ()) for one in LAUNCHERS]
)
def test_a_breach_is_delivered_at_the_end(launcher: str, tmp_path: Path) -> None:
    """Under the name of the application: each worker guesses that from its command line."""
    app = "ml" if launcher == "python -m" else "semantics"
    with run_sink() as sink:
        env = recorded(sink.endpoint, "* within 1us", **AT_END)
        with run_service(tmp_path, app, launcher, env=env) as service:
            calls = [service.call("GET", "/plain") for _ in range(3)]
            service.stop()
        for trace_id, response in calls:
            request = sink.request(trace_id)
            assert response.status_code == 200
            assert_tiled(request)
            assert request.entry.service == app
            assert request.entry.attributes["http.route"] == "/plain"
            assert request.entry.attributes["sla.verdict"] == "breach"


@pytest.mark.parametrize(
    ("launcher", "protocol"), list(zip(LAUNCHERS, itertools.cycle(["grpc", "http/protobuf"]), strict=False))
)
def test_breaches_are_the_slow_requests(
    launcher: str, protocol: str, collector: Collector, jaeger: Jaeger, tmp_path: Path
) -> None:
    """Stopped by SIGTERM right after the last answer, each finished request is delivered all the same."""
    name = f"launcher {launcher}"
    env = environment(collector.otlp_grpc if protocol == "grpc" else collector.otlp_http, name)
    env |= {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}
    with run_service(tmp_path, launcher=launcher, env=env) as service:
        slow = drive(service)
        service.stop()
    check(wait_for_breaches(jaeger.url, name, SLOW), slow, name)
    check_code(jaeger, slow, name)


def check_code(jaeger: Jaeger, slow: dict[str, bool], service_name: str) -> None:
    """Check that Jaeger finds slow requests by their line of code, and has the stack as an event."""
    found: list[str] = []
    for code in CODE:
        asked = {"service": service_name, "tags": json.dumps({semconv.SLA_BREACH_CODE: code})}
        traces = httpx.get(f"{jaeger.query_http}/api/traces", params=asked).raise_for_status().json()["data"]
        for trace in traces:
            assert slow[trace["traceID"]]
            events = [event for span in trace["spans"] for event in span["logs"]]
            texts = [{field["key"]: field["value"] for field in event["fields"]} for event in events]
            assert {text["event"] for text in texts} == {"stall"}
            path, _, rest = code.partition(":")
            line, _, function = rest.partition(" in ")
            assert any(f'File "{path}", line {line}, in {function}' in text[semconv.CODE_STACKTRACE] for text in texts)
            found.append(trace["traceID"])
    assert found  # a busy machine may not look at each one in time


@pytest.mark.parametrize("server", ["gunicorn", "gunicorn gthread", "waitress"])
def test_breaches_are_the_slow_requests_of_a_flask_service(
    server: str, collector: Collector, jaeger: Jaeger, tmp_path: Path
) -> None:
    """Waitress leaves SIGTERM alone: there it is Ctrl-C that ends it in good order."""
    name = f"flask {server}"
    env = environment(collector.otlp_grpc, name) | {"THREADS": "16"}  # else who waits for a thread is slow, too
    with run_service(tmp_path, argv=wsgi_command(server, "flask_ml"), env=env) as service:
        slow = drive(service)
        service.stop(signal.SIGINT if server == "waitress" else signal.SIGTERM)
    check(wait_for_breaches(jaeger.url, name, SLOW), slow, name, waits=False)


def test_breaches_are_the_slow_requests_where_no_pth_is_read(
    collector: Collector, jaeger: Jaeger, tmp_path: Path
) -> None:
    """A bare interpreter that finds everything through PYTHONPATH, where site reads no .pth file."""
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    python = str(bare / "bin" / "python")
    here = [
        str(Path(stagetrace.__file__).parents[1]),
        *(entry for entry in sys.path if entry.endswith("site-packages")),
    ]
    name = "no pth"
    env = environment(collector.otlp_grpc, name) | {"PYTHONPATH": os.pathsep.join(here)}
    uvicorn = [python, "-m", "uvicorn", "ml:app", "--port", "{port}"]

    loaded = [python, "-c", "import sys; print('stagetrace.activate' in sys.modules)"]
    asked = subprocess.run(loaded, env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=True)
    assert asked.stdout == "False\n", "a .pth file was read after all: the test shows nothing"

    run = [python, "-m", "stagetrace.cli.main", "run", "--", *uvicorn]
    with run_service(tmp_path, argv=run, env={k: v for k, v in env.items() if k != "STAGETRACE"}) as service:
        slow = drive(service)
        service.stop()
    check(wait_for_breaches(jaeger.url, name, SLOW), slow, name)


def test_under_one_per_mille_sampling_all_breaches_arrive_and_the_count_is_exact(
    collector: Collector, jaeger: Jaeger, tmp_path: Path
) -> None:
    name = "sampled"
    env = environment(collector.otlp_grpc, name) | {
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.001",
        "OTEL_METRICS_EXPORTER": "console",
    }
    with run_service(tmp_path, env=env) as service:
        slow = drive(service)
        service.stop()
        log = service.log
    check(wait_for_breaches(jaeger.url, name, SLOW), slow, name)
    assert f"judged {REQUESTS} requests, {SLOW} missed their objective" in log
    assert '"name": "sla.requests"' in log
    told = log.rpartition('"sla.breaches"')[2]
    counted = re.findall(r'"sla.breach.cause": "(\w+)"[^{}]*},[^{}]*"value": (\d+)', told)
    assert sum(int(count) for _, count in counted) == SLOW, log
    assert {cause for cause, _ in counted} <= set(WORDS)


def test_fail_makes_a_breach_the_exit_code(collector: Collector, jaeger: Jaeger, tmp_path: Path) -> None:
    name = "exit code"
    with run_service(tmp_path, env=environment(collector.otlp_grpc, name)) as service:
        service.call("POST", "/predict", json={"inference_s": SLOW_S})
        service.stop()
    wait_for_breaches(jaeger.url, name, 1)
    command = ("breaches", "--each", "--store", jaeger.url, "--service")
    assert process(*command, name, "--fail").returncode == 1
    assert "inference" in printed(*command, name)
    refused(*command, "no such service")


def test_a_prometheus_exporter_shows_breaches_by_cause_and_objectives(tmp_path: Path) -> None:
    port = free_port()
    env = environment("http://127.0.0.1:1", "scraped") | {
        "OTEL_TRACES_EXPORTER": "none",
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    with run_service(tmp_path, env=env) as service:
        for inference_s in (0.0, SLOW_S):
            service.call("POST", "/predict", json={"inference_s": inference_s})
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
    (line,) = (line for line in text.splitlines() if line.startswith("sla_breaches_total{"))
    assert f'sla_objective="POST /predict within {THRESHOLD_MS}ms"' in line
    assert re.search(rf'sla_breach_cause="({"|".join(WORDS)})"', line)
    assert line.endswith(" 1.0")
    for metric, value in {"sla_target": "0.99", "sla_threshold_milliseconds": f"{THRESHOLD_MS}.0"}.items():
        lines = [line for line in text.splitlines() if line.startswith(f"{metric}{{") and "POST /predict" in line]
        assert [line.rpartition(" ")[2] for line in lines] == [value]
