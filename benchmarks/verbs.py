"""Measure each reading verb of the command line, from its start to its end, over 28,572 requests of seven spans.

The spans are in a local store, in a real Jaeger read over `jaeger://` (`--jaeger`), and in a file of OTLP JSON lines.
Each run is a new process, so nothing is warm but the disk's cache; the rounds are interleaved. CPU is user and system
time of the command with all its threads, and, for a Jaeger, of that process in the meantime.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from benchmarks.measure import BIN, Spread, Table, clean_environment, parser, progress, show  # noqa: E402
from benchmarks.traffic import Traffic  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

STAGES = ("queue", "network.receive", "preprocess", "inference", "postprocess", "network.send")
SPANS_PER_REQUEST = len(STAGES) + 1
PER_MESSAGE = 40
HOUR_NS = 3_600_000_000_000
SEGMENT = ("--segment", "client.address=10.0.0.7")
EVER = ("--since", "1970-01-01T00:00:00Z")


@dataclass(frozen=True)
class Verb:
    """A command line without its store; `store` names the store that it reads."""

    name: str
    store: str
    arguments: Sequence[str]


def verbs(folder: Path) -> Iterator[Verb]:
    """Yield the measured commands."""
    count = ("query", "SELECT count(*), max(duration_ms) FROM requests")
    for store in ("local", "bare", "file", "jaeger"):
        if store != "bare":
            yield Verb("stages", store, ["stages"])
            yield Verb("requests, slowest 10", store, ["requests", "--slowest", "10"])
            yield Verb("query", store, count)
            yield Verb("export .csv", store, ["export", str(folder / "spans.csv")])
            yield Verb("export .parquet", store, ["export", str(folder / "spans.parquet")])
        yield Verb("breaches", store, ["breaches"])
        if store == "local":
            yield Verb("stages --segment", store, ["stages", *SEGMENT])
            yield Verb("requests --segment", store, ["requests", *SEGMENT])
            yield Verb("breaches --segment", store, ["breaches", "--each", *SEGMENT])
            yield Verb("export .jsonl", store, ["export", str(folder / "spans.jsonl")])


@dataclass(frozen=True)
class Verbs:
    """Of each verb on each store, seconds of each run, and of CPU."""

    requests: int
    wall_s: dict[str, list[float]] = field(default_factory=dict)
    cpu_s: dict[str, list[float]] = field(default_factory=dict)
    jaeger_cpu_s: dict[str, list[float]] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)


def measure(requests: int, repeat: int, folder: Path, stores: Sequence[str], only: str) -> Verbs:
    """Run each verb `repeat` times."""
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        jaeger_pid = None
        for store in stores:
            if store == "jaeger":
                from backends import run_jaeger

                jaeger = stack.enter_context(run_jaeger(folder / "jaeger"))
                jaeger_pid, urls[store] = jaeger.pid, jaeger.url
                _feed(jaeger.otlp_grpc.removeprefix("http://"), requests)
            else:
                urls[store] = _stored(store, folder, requests)
        result = Verbs(requests)
        for number in range(repeat):
            for verb in verbs(folder):
                if verb.store in urls and only in verb.name:
                    progress(f"{number + 1}/{repeat} {verb.store}: {verb.name}")
                    _run(verb, urls[verb.store], result, jaeger_pid if verb.store == "jaeger" else None)
    return result


def _run(verb: Verb, url: str, result: Verbs, jaeger_pid: int | None) -> None:
    argv = [str(BIN / "stagetrace"), *verb.arguments, "--store", url, *EVER]
    before, theirs = _children_cpu_s(), _cpu_s(jaeger_pid)
    began = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=clean_environment())
    _, status, used = os.wait4(process.pid, 0)
    took = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(argv)} ended with {process.returncode}")
    name = f"{verb.store}: {verb.name}"
    result.wall_s.setdefault(name, []).append(took)
    result.cpu_s.setdefault(name, []).append(_children_cpu_s() - before)
    result.jaeger_cpu_s.setdefault(name, []).append(_cpu_s(jaeger_pid) - theirs)
    result.megabytes[name] = max(used.ru_maxrss / 1024, result.megabytes.get(name, 0))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_s(pid: int | None) -> float:
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def messages(requests: int, *, totals: bool = True) -> Iterator[bytes]:
    """Yield the spans of `requests` requests of the last hour, which no Jaeger drops for their age."""
    traffic = Traffic(time.time_ns() - HOUR_NS, HOUR_NS // 2 // requests, stages=STAGES, totals=totals)
    for at in range(0, requests, PER_MESSAGE):
        yield traffic.request(min(PER_MESSAGE, requests - at))


def _stored(store: str, folder: Path, requests: int) -> str:
    """Return the URL of a store with the spans, made the first time."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    from stagetrace.otlp.decode import json as json_form
    from stagetrace.store.local import LocalStore

    if store == "file":
        path = folder / f"{requests}.jsonl"
        if not path.exists():
            progress(f"filling {path}")
            with path.open("w", encoding="utf-8") as file:
                for one in messages(requests):
                    file.write(json_form.encode(ExportTraceServiceRequest.FromString(one)) + "\n")
        return path.as_uri()
    path = folder / f"{store}-{requests}"
    if not path.exists():
        progress(f"filling {path}")
        with LocalStore.open(path) as opened:
            for one in messages(requests, totals=store != "bare"):
                opened.append(one)
    return path.as_uri().replace("file:", "local:", 1)


def _feed(target: str, requests: int) -> None:
    """Send the spans to a Jaeger, and return when it has them all."""
    import grpc

    progress(f"feeding {target}")
    with grpc.insecure_channel(target) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export", None, None)
        for one in messages(requests):
            export(one, timeout=60)
    time.sleep(3)


def tables(result: Verbs) -> Sequence[Table]:
    """Return the figures."""
    rows = [
        (
            name,
            Spread.of(times).text(2, " s"),
            Spread.of(result.cpu_s[name]).text(2, " s"),
            f"{Spread.of(result.jaeger_cpu_s[name]).text(2, ' s')}" if name.startswith("jaeger") else "",
            f"{result.megabytes[name]:.0f} MB",
        )
        for name, times in result.wall_s.items()
    ]
    title = f"{result.requests * SPANS_PER_REQUEST:,} spans of {result.requests:,} requests; median (least to greatest)"
    return [Table(title, ("verb", "wall", "CPU", "CPU of Jaeger", "peak memory"), rows)]


def reading(result: Verbs) -> Sequence[str]:
    """Return what the figures mean."""
    local = {name: Spread.of(times) for name, times in result.wall_s.items() if name.startswith("local")}
    slow = [name for name, one in local.items() if one.median > (5 if "export" in name else 1)]
    return [f"Local verbs above a second, or an export above five: {', '.join(slow) or 'none'}."] if local else []


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/verbs.py --stores local,bare,file,jaeger --repeat 3")
    arguments.add_argument("--requests", type=int, default=28_572, help="requests in each store (28572)")
    arguments.add_argument("--repeat", type=int, default=3, help="how often each verb is run (3)")
    arguments.add_argument(
        "--stores",
        default="local,bare,file",
        help="of local, bare (entry spans without the totals of their stages), file, jaeger; comma-separated",
    )
    arguments.add_argument("--only", default="", help="only verbs whose name has this")
    arguments.add_argument("--folder", type=Path, help="keep the stores here, or use those that are here")
    args = arguments.parse_args()
    with ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(args.requests, args.repeat, folder, args.stores.split(","), args.only)
        show(found, tables, reading, args.json)


if __name__ == "__main__":
    main()
