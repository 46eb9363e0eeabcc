"""What the benchmarks share: the set-ups to compare, how one is started and loaded, statistics, tables."""

from __future__ import annotations

import argparse
import http.client
import json
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.load import cpu_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

HERE = Path(__file__).resolve().parent
BIN = Path(sys.executable).parent
READY_WITHIN_S = 60
STOP_WITHIN_S = 20
# The last, half-filled batch leaves after this and not after the default of five seconds, so that a short wait takes
# all exports into the measurement. Under load a batch is full, and leaves, earlier than either.
EXPORT_DELAY_MS = 1000
SETTLE_S = 1.3
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, OTHER_CORE = CORES[0], CORES[-1]


@dataclass(frozen=True)
class Variant:
    """One way of running the service: what stands before its command line, and what its environment adds."""

    name: str
    wrapper: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)


# Traces alone are compared: opentelemetry-instrument would also send metrics and logs.
INSTRUMENT = (str(BIN / "opentelemetry-instrument"), "--metrics_exporter", "none", "--logs_exporter", "none")
PROMISE = {"STAGETRACE": "1", "STAGETRACE_SLA": "POST /predict within 50ms for 99.9%; * within 1s"}
ONE_PERCENT = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}

UNTRACED, STOCK, STAGETRACE = Variant("untraced"), Variant("stock", INSTRUMENT), Variant("stagetrace", (), PROMISE)
VARIANTS = (
    UNTRACED,
    STOCK,
    STAGETRACE,
    Variant("stock, 1 % sampled", INSTRUMENT, ONE_PERCENT),
    Variant("stagetrace, 1 % sampled", (), {**PROMISE, **ONE_PERCENT}),
)


def progress(text: str) -> None:
    """Say what is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def rotated(variants: Sequence[Variant], number: int) -> list[Variant]:
    """Return the variants in the order of one round: each comes first in turn, so that none profits from its place."""
    first = number % len(variants)
    return [*variants[first:], *variants[:first]]


# --- processes


def clean_environment() -> dict[str, str]:
    """Return this environment without what switches any recording on."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("OTEL_", "STAGETRACE", "PYTHON"))}


def start(argv: Sequence[str], core: int, **options: Any) -> subprocess.Popen[str]:
    """Start a process on one core; it is bound before it has threads, which inherit that."""
    process = subprocess.Popen(argv, cwd=HERE, text=True, **options)
    os.sched_setaffinity(process.pid, {core})
    return process


@dataclass(frozen=True)
class Receiver:
    """The running OTLP receiver."""

    endpoint: str
    process: subprocess.Popen[str]

    def take(self) -> int:
        """Return the number of spans that came since the last call."""
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
        yield Receiver(process.stdout.readline().strip(), process)
        assert process.stdin
        process.stdin.close()


@dataclass(frozen=True)
class Server:
    """A running service, with the wall and CPU seconds that it took until its first answer."""

    port: int
    pid: int
    ready_s: float
    ready_cpu_s: float

    def load(self, *options: str) -> dict[str, Any]:
        """Run the load generator against it; return what that measured."""
        argv = [sys.executable, str(HERE / "load.py"), "--port", str(self.port), "--pid", str(self.pid), *options]
        with start(argv, OTHER_CORE, env=clean_environment(), stdout=subprocess.PIPE) as generator:
            output, _ = generator.communicate()
        if generator.returncode:
            raise SystemExit("the load generator failed")
        measured: dict[str, Any] = json.loads(output)
        return measured

    def rss_mb(self) -> float:
        """Return the resident memory now."""
        return status_kb(Path(f"/proc/{self.pid}/status").read_text(), "VmRSS") / 1024


@contextmanager
def serve(variant: Variant, receiver: Receiver) -> Iterator[Server]:
    """Run the service as the variant says until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--no-access-log"]
    environment = {
        **clean_environment(),
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_SERVICE_NAME": "bench",
        "OTEL_BSP_SCHEDULE_DELAY": str(EXPORT_DELAY_MS),
        **variant.env,
    }
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        process = start([*variant.wrapper, *app], SERVER_CORE, env=environment, stdout=log, stderr=log)
        try:
            if not _answers(process, port):
                log.seek(0)
                raise SystemExit(f"{variant.name}: the service did not get ready:\n{log.read()[-4000:]}")
            yield Server(port, process.pid, time.perf_counter() - started, cpu_seconds(process.pid))
        finally:
            process.terminate()
            process.wait(STOP_WITHIN_S)


def _answers(process: subprocess.Popen[str], port: int) -> bool:
    """Return whether the service answers within READY_WITHIN_S."""
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
    """Return one size out of the text of /proc/PID/status."""
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
    """Return by how much each round's value exceeds the base of the same round."""
    return [value - other for value, other in zip(values, base, strict=True)]


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return each round's value as a multiple of the base of the same round."""
    return [value / other for value, other in zip(values, base, strict=True)]


def bootstrap(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """Return a 95 % interval of the median."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws) - 1]


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
    """Return a parser with what all benchmarks take."""
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
