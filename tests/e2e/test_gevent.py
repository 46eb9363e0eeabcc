"""In servers whose greenlets replace threads, an export delays no request, and each request has its own stages."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from at_once import at_once
from otlp.receiver import run_receiver
from services import recorded, run_service, wsgi_command
from sink import assert_tiled, run_sink

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

SERVERS = ["gunicorn gevent", "gevent", "werkzeug gevent"]
# Each server once, and one of them with both protocols.
PAIRS = [
    ("gunicorn gevent", "grpc"),
    ("gunicorn gevent", "http/protobuf"),
    ("gevent", "grpc"),
    ("werkzeug gevent", "http/protobuf"),
]


IMPORTS = "a greenlet that wants the same module then would fail or wait for ever: the locks are gevent's"
METRICS = {
    "OTEL_TRACES_EXPORTER": "none",
    "OTEL_METRICS_EXPORTER": "otlp",
    "OTEL_METRIC_EXPORT_INTERVAL": "500",
}


@pytest.mark.parametrize(
    ("server", "more"),
    [
        *((server, {"OTEL_EXPORTER_OTLP_PROTOCOL": protocol}) for server, protocol in PAIRS),
        pytest.param("gunicorn gevent", METRICS, id="metrics"),
    ],
)
def test_a_receiver_that_never_answers_keeps_no_request_waiting(
    server: str, more: dict[str, str], tmp_path: Path
) -> None:
    """Neither of spans nor of metrics. The exporter waits for it far longer than a client here for an answer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        more = {"OTEL_EXPORTER_OTLP_TIMEOUT": "100", "OTEL_BSP_SCHEDULE_DELAY": "100", **more}
        env = recorded(f"http://127.0.0.1:{silent.getsockname()[1]}", **more)
        argv = wsgi_command(server, "flask_light")
        with run_service(tmp_path, argv=argv, env=env) as service, silent.accept()[0] as exporter:
            assert exporter.recv(1)  # it has begun to send
            for _ in range(10):
                assert service.call("POST", "/predict", json={"inference_s": 0.01}, timeout=60)[1].json() == [0]
            service.stop()


@pytest.mark.parametrize("server", SERVERS)
def test_requests_that_share_a_thread_have_their_own_stages(server: str, tmp_path: Path) -> None:
    argv = wsgi_command(server, "flask_imports")
    with run_sink() as sink, run_service(tmp_path, argv=argv, env=recorded(sink.endpoint)) as service:
        seconds = [0.01 * number for number in range(1, 25)]

        def ask(preprocess_s: float) -> str:
            inference_s = 0.3 - preprocess_s
            body = {"preprocess_s": preprocess_s, "inference_s": inference_s, "postprocess_s": 0.02}
            trace_id, response = service.call("POST", "/predict", json=body)
            assert response.json() == [inference_s]
            return trace_id

        requests = [sink.request(trace_id) for trace_id in at_once(ask, seconds)]
        assert service.call("GET", "/imported")[1].json() == [], IMPORTS
    for request, preprocess_s in zip(requests, seconds, strict=True):
        assert_tiled(request)
        assert request.entry.name == "POST /predict"
        assert request.total_ns("preprocess") >= preprocess_s * 1e9
        assert request.total_ns("inference") >= (0.3 - preprocess_s) * 1e9
        assert request.total_ns("postprocess") >= 0.02e9
        (inference,) = [stage for stage in request.stages if stage.name == "inference"]
        # The thread's: others had it.
        assert not [name for name in inference.attributes if name.startswith("stagetrace.cpu.")]


def test_no_thread_of_ours_imports_anything_for_an_export_over_http(tmp_path: Path) -> None:
    with run_receiver() as receiver:
        env = recorded(receiver.http, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", OTEL_BSP_SCHEDULE_DELAY="50")
        with run_service(tmp_path, argv=wsgi_command("gunicorn gevent", "flask_imports"), env=env) as service:
            assert service.call("POST", "/predict", json={"inference_s": 0.01})[1].json() == [0.01]
            receiver.wait_for(lambda found: "POST /predict" in found.names())
            assert service.call("GET", "/imported")[1].json() == [], IMPORTS
