"""Share between benchmarks: the set-ups to compare, how one is started and loaded, statistics, tables."""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.load import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
READY_WITHIN_S = 60
STOP_WITHIN_S = 20
# The last, half-filled batch leaves after this and not after the default of five seconds, so that a short wait takes
# all exports into the measurement. Under load a batch is full, and leaves, earlier than either.
EXPORT_DELAY_MS = 1000
SETTLE_S = 1.3
HTTP_ENDPOINT = "{receiver}"  # in a variant's environment: that of its receiver
Z_95 = 1.96  # of a 95 % interval
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, OTHER_CORE = CORES[0], CORES[-1]


@dataclass(frozen=True)
class Variant:
    """One way of running the service: the prefix of its command line, additions to its environment, its Python."""

    name: str
    wrapper: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable


def only(*instrumentations: str) -> dict[str, str]:
    """Return the variables that keep opentelemetry-instrument from switching on other installed packages."""
    installed = {point.name for point in entry_points(group="opentelemetry_instrumentor")}
    return {"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": ",".join(sorted(installed - set(instrumentations)))}


# Traces alone are compared: opentelemetry-instrument would also send metrics and logs.
INSTRUMENT = (str(BIN / "opentelemetry-instrument"), "--metrics_exporter", "none", "--logs_exporter", "none")
RECORDING = {"STAGETRACE": "1", "STAGETRACE_SLA": "POST /predict within 50ms for 99.9%; * within 1s"}
ONE_PERCENT = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}

UNTRACED = Variant("untraced")
STOCK = Variant("stock", INSTRUMENT, only("fastapi"))
STAGETRACE = Variant("stagetrace", (), RECORDING)
STOCK_SAMPLED = Variant("stock, 1 % sampled", INSTRUMENT, {**STOCK.env, **ONE_PERCENT})
STAGETRACE_SAMPLED = Variant("stagetrace, 1 % sampled", (), {**RECORDING, **ONE_PERCENT})
VARIANTS = (UNTRACED, STOCK, STAGETRACE, STOCK_SAMPLED, STAGETRACE_SAMPLED)


def progress(text: str) -> None:
    """Print the progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def rotated(variants: Sequence[T], number: int) -> list[T]:
    """Return the variants in the order of one round: each is first in turn, so that none profits from its place."""
    first = number % len(variants)
    return [*variants[first:], *variants[:first]]


# --- processes


def clean_environment() -> dict[str, str]:
    """Return this environment without variables that switch any recording on."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "STAGETRACE", "PYTHON"))}


def start(argv: Sequence[str], *cores: int, **options: Any) -> subprocess.Popen[str]:
    """Start a process on one core, or several; it is bound before it has threads, which inherit that."""
    process = subprocess.Popen(argv, cwd=HERE, text=True, **options)
    os.sched_setaffinity(process.pid, cores)
    return process


@dataclass(frozen=True)
class Receiver:
    """The running receiver: its OTLP/gRPC endpoint, and its HTTP endpoint."""

    endpoint: str
    http_endpoint: str
    process: subprocess.Popen[str]

    def take(self) -> int:
        """Return the number of spans received since the last call."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def run_receiver() -> Iterator[Receiver]:
    """Run a receiver until the block ends."""
    argv = [sys.executable, str(HERE / "receiver.py")]
    pipe = subprocess.PIPE
    with start(argv, OTHER_CORE, env=clean_environment(), stdin=pipe, stdout=pipe) as process:
        assert process.stdout
        endpoint, http_endpoint = process.stdout.readline().split()
        yield Receiver(endpoint, http_endpoint, process)
        assert process.stdin
        process.stdin.close()


@dataclass(frozen=True)
class Server:
    """A running service, with the wall and CPU seconds that it took until its first response."""

    port: int
    pid: int
    ready_s: float
    ready_cpu_s: float
    gc_file: Path

    def load(self, *options: str) -> dict[str, Any]:
        """Run the load generator against it; return its measurements."""
        argv = [sys.executable, str(HERE / "load.py"), "--port", str(self.port), "--pid", str(self.pid), *options]
        if self.gc_file.exists():
            argv += ["--gc-file", str(self.gc_file)]
        with start(argv, OTHER_CORE, env=clean_environment(), stdout=subprocess.PIPE) as generator:
            output, _ = generator.communicate()
        if generator.returncode:
            raise SystemExit("the load generator failed")
        measured: dict[str, Any] = json.loads(output)
        return measured

    def rss_mb(self) -> float:
        """Return the resident memory now."""
        return status_kb(Path(f"/proc/{self.pid}/status").read_text(), "VmRSS") / 1024


def environment_of(variant: Variant, receiver: Receiver) -> dict[str, str]:
    """Return the environment in which a variant runs, sending to the receiver."""
    return {
        **clean_environment(),
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_SERVICE_NAME": "bench",
        "OTEL_BSP_SCHEDULE_DELAY": str(EXPORT_DELAY_MS),
        **{key: value.replace(HTTP_ENDPOINT, receiver.http_endpoint) for key, value in variant.env.items()},
    }


@contextmanager
def serve(variant: Variant, receiver: Receiver, app: str = "app:app") -> Iterator[Server]:
    """Run the service of a variant until the block ends; app_gc:app records its garbage collector."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [variant.python, "-m", "uvicorn", app, "--port", str(port), "--no-access-log"]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as log:
        gc_file = Path(folder) / "gc"
        environment = {**environment_of(variant, receiver), "BENCH_GC_FILE": str(gc_file)}
        started = time.perf_counter()
        process = start([*variant.wrapper, *command], SERVER_CORE, env=environment, stdout=log, stderr=log)
        try:
            if not _answers(process, port):
                log.seek(0)
                raise SystemExit(f"{variant.name}: the service did not get ready:\n{log.read()[-4000:]}")
            yield Server(port, process.pid, time.perf_counter() - started, cpu_seconds(process.pid), gc_file)
        finally:
            process.terminate()
            process.wait(STOP_WITHIN_S)


def run(variant: Variant, receiver: Receiver, script: str, *options: str, cores: Sequence[int] = ()) -> dict[str, Any]:
    """Run a script of this folder as a variant, to its end; return the JSON object that it prints.

    It runs on the server's core alone unless `cores` names others.
    """
    argv = [*variant.wrapper, variant.python, str(HERE / script), *options]
    with tempfile.TemporaryFile("w+") as log:
        options_ = {"env": environment_of(variant, receiver), "stdout": subprocess.PIPE, "stderr": log}
        process = start(argv, *(cores or (SERVER_CORE,)), **options_)
        output, _ = process.communicate()
        if process.returncode:
            log.seek(0)
            raise SystemExit(f"{variant.name}: {script} failed:\n{log.read()[-4000:]}")
    measured: dict[str, Any] = json.loads(output)
    return measured


@dataclass(frozen=True)
class InTurns:
    """A script of this folder that runs as a variant, and makes as many requests as it is asked for at a time."""

    variant: Variant
    receiver: Receiver
    process: subprocess.Popen[str]

    def ask(self, requests: int) -> None:
        """Have it make so many requests, and wait for their end."""
        assert self.process.stdin
        self.process.stdin.write(f"{requests}\n")
        self.process.stdin.flush()
        self.wait()

    def wait(self) -> None:
        """Wait until it is ready for requests."""
        assert self.process.stdout
        if not self.process.stdout.readline():
            self.process.wait(STOP_WITHIN_S)
            raise SystemExit(f"{self.variant.name} has ended with {self.process.returncode}")

    def end(self) -> dict[str, Any]:
        """Let it end; return the JSON object that it prints."""
        output, _ = self.process.communicate()
        measured: dict[str, Any] = json.loads(output)
        return measured


@contextmanager
def running_in_turns(variant: Variant, script: str, *options: str) -> Iterator[InTurns]:
    """Run a script with `--in-turns` as a variant, on the server's core, with a receiver of its own."""
    argv = [*variant.wrapper, variant.python, str(HERE / script), "--in-turns", *options]
    pipe = subprocess.PIPE
    with run_receiver() as receiver, tempfile.TemporaryFile("w+") as log:
        options_ = {"env": environment_of(variant, receiver), "stdin": pipe, "stdout": pipe, "stderr": log}
        process = start(argv, SERVER_CORE, **options_)
        try:
            yield InTurns(variant, receiver, process)
        finally:
            if process.poll():
                log.seek(0)
                progress(f"{variant.name}: {script} failed:\n{log.read()[-4000:]}")
            process.kill()
            process.wait(STOP_WITHIN_S)


def _answers(process: subprocess.Popen[str], port: int) -> bool:
    """Return whether the service responds within READY_WITHIN_S."""
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_WITHIN_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except ConnectionRefusedError:
            time.sleep(0.002)
        finally:
            connection.close()
    return False


def status_kb(status: str, name: str) -> int:
    """Return one size from the text of /proc/PID/status."""
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))


# --- statistics


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some rounds."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def text(self, digits: int = 0, unit: str = "") -> str:
        return f"{self.median:.{digits}f}{unit} ({self.least:.{digits}f} to {self.greatest:.{digits}f})"


def differences(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return the difference of each round's value from the base of the same round."""
    return [value - other for value, other in zip(values, base, strict=True)]


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return each round's value as a multiple of the base of the same round."""
    return [value / other for value, other in zip(values, base, strict=True)]


def bootstrap(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return a 95 % interval of the median."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]


def wilson(right: int, whole: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share."""
    if not whole:
        return 0.0, 1.0
    share, square = right / whole, Z_95 * Z_95
    middle = (share + square / (2 * whole)) / (1 + square / whole)
    half = Z_95 / (1 + square / whole) * math.sqrt(share * (1 - share) / whole + square / (4 * whole * whole))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that `share` of the sorted values do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# --- output


@dataclass(frozen=True)
class Table:
    """A titled table; `text` is Markdown that also reads well in a terminal."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        lines = [list(self.columns), *map(list, self.rows)]
        widths = [max(len(line[at]) for line in lines) for at in range(len(self.columns))]
        drawn = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
        drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([self.title, "", *drawn, ""])


def text(tables: Sequence[Table], reading: Sequence[str]) -> str:
    """Return tables and what they mean, as Markdown."""
    return "\n".join([*(table.text() for table in tables), *(f"- {line}" for line in reading)])


def parser(description: str | None, example: str) -> argparse.ArgumentParser:
    """Return a parser with the options of all benchmarks."""
    made = argparse.ArgumentParser(
        description=description, epilog=f"example: {example}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="write all rounds as JSON, too")
    return made


def show(
    result: Any, tables: Callable[[Any], Sequence[Table]], reading: Callable[[Any], Sequence[str]], file: Path | None
) -> None:
    """Print the tables of a result and what they mean, and write it to `file` if one is given."""
    print(text(tables(result), reading(result)))
    if file is not None:
        file.write_text(json.dumps(asdict(result), indent=1))
        progress(f"wrote {file}")
