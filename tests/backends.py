"""Run the real Jaeger, Collector, Prometheus and Alertmanager on free ports, with the files of collector-config/.

For the tests and for examples/demo.py; needs nothing but the standard library and what `make backends` built.
"""

from __future__ import annotations

import http.client
import itertools
import os
import random
import re
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
# As when the tests began, some of which give a process another home. `build.sh` builds into BUILT.
_CACHES = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE = Path(os.environ.get("STAGETRACE_CACHE") or _CACHES / "stagetrace")
BUILT = CACHE / "bin"
CONFIG = Path(__file__).parent.parent / "collector-config"
READY_WITHIN_S = 30
STOP_WITHIN_S = 10
_JAEGER_PORTS = {
    "query_grpc": "JAEGER_QUERY_GRPC_PORT",
    "query_http": "JAEGER_QUERY_HTTP_PORT",
    "otlp_grpc": "JAEGER_OTLP_GRPC_PORT",
    "otlp_http": "JAEGER_OTLP_HTTP_PORT",
}


class BackendMissing(Exception):  # noqa: N818 - reads as what it says
    """Report which binary is not built, and how to build it."""


class BackendFailed(Exception):  # noqa: N818
    """Report which process did not become ready, with the end of its log."""


@dataclass(frozen=True)
class Jaeger:
    """The addresses of a running Jaeger."""

    query_grpc: str
    query_http: str
    otlp_grpc: str
    otlp_http: str
    pid: int

    @property
    def url(self) -> str:
        """Return the URL for `stagetrace --store`."""
        return f"jaeger://{self.query_grpc}"


@dataclass(frozen=True)
class Collector:
    """The addresses of a running Collector."""

    otlp_grpc: str
    otlp_http: str
    metrics: str
    pid: int


def binary(name: str) -> Path:
    """Return what `make backends` has built, as `jaeger`, `otelcol` or `helm`: STAGETRACE_<NAME>, or as built.

    Raise BackendMissing.
    """
    variable = f"STAGETRACE_{name.upper()}"
    path = Path(os.environ.get(variable) or BUILT / name)
    if not os.access(path, os.X_OK):
        message = f"The real {name} is needed, and {path} is not there: run `make backends` (once; it needs Go)."
        if os.environ.get(variable):
            message = f"{variable} names {path}, which cannot be executed: correct it, or unset it."
        raise BackendMissing(message)
    return path


def _own_ports() -> Iterator[int]:
    """Yield ports that no other process of this test run yields, each once a round.

    They are below the range of the kernel for outgoing connections: one of these could otherwise take the port before
    its server does, or while that restarts.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    first, size = (20_000 + 1_500 * (int(worker[2:]) % 8), 1_500) if worker else (20_000, 12_000)
    offset = random.randrange(size)
    for number in itertools.count(offset):
        yield first + number % size


_ports = _own_ports()


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port
    raise AssertionError


@contextmanager
def run_jaeger(
    folder: Path,
    storage: Literal["memory", "badger"] = "memory",
    *,
    again: Jaeger | None = None,
    prometheus: str = "http://127.0.0.1:9",
    also: str = "",
) -> Iterator[Jaeger]:
    """Run Jaeger until the block ends; badger keeps its spans in `folder` for the next run there.

    `again` is an earlier Jaeger whose ports are used again, as after a restart. `prometheus`: where it asks for metrics
    of spans. `also`: more configuration, as YAML.
    """
    *free, health = (free_port() for _ in range(len(_JAEGER_PORTS) + 1))
    ports = dict(zip(_JAEGER_PORTS, free, strict=True))
    if again is not None:
        ports = {name: int(getattr(again, name).rpartition(":")[2]) for name in _JAEGER_PORTS}
    settings = {variable: str(ports[name]) for name, variable in _JAEGER_PORTS.items()}
    settings |= {"JAEGER_LISTEN_HOST": LOOPBACK, "JAEGER_HEALTH_PORT": str(health)}
    settings |= {"JAEGER_BADGER_DIR": str(folder / "badger"), "JAEGER_PROMETHEUS_URL": prometheus}
    settings |= {"JAEGER_UI_CONFIG": str(CONFIG / "jaeger-ui.json")}
    files = ["jaeger.yaml", *(["jaeger-memory.yaml"] if storage == "memory" else [])]
    with _run("jaeger", files, settings, folder, (health, "/status"), also) as process:
        yield Jaeger(
            query_grpc=f"{LOOPBACK}:{ports['query_grpc']}",
            query_http=f"http://{LOOPBACK}:{ports['query_http']}",
            otlp_grpc=f"http://{LOOPBACK}:{ports['otlp_grpc']}",
            otlp_http=f"http://{LOOPBACK}:{ports['otlp_http']}",
            pid=process.pid,
        )


@contextmanager
def run_collector(
    folder: Path, jaeger: Jaeger, *, ports: list[int] | None = None, also: str = ""
) -> Iterator[Collector]:
    """Run a Collector that sends to `jaeger` until the block ends; its queue stays in `folder` for the next.

    `ports` are those for OTLP over gRPC, over HTTP and for its health. `also`: more configuration, as YAML.
    """
    metrics, *free = (free_port() for _ in range(4))
    grpc, http_port, health = ports or free
    settings = {
        "COLLECTOR_LISTEN_HOST": LOOPBACK,
        "COLLECTOR_OTLP_GRPC_PORT": str(grpc),
        "COLLECTOR_OTLP_HTTP_PORT": str(http_port),
        "COLLECTOR_HEALTH_PORT": str(health),
        "COLLECTOR_METRICS_PORT": str(metrics),
        "COLLECTOR_METRICS_INTERVAL": "1s",
        "COLLECTOR_QUEUE_DIR": str(folder / "queue"),
        "JAEGER_OTLP_ENDPOINT": jaeger.otlp_grpc.removeprefix("http://"),
    }
    with _run("otelcol", ["collector.yaml"], settings, folder, (health, "/"), also) as process:
        yield Collector(
            otlp_grpc=f"http://{LOOPBACK}:{grpc}",
            otlp_http=f"http://{LOOPBACK}:{http_port}",
            metrics=f"http://{LOOPBACK}:{metrics}/metrics",
            pid=process.pid,
        )


@contextmanager
def run_prometheus(
    folder: Path, collector: Collector, port: int, *, rules: str = "", alertmanager: str = ""
) -> Iterator[str]:
    """Run a Prometheus that reads the metrics of `collector` until the block ends, each second; yield its address.

    `rules`: the text of a rule file, evaluated each second. `alertmanager`: the address to which it sends alerts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config, rule_file = folder / "prometheus.yaml", folder / "rules.yaml"
    rule_file.write_text(rules, "utf-8")
    text = (CONFIG / "prometheus.yaml").read_text("utf-8").replace("_interval: 15s", "_interval: 1s")
    text = text.replace("collector:8889", collector.metrics.removeprefix("http://").removesuffix("/metrics"))
    text = text.replace("/etc/stagetrace/rules/*.yaml", str(rule_file))
    text = text.replace("alertmanager:9093", alertmanager.removeprefix("http://") or f"{LOOPBACK}:9")
    config.write_text(text, "utf-8")
    command = [
        *(str(binary("prometheus")), f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}"),
        *(f"--web.listen-address={LOOPBACK}:{port}", "--enable-feature=exemplar-storage"),
    ]
    with _process("prometheus", command, {}, folder, (port, "/-/ready")):
        yield f"http://{LOOPBACK}:{port}"


@contextmanager
def run_alertmanager(folder: Path, webhook: str = "") -> Iterator[str]:
    """Run an Alertmanager that posts to the URL `webhook`, within a second, until the block ends; yield its address."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "alertmanager.yaml"
    text = re.sub(r"(group_wait|group_interval): \w+", r"\1: 1s", (CONFIG / "alertmanager.yaml").read_text("utf-8"))
    config.write_text(text + (f"    webhook_configs: [{{url: '{webhook}'}}]\n" if webhook else ""), "utf-8")
    port = free_port()
    command = [
        *(str(binary("alertmanager")), f"--config.file={config}", f"--storage.path={folder / 'alertmanager'}"),
        *(f"--web.listen-address={LOOPBACK}:{port}", "--cluster.listen-address="),
    ]
    with _process("alertmanager", command, {}, folder, (port, "/-/ready")):
        yield f"http://{LOOPBACK}:{port}"


@contextmanager
def _run(
    name: str, files: list[str], settings: dict[str, str], folder: Path, health: tuple[int, str], also: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process until the block ends, which begins once GET `health` (port, path) answers 200."""
    folder.mkdir(parents=True, exist_ok=True)
    more = folder / "also.yaml"
    more.write_text(also)
    paths = [*(CONFIG / file for file in files), *([more] if also else [])]
    command = [str(binary(name)), *(f"--config={path}" for path in paths)]
    with _process(name, command, settings, folder, health) as process:
        yield process


@contextmanager
def _process(
    name: str, command: list[str], settings: dict[str, str], folder: Path, health: tuple[int, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command until the block ends, which begins as `_run` says; its log is in `folder`."""
    # These processes read OTEL_* themselves, which is meant for the traced service.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        # A session of its own: Ctrl-C reaches only the caller, who then stops the processes in order.
        process = subprocess.Popen(
            command, cwd=folder, env=inherited | settings, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_ready(process, log, health)
        yield process
    finally:
        _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, health: tuple[int, str]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while not _is_ready(*health):
        if process.poll() is not None:
            problem = f"ended with {process.returncode}"
        elif time.monotonic() > deadline:
            problem = f"was not ready within {READY_WITHIN_S} s"
        else:
            time.sleep(0.05)
            continue
        tail = "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-15:])
        message = f"{log.stem} {problem}. The end of {log}:\n{tail}"
        raise BackendFailed(message)


def _is_ready(port: int, path: str) -> bool:
    """Report whether GET of a path answers 200, or without one whether there is a listener."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    try:
        if not path:
            connection.connect()
            return True
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_WITHIN_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
