"""A row of the table of recorded headers holds for HTTP and gRPC alike: its attribute is on the entry span."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from instrumentation import grpc_client
from services import run_service, wsgi_command
from sink import run_sink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

# Run by each process before anything else.
ROW = """
from stagetrace.protocols.http_headers import RECORDED

RECORDED["x-tenant"] = "stagetrace.tenant"
"""
LIMIT = 60


@contextmanager
def called(app: str, folder: Path, env: dict[str, str]) -> Iterator[Callable[[dict[str, str]], str]]:
    """Run a service; yield what makes a request with headers and returns its trace id."""
    if app.startswith("grpc"):
        with grpc_client.run_service(folder, app, env) as rpcs:
            yield lambda headers: rpcs.call("Predict", metadata=tuple(headers.items()))[0]
    else:
        argv = wsgi_command("gunicorn gthread", app) if app.startswith("flask") else None
        with run_service(folder, app, env=env, argv=argv) as service:
            yield lambda headers: service.call("GET", "/health", headers=headers)[0]


@pytest.mark.parametrize("app", ["any_starlette", "flask_light", "grpc_threads", "grpc_aio"])
def test_a_header_of_the_table_is_recorded(app: str, tmp_path: Path) -> None:
    """Its value is cut where it is too long, and the cut is counted; a request without the header has nothing."""
    (tmp_path / "sitecustomize.py").write_text(ROW)
    found = []
    with run_sink() as sink:
        env = {
            "STAGETRACE": "1",
            "PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", ""))),
            "OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
            "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": str(LIMIT),
        }
        with called(app, tmp_path, env) as call:
            for headers in ({"x-tenant": "blue"}, {"x-tenant": "b" * (LIMIT + 1)}, {}):
                attributes = sink.request(call(headers)).entry.attributes
                found.append((attributes.get("stagetrace.tenant"), attributes.get("stagetrace.truncated_attributes")))
    assert found == [("blue", None), ("b" * LIMIT, 1), (None, None)]
