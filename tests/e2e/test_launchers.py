"""The main job, under each way to start a service: through the real Collector into the real Jaeger, and back.

The set of traces that `stagetrace breaches` names equals the set of requests that the client knows to be slow.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import stagetrace
from backends import free_port
from services import LAUNCHERS, PYTHON, Service, run_service, wsgi_command
from stagetrace.sla.cause import WORDS

if TYPE_CHECKING:
    from backends import Collector, Jaeger

pytestmark = pytest.mark.usefixtures("services")

SLOW_S = 0.7
POLICY = "POST /predict within 350ms for 99%; POST /async-predict within 350ms"
SIX_STAGES = {"network.receive", "queue", "preprocess", "inference", "postprocess", "network.send"}


def environment(endpoint: str, service_name: str) -> dict[str, str]:
    return {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": POLICY,
        "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
        "OTEL_SERVICE_NAME": service_name,
        # Far longer than the test: what arrives was delivered by the flush at the end.
        "OTEL_BSP_SCHEDULE_DELAY": "600000",
    }


def drive(service: Service) -> dict[str, bool]:
    """Make 24 requests, eight at a time; return by trace id whether each was slow."""
    slow: dict[str, bool] = {}
    work = [(path, number % 4 == 0) for path in ("/predict", "/async-predict") for number in range(12)]

    def ask() -> None:
        while work:
            path, is_slow = work.pop()
            body = {"inference_s": 0.0, "preprocess_s": SLOW_S if is_slow else 0.0}
            trace_id, response = service.call("POST", path, json=body)
            assert response.status_code == 200
            slow[trace_id] = is_slow

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(slow) == 24
    return slow


def breaches(store: str, service_name: str, *more: str) -> subprocess.CompletedProcess[str]:
    argv = [PYTHON, "-m", "stagetrace.cli.main", "breaches", "--store", store, "--service", service_name, *more]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def wait_for_breaches(store: str, service_name: str, count: int) -> dict[str, Any]:
    """Ask until `count` breaches are there, then once more after a pause, to see any that are too many."""
    deadline = time.monotonic() + 30
    while True:
        asked = breaches(store, service_name, "--since", "15m", "--json")
        found = json.loads(asked.stdout) if asked.returncode == 0 else {"breaches": []}
        if len(found["breaches"]) >= count or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    time.sleep(0.5)
    asked = breaches(store, service_name, "--since", "15m", "--json")
    assert asked.returncode == 0, asked.stderr
    answer: dict[str, Any] = json.loads(asked.stdout)
    return answer


def check(answer: dict[str, Any], slow: dict[str, bool], service_name: str, *, waits: bool = True) -> None:
    """Check the breaches; `waits`: whether the wait for a thread is shown of each handler that is synchronous."""
    assert answer["complete"] is True
    assert {breach["trace_id"] for breach in answer["breaches"]} == {
        trace for trace, is_slow in slow.items() if is_slow
    }
    assert len(answer["breaches"]) == 6
    for breach in answer["breaches"]:
        assert breach["service"] == service_name
        assert breach["stage"] == "preprocess"
        assert breach["threshold_ms"] == 350
        assert breach["duration_ms"] > 350
        assert breach["overrun_ms"] == pytest.approx(breach["duration_ms"] - 350, abs=1e-6)
        assert sum(breach["stages"].values()) == pytest.approx(breach["duration_ms"], abs=1e-3)
        if waits:
            assert set(breach["stages"]) == SIX_STAGES - ({"queue"} if breach["route"] == "/async-predict" else set())
        else:
            assert set(breach["stages"]) | {"queue"} == SIX_STAGES
    starts = [breach["start_unix_nano"] for breach in answer["breaches"]]
    assert starts == sorted(starts, reverse=True)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_breaches_are_the_slow_requests(launcher: str, collector: Collector, jaeger: Jaeger, tmp_path: Path) -> None:
    """Stopped by SIGTERM right after the last answer, each finished request is delivered all the same."""
    name = f"launcher {launcher}"
    with run_service(tmp_path, launcher=launcher, env=environment(collector.otlp_grpc, name)) as service:
        slow = drive(service)
        service.stop()
    check(wait_for_breaches(jaeger.url, name, 6), slow, name)


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
    check(wait_for_breaches(jaeger.url, name, 6), slow, name, waits=False)


def test_breaches_are_the_slow_requests_over_http(collector: Collector, jaeger: Jaeger, tmp_path: Path) -> None:
    name = "over http"
    env = environment(collector.otlp_http, name) | {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    with run_service(tmp_path, env=env) as service:
        slow = drive(service)
        service.stop()
    check(wait_for_breaches(jaeger.url, name, 6), slow, name)


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

    with run_service(tmp_path, argv=uvicorn, env=env) as service:
        service.call("POST", "/predict", json={})
        service.stop()
        assert "stagetrace" not in service.log, "a .pth file was read after all: the test shows nothing"

    run = [python, "-m", "stagetrace.cli.main", "run", "--", *uvicorn]
    with run_service(tmp_path, argv=run, env={k: v for k, v in env.items() if k != "STAGETRACE"}) as service:
        slow = drive(service)
        service.stop()
    check(wait_for_breaches(jaeger.url, name, 6), slow, name)


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
    check(wait_for_breaches(jaeger.url, name, 6), slow, name)
    assert "judged 24 requests, 6 broke their promise" in log
    assert '"name": "sla.requests"' in log
    told = log.rpartition('"sla.breaches"')[2]
    counted = re.findall(r'"sla.breach.cause": "(\w+)"[^{}]*},[^{}]*"value": (\d+)', told)
    assert sum(int(count) for _, count in counted) == 6, log
    assert {cause for cause, _ in counted} <= set(WORDS)


def test_fail_makes_a_breach_the_exit_code(collector: Collector, jaeger: Jaeger, tmp_path: Path) -> None:
    name = "exit code"
    with run_service(tmp_path, env=environment(collector.otlp_grpc, name)) as service:
        service.call("POST", "/predict", json={"inference_s": SLOW_S})
        service.stop()
    wait_for_breaches(jaeger.url, name, 1)
    assert breaches(jaeger.url, name, "--fail").returncode == 1
    table = breaches(jaeger.url, name)
    assert table.returncode == 0
    assert "inference" in table.stdout
    assert breaches(jaeger.url, "no such service").returncode == 2


def test_a_prometheus_exporter_shows_breaches_by_cause(tmp_path: Path) -> None:
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
    assert 'sla_objective="POST /predict within 350ms"' in line
    assert re.search(rf'sla_breach_cause="({"|".join(WORDS)})"', line)
    assert line.endswith(" 1.0")
