"""Record a grid of runs of services: each as it is, and with one thing changed, at five rates.

From a run as it is a model predicts one that is changed; `cell.json` of each run says what the clients measured. Runs
that are there already are kept, so delete the folder of one to repeat it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import zlib
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np

from benchmarks.ground_truth.processes import BEFORE_OTHERS, READY_WITHIN_S, STOP_WITHIN_S, start
from benchmarks.measure import clean_environment, progress
from benchmarks.planted.run import back_end
from stagetrace.cli.demo import MESSAGE
from stagetrace.load import generator
from stagetrace.load.generator import Generator, poisson
from stagetrace.load.http import Address, HttpSender, Message, message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

WARM_S: Final = 2.0
LEAST_S, LEAST_REQUESTS, MOST_S = 18.0, 600.0, 32.0
CAPACITY_S: Final = 5.0
DEEP: Final = (8, 32)  # with more requests at a time, threads and evidence of breaches may cost throughput
COUNT_WITHIN: Final = 0.01  # of what a rate gives: else chance makes 0.95 of the capacity more than all of it
PORTS: Final = range(20_000, 30_000)  # which no connection of a client takes
TIMEOUT_S: Final = 30.0
FRACTIONS: Final = (0.3, 0.45, 0.6, 0.7, 0.8)  # of the capacity of the service as it is
SOME: Final = (0.45, 0.6, 0.8)
ONE: Final = (0.7,)
LOW: Final = (0.3, 0.45)  # of blas in several workers: its threads wait spinning, and starve each other
TICKS: Final = os.sysconf("SC_CLK_TCK")
FASTER: Final = 0.7  # the time of the main stage, as a share of what it was


class Sizes(NamedTuple):
    """The distribution of what requests ask for: lognormal, within bounds."""

    median: float
    sigma: float
    least: int
    most: int


class Service(NamedTuple):
    """A service: its route, what is drawn for its requests, and the settings that matter to it."""

    route: str
    sizes: Sizes
    main_stage: str | None  # which FASTER shortens, as spans name it
    within: float = 3.0  # the objective, as a multiple of p95 without load
    light: float = 0.0  # share of the requests to /light
    threads: tuple[int, ...] = ()  # as it is, and the other
    is_batcher: bool = False
    line: str | None = None  # sizes are lines of a text, in place of a number


SERVICES: Final = {
    "sklearn_cpu": Service("/predict", Sizes(180, 0.35, 40, 500), "inference", threads=(40, 8)),
    "blas": Service("/predict", Sizes(180, 0.4, 30, 600), "inference", threads=(40, 8)),
    "loop_blocking": Service("/predict", Sizes(160_000, 0.35, 40_000, 500_000), "handler", light=0.2),
    "pool_io": Service("/fetch", Sizes(50_000, 0.25, 20_000, 120_000), "handler", within=2, threads=(8, 40)),
    "batcher": Service("/predict", Sizes(600, 0.4, 50, 2_000), "inference", is_batcher=True),
    "gunicorn_callee": Service("/check", Sizes(14_000, 0.3, 4_000, 40_000), "callee"),
    "ticket_router": Service("/predict", Sizes(80, 0.6, 1, 400), None, line=MESSAGE.format(123_456)),
}


class Configuration(NamedTuple):
    """How a service is run."""

    workers: int = 1
    threads: int | None = None
    batch_size: int | None = None
    batch_wait_ms: int | None = None
    faster: bool = False


class Cell(NamedTuple):
    """One run of the grid."""

    service: str
    name: str  # of what is changed
    configuration: Configuration
    fraction: float

    @property
    def id(self) -> str:
        return f"{self.service}-{self.name}-{round(self.fraction * 100)}"


def base(name: str) -> Configuration:
    """Return the configuration of a service as it is."""
    of = SERVICES[name]
    batch = (8, 5) if of.is_batcher else (None, None)
    return Configuration(1, of.threads[0] if of.threads else None, *batch)


def changes(name: str) -> Iterator[tuple[str, Configuration, Sequence[float]]]:
    """Yield what is changed of a service, and the fractions of its capacity at which it runs so."""
    of, as_is = SERVICES[name], base(name)
    yield "workers2", as_is._replace(workers=2), LOW if name == "blas" else FRACTIONS
    if of.main_stage is not None:
        yield "faster", as_is._replace(faster=True), SOME
    if of.threads:
        yield f"threads{of.threads[1]}", as_is._replace(threads=of.threads[1]), SOME
    if of.is_batcher:
        yield "wait0", as_is._replace(batch_wait_ms=0), SOME
        yield "wait20", as_is._replace(batch_wait_ms=20), SOME
        yield "size16", as_is._replace(batch_size=16), SOME
    yield "workers4", as_is._replace(workers=4), LOW[:1] if name == "blas" else ONE


def grid() -> list[Cell]:
    """Return all cells: first those of the services as they are."""
    cells = [Cell(name, "base", base(name), fraction) for name in SERVICES for fraction in FRACTIONS]
    for name in SERVICES:
        cells += [Cell(name, change, so, fraction) for change, so, some in changes(name) for fraction in some]
    return cells


def environment(configuration: Configuration) -> dict[str, str]:
    """Return the variables by which a service reads its configuration."""
    named = {
        "THREADS": configuration.threads,
        "BATCH_SIZE": configuration.batch_size,
        "BATCH_WAIT_MS": configuration.batch_wait_ms,
        "FASTER": 1 if configuration.faster else None,
    }
    return {key: str(value) for key, value in named.items() if value is not None}


# --- The processes of a run.


class Running(NamedTuple):
    """The port of a service that runs, and the sessions of processes whose CPU time counts, by what they are."""

    port: int
    sessions: dict[str, int]


@contextmanager
def stopped(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """End a process with the block."""
    try:
        yield process
    finally:
        process.terminate()
        process.wait(STOP_WITHIN_S)


@contextmanager
def running(name: str, configuration: Configuration, folder: Path, threshold_ms: float) -> Iterator[Running]:
    """Run a service that is recorded into `folder`/data, until the block ends."""
    port = free_port()
    own = environment(configuration)
    clean = clean_environment() | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    module, workers = f"benchmarks.what_if.services.{name}:app", str(configuration.workers)
    argv = ["uvicorn", module, "--port", str(port), "--no-access-log", "--workers", workers]
    with ExitStack() as stack:
        ports = stack.enter_context(back_end(folder / "data"))
        sessions = {"up": int(ports["pid"])}
        if name == "gunicorn_callee":
            argv = ["gunicorn", module, "-w", workers, "-b", f"127.0.0.1:{port}"]
            callee = [sys.executable, "-m", "benchmarks.what_if.services.callee"]
            process = stack.enter_context(stopped(start(callee, env={**clean, **own}, stdout=subprocess.PIPE)))
            assert process.stdout is not None
            own["CALLEE_PORT"] = process.stdout.readline().strip()
            sessions["callee"] = process.pid
        recorded = {
            "STAGETRACE": "1",
            "STAGETRACE_SLA": f"* within {threshold_ms:g}ms",
            "OTEL_SERVICE_NAME": name,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{ports['grpc_port']}",
        }
        log = stack.enter_context((folder / "service.log").open("w+"))
        options = {"env": {**clean, **recorded, **own}, "stdout": log, "stderr": log}
        process = stack.enter_context(stopped(start([sys.executable, "-m", *argv], **options)))
        await_ready(process, port, folder / "service.log", configuration.workers)
        yield Running(port, sessions | {"service": process.pid})


def free_port() -> int:
    """Return a port at which nobody listens."""
    for port in random.sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise SystemExit("no port is free")


def await_ready(process: subprocess.Popen[str], port: int, log: Path, workers: int) -> None:
    """Wait until each worker has loaded the service, and one responds."""
    request = b"GET /health HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n"
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        if log.read_text().count("ready\n") >= workers:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(request)
                if b" 200 " in connection.recv(1024):
                    return
        time.sleep(0.05)
    raise SystemExit(f"the service did not get ready:\n{log.read_text()[-4000:]}")


def cpu_seconds(sessions: dict[str, int]) -> dict[str, float]:
    """Return the CPU seconds so far of the machine, of this process, and of all processes of some sessions."""
    spent = dict.fromkeys(sessions, 0.0)
    names = {session: name for name, session in sessions.items()}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if (name := names.get(int(fields[3]))) is not None:
                spent[name] += (int(fields[11]) + int(fields[12])) / TICKS
    user, nice, system, _idle, _iowait, *interrupts = map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    )
    return spent | {"generator": time.process_time(), "machine": (user + nice + system + sum(interrupts)) / TICKS}


# --- The load.


def messages(name: str, number: int, seed: int) -> tuple[list[str], list[Message]]:
    """Return the routes of so many requests, and the requests.

    Each has a connection of its own, as if from many clients: those that are kept bind a client to one worker.
    """
    of, draw = SERVICES[name], np.random.default_rng(seed)
    drawn = np.clip(draw.lognormal(math.log(of.sizes.median), of.sizes.sigma, number), of.sizes.least, of.sizes.most)
    routes = ["/light" if share < of.light else of.route for share in draw.random(number)]
    headers = [("host", "bench"), ("content-type", "application/json"), ("connection", "close")]
    bodies = [{"size": int(size)} if of.line is None else {"text": "\n".join([of.line] * int(size))} for size in drawn]
    sent = zip(routes, bodies, strict=True)
    return routes, [message("POST", route, headers, json.dumps(body).encode()) for route, body in sent]


async def closed_loop(port: int, sent: Sequence[Message], deep: int, seconds: float) -> list[float]:
    """Send requests, always so many at a time; return the latencies of those that ended in time, in seconds."""
    sender = HttpSender(Address("127.0.0.1", port), sent, connections=1000)
    ids, loop = generator.Ids(), asyncio.get_running_loop()
    await sender.open()
    latencies: list[float] = []
    until = loop.time() + seconds

    async def client(number: int) -> None:
        while (begun := loop.time()) < until:
            done: asyncio.Future[str | None] = loop.create_future()
            sender.send(number, ids.traceparent(), done.set_result)
            if (failure := await done) is not None:
                raise SystemExit(f"a request failed: {failure}")
            if loop.time() <= until:
                latencies.append(loop.time() - begun)
            number += deep

    await asyncio.gather(*map(client, range(deep)))
    await sender.close()
    return latencies


def capacity_of(name: str, folder: Path) -> dict[str, float]:
    """Return how many requests a second a service takes as it is, its latency without load, and an objective.

    The objective is in force as the capacity is measured, for the evidence of breaches takes time.
    """
    place = folder / f"capacity-{name}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    _, sent = messages(name, 2000, 0)
    with running(name, base(name), place, 1000) as service:
        latencies = [generator.run(closed_loop(service.port, sent, 1, 2.0)) for _ in range(2)][1]
    p95_ms = float(np.percentile(latencies, 95)) * 1e3
    threshold_ms = 5 * math.ceil(SERVICES[name].within * p95_ms / 5)
    shutil.rmtree(place)
    place.mkdir()
    with running(name, base(name), place, threshold_ms) as service:
        generator.run(closed_loop(service.port, sent, 2, 1.0))
        ended = {deep: len(generator.run(closed_loop(service.port, sent, deep, CAPACITY_S))) for deep in DEEP}
    shutil.rmtree(place)
    return {
        "capacity": round(min(ended.values()) / CAPACITY_S, 1),
        **{f"closed_loop_of_{deep}": round(count / CAPACITY_S, 1) for deep, count in ended.items()},
        "unloaded_p95_ms": round(p95_ms, 2),
        "threshold_ms": threshold_ms,
    }


def capacities(names: Sequence[str], folder: Path) -> dict[str, dict[str, float]]:
    """Return the capacity of services, from the folder if it is known."""
    file = folder / "capacity.json"
    known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    for name in names:
        if name not in known:
            known[name] = capacity_of(name, folder)
            progress(f"{name}: {known[name]}")
            file.write_text(json.dumps(known, indent=1))
    return known


def arrivals(seed: int, rate: float, seconds: float) -> tuple[int, NDArray[np.float64]]:
    """Return Poisson arrivals whose count is what the rate gives, and their seed: the first from `seed` on."""
    for tried in count(seed):
        due_s = poisson(rate, WARM_S + seconds, tried)
        counted = np.count_nonzero(due_s >= WARM_S)
        if abs(counted - rate * seconds) <= max(1, COUNT_WITHIN * rate * seconds):
            return tried, due_s
    raise AssertionError  # `count` has no end


def record(cell: Cell, folder: Path, known: dict[str, float], seconds: float | None) -> dict[str, Any]:
    """Run a cell; return what its clients measured."""
    rate = round(known["capacity"] * cell.fraction, 2)
    seconds = seconds or min(max(LEAST_S, LEAST_REQUESTS / rate), MOST_S)
    seed, due_s = arrivals(zlib.crc32(f"{cell.service} {cell.fraction}".encode()), rate, seconds)
    routes, sent = messages(cell.service, len(due_s), seed)
    with running(cell.service, cell.configuration, folder, known["threshold_ms"]) as service:

        async def load() -> tuple[generator.Run, int]:
            sender = HttpSender(Address("127.0.0.1", service.port), sent, connections=10_000)
            await sender.open()
            since = time.time_ns() + int(WARM_S * 1e9)
            ran = await Generator(due_s, sender, TIMEOUT_S).run()
            await sender.close()
            return ran, since

        before = cpu_seconds(service.sessions)
        ran, since = generator.run(load())
        after = cpu_seconds(service.sessions)
    counted = ran.due_s >= WARM_S
    latency_ms = ran.latency_s[counted] * 1e3
    of_route = np.array(routes)[counted]
    return {
        "id": cell.id,
        "service": cell.service,
        "change": cell.name,
        "main_route": SERVICES[cell.service].route,
        "main_stage": SERVICES[cell.service].main_stage,
        "main_stage_factor": FASTER if cell.configuration.faster else 1.0,
        "configuration": cell.configuration._asdict(),
        "rate": rate,
        "fraction": cell.fraction,
        "since_unix_nano": since,
        "until_unix_nano": since + int(seconds * 1e9),
        "threshold_ms": known["threshold_ms"],
        **measured(latency_ms, known["threshold_ms"]),
        "routes": {str(one): measured(latency_ms[of_route == one], known["threshold_ms"]) for one in set(of_route)},
        "halves_p50_ms": [float(np.median(half)) for half in np.array_split(latency_ms, 2)],
        "errors": dict(ran.failures(int(np.argmax(counted)))),
        "late_p99_ms": float(np.percentile(ran.late_s[counted], 99)) * 1e3,
        "cpu_s": {name: round(after[name] - before[name], 3) for name in after},
        "load_s": WARM_S + seconds,
        "cores": len(os.sched_getaffinity(0)),
        "more_workers_than_cores": cell.configuration.workers > len(os.sched_getaffinity(0)),
    }


def measured(latency_ms: Any, threshold_ms: float) -> dict[str, Any]:
    """Return count, quantiles and attainment of latencies; a quantile among failures is None."""
    values = {f"p{q}_ms": float(np.percentile(latency_ms, q, method="higher")) for q in (50, 95, 99)}
    quantiles = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {"count": len(latency_ms), **quantiles, "attainment": float((latency_ms <= threshold_ms).mean())}


def main() -> None:
    """Record what is not recorded yet."""
    arguments = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m benchmarks.what_if.record --folder /tmp/grid --services pool_io,batcher",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--folder", type=Path, required=True)
    arguments.add_argument("--services", default=",".join(SERVICES), help="a list with commas; default: all")
    arguments.add_argument("--cells", default="", help="a list of ids with commas; default: all")
    arguments.add_argument("--seconds", type=float, help="of each run; default: as many as give 600 requests")
    arguments.add_argument("--list", action="store_true", help="print the ids of the cells")
    given = arguments.parse_args()
    names, ids = given.services.split(","), set(filter(None, given.cells.split(",")))
    cells = [cell for cell in grid() if cell.service in names and (not ids or cell.id in ids)]
    if given.list:
        print(*(cell.id for cell in cells), sep="\n")
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the services end, too
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, BEFORE_OTHERS)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(BEFORE_OTHERS))
    given.folder.mkdir(parents=True, exist_ok=True)
    known = capacities(list(dict.fromkeys(cell.service for cell in cells)), given.folder)
    for number, cell in enumerate(cells, 1):
        folder = given.folder / cell.id
        if (folder / "cell.json").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        begun = time.monotonic()
        try:
            result = record(cell, folder, known[cell.service], given.seconds)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- one cell less is better than none
            progress(f"{number}/{len(cells)} {cell.id}: {error!r}")
            continue
        (folder / "cell.json").write_text(json.dumps(result, indent=1))
        shown = {key: result[key] for key in ("rate", "count", "p50_ms", "p99_ms", "attainment", "errors", "cpu_s")}
        progress(f"{number}/{len(cells)} {cell.id} {time.monotonic() - begun:.0f} s: {shown}")


if __name__ == "__main__":
    main()
