"""Which modules a service loads before its first response, and to deliver: bounded, and never what it need not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from otlp.receiver import run_receiver
from services import run_python, run_service
from sink import run_sink
from stagetrace.runtime.runtime import FOR_SOME_REQUESTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Who exceeds these says why in the commit: a module takes 0.3 ms of the start, its classes and patterns more.
MOST_OF_OURS = 144  # seven of them are the bridge to the API, which FastAPI imports
MOST_OF_OTHERS = 2
# What neither spans nor metrics need on their way.
NEVER = ("wrapt", "google.protobuf", "opentelemetry.proto", "opentelemetry.exporter", "opentelemetry.sdk")
NOT_OVER_HTTP = ("grpc", "requests", "urllib3", "certifi")

pytestmark = pytest.mark.usefixtures("services")


def loaded(folder: Path, env: dict[str, str], delivered: Callable[[], object]) -> tuple[set[str], set[str]]:
    """Return the modules of a service as its first request comes, and once it has `delivered`."""
    recording = {
        "STAGETRACE": "1",
        "STAGETRACE_SLA": "GET /predict within 50ms for 99.9%; * within 1s",
        "OTEL_METRIC_EXPORT_INTERVAL": "100",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "HOME": str(folder),
    }
    with run_service(folder, "first_modules", env={**recording, **env} if env else {}) as service:
        assert service.client.get("/predict").json() == [0]
        delivered()
        found = service.client.get("/health").json()
    return set(found["first"]), set(found["now"])


def of(packages: tuple[str, ...], modules: set[str]) -> list[str]:
    return sorted(name for name in modules if any(name == one or name.startswith(f"{one}.") for one in packages))


@pytest.fixture(scope="module")
def untraced(services: None, tmp_path_factory: pytest.TempPathFactory) -> set[str]:  # noqa: ARG001 -- marks the test
    return loaded(tmp_path_factory.mktemp("untraced"), {}, lambda: None)[1]


def test_over_http_a_service_loads_no_more_than_it_needs(untraced: set[str], tmp_path: Path) -> None:
    with run_receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
        paths = {"/v1/traces", "/v1/metrics"}
        first, now = loaded(tmp_path, env, lambda: receiver.wait_for(lambda one: paths <= {*one.paths}))
    first, now = first - untraced, now - untraced
    ours = {name for name in first if name.partition(".")[0] in ("stagetrace", "stagetrace_contrib")}
    assert len(ours) <= MOST_OF_OURS, sorted(ours)
    assert len(first - ours) <= MOST_OF_OTHERS, sorted(first - ours)
    assert of(FOR_SOME_REQUESTS, first) == []
    assert of((*NEVER, *NOT_OVER_HTTP), now) == []


def test_over_grpc_a_service_loads_no_classes_of_protobuf(untraced: set[str], tmp_path: Path) -> None:
    with run_sink() as sink:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint}
        _, now = loaded(tmp_path, env, lambda: sink.wait_for(lambda spans: bool(spans and sink.metrics)))
    now -= untraced
    assert "grpc" in now
    assert of(NEVER, now) == []


FORKED = """
import builtins, os, signal, sys, threading
from stagetrace.runtime import runtime

begun = threading.Event()
builtins.begun = begun.set
runtime.FOR_SOME_REQUESTS = ("no_such_module", "slow")
rest = runtime.Rest()
loading = threading.Thread(target=rest.load)
loading.start()
assert begun.wait(60)
child = os.fork()
if child == 0:
    signal.alarm(30)
    rest.load()
    import slow
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert not os.waitstatus_to_exitcode(os.waitpid(os.fork() or os._exit(0), 0)[1])
loading.join()
rest.load()
print("slow" in sys.modules)
"""


def test_a_fork_waits_for_what_is_imported_for_some_requests(tmp_path: Path) -> None:
    """A module whose import is under way in another thread never becomes complete in the child."""
    (tmp_path / "slow.py").write_text("import time\nbegun()\ntime.sleep(0.3)\n")
    done = run_python("-c", FORKED, PYTHONPATH=str(tmp_path), STAGETRACE_LOG="error")
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
    assert "stagetrace.runtime.runtime._import failed (ModuleNotFoundError" in done.stderr


LATE = """
import sys, time
from stagetrace.runtime import runtime

runtime.runtime._worker.idle_every_s = 0.05
runtime.runtime.prepare_now()
assert not any(name in sys.modules for name in runtime.FOR_SOME_REQUESTS)
deadline = time.monotonic() + 60
while not all(name in sys.modules for name in runtime.FOR_SOME_REQUESTS):
    assert time.monotonic() < deadline
    time.sleep(0.01)
"""


def test_what_some_requests_need_is_imported_once_nothing_else_is_to_be_done() -> None:
    done = run_python("-c", LATE, STAGETRACE_SLA="* within 1s", OTEL_TRACES_EXPORTER="none", STAGETRACE_STATUS="0")
    assert done.returncode == 0, done.stderr
