"""Measure each answer over ten million requests in a local store: wall time with process start, and memory.

The requests are of 24 hours: three routes, two models, two versions, 40 tenants, five stages, 0.6 % breaches of an
objective of 200 ms. A few thousand are decoded out of OTLP, as `stagetrace up` does; their other columns are then
repeated under new ids, times and durations, and written to the table as its writer would.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from answers.made import NOON, Made, messages  # noqa: E402
from benchmarks.measure import BIN, clean_environment, progress  # noqa: E402
from stagetrace.otlp.decode.arrow_table import table  # noqa: E402
from stagetrace.otlp.decode.columns import SEQUENCE, join_tables  # noqa: E402
from stagetrace.otlp.decode.request import decode  # noqa: E402
from stagetrace.store.local import delta  # noqa: E402
from stagetrace.store.local import folder as parquet  # noqa: E402
from stagetrace.store.local.delta import Received  # noqa: E402
from stagetrace.store.local.folder import (  # noqa: E402
    TABLE,
    prepare,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK = 500_000
TEMPLATES = 4_000
DAY_NS = 86_400 * 10**9
ALLOWED_MS = 200.0
STAGES = {"queue": 2.0, "network.receive": 0.3, "preprocess": 6.0, "inference": 60.0, "postprocess": 3.0}
SINCE = ("--since", "2026-03-01T12:00:00Z", "--until", "2026-03-02T12:00:00Z")
# Verb -> its arguments, beside the store and the window.
QUESTIONS = {
    "slo": ["slo"],
    "bottleneck": ["bottleneck"],
    "capacity": ["capacity"],
    "causes": ["causes"],
    "report": ["report"],
    "drift": ["drift"],
    "compare": ["compare", "--a", "version=2", "--b", "version=3"],
    "cost": ["cost"],
    "segments, by a column": ["segments", "--by", "model"],
    "segments, by an attribute": ["segments", "--by", "tenant.id"],
}


def templates() -> Iterator[Made]:
    """Yield requests whose durations do not matter."""
    chance = random.Random(3)
    for number in range(1, TEMPLATES + 1):
        yield Made(
            number,
            NOON,
            dict.fromkeys(STAGES, 1.0),
            route=chance.choice(["/predict", "/predict", "/embed", "/rank"]),
            model=chance.choice(["churn", "ranker"]),
            version=chance.choice(["2", "3"]),
            within_ms=ALLOWED_MS,
            duration_ms=300.0 if number % 50 == 0 else 100.0,
            cause=chance.choice(["cpu_wait", "downstream", "lock_wait"]),
            attributes={
                "tenant.id": f"tenant-{min(39, int(chance.expovariate(0.15)))}",
                "http.request.body.size": chance.randrange(100, 100_000),
                "ml.batch.size": chance.choice([1, 1, 1, 4, 16]),
            },
            resource={"service.instance.id": chance.choice(["a", "b", "c"]), "region": chance.choice(["eu", "us"])},
        )


def make(folder: Path, requests: int) -> None:
    """Make a store of that many requests."""
    decoded = [decode(one.SerializeToString()) for one in messages(templates())]
    every = join_tables([table(decoded)])
    judged = every["breached"].to_numpy(zero_copy_only=False).astype(bool)
    breaches, good = np.flatnonzero(judged), np.flatnonzero(~judged)
    os.close(prepare(folder))
    snapshot = delta.load(folder / TABLE)
    chance = np.random.default_rng(11)
    for at in range(0, requests, CHUNK):
        count = min(CHUNK, requests - at)
        part = _chunk(every, (breaches, good), chance, at, count, requests)
        file = parquet.write(folder / TABLE, part, Received(0, 0), entry=True)
        snapshot = delta.commit(folder / TABLE, snapshot, [file], [], at // CHUNK + 1)
        progress(f"{at + count:,} of {requests:,} requests made")


def _chunk(
    every: pa.Table, rows: tuple[Any, Any], chance: np.random.Generator, at: int, count: int, requests: int
) -> pa.Table:
    """Return requests `at` to `at + count` of all, in order of time."""
    stages = {one: median * np.exp(chance.normal(0, 0.45, count)) for one, median in STAGES.items()}
    whole = np.sum(list(stages.values()), axis=0)
    late = whole > ALLOWED_MS
    chosen = np.where(late, chance.choice(rows[0], count), chance.choice(rows[1], count))
    made = every.take(pa.array(chosen))
    start = NOON + (np.arange(at, at + count) * (DAY_NS / requests)).astype(np.int64)
    ids = np.arange(at + 1, at + count + 1, dtype=">u8")
    trace = np.zeros((count, 2), dtype=">u8")
    trace[:, 1] = ids
    columns: dict[str, Any] = {
        "trace_id": pa.array(trace.view("V16").ravel().tolist(), pa.binary()),
        "span_id": pa.array(ids.view("V8").tolist(), pa.binary()),
        "start_unix_nano": pa.array(start),
        "end_unix_nano": pa.array(start + (whole * 1e6).astype(np.int64)),
        "overrun_ms": pa.array(np.where(late, whole - ALLOWED_MS, 0.0), mask=~late),
        **{f"{one.replace('.', '_')}_ms": pa.array(took) for one, took in stages.items()},
        SEQUENCE: pa.array(np.full(count, at // CHUNK + 1)),
    }
    for name, values in columns.items():
        place = made.schema.get_field_index(name)
        made = made.append_column(name, values) if place < 0 else made.set_column(place, name, values)
    return made


def ask(folder: Path, arguments: list[str]) -> tuple[float, float, int]:
    """Run one command; return seconds, megabytes at most, and its exit code."""
    argv = [str(BIN / "stagetrace"), *arguments, "--store", str(folder), *SINCE, "--json"]
    began = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, env=clean_environment())
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return time.perf_counter() - began, used.ru_maxrss / 1024, process.returncode


def main() -> None:
    """Print one line for each question."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--requests", type=int, nargs="+", default=[10_000_000], help="of each store; default: 10000000")
    given.add_argument("--repeat", type=int, default=1)
    given.add_argument("--only", default="", help="only questions with this in their name")
    given.add_argument("--folder", type=Path, help="keep the stores here, and use those that are there")
    given.add_argument("--json", action="store_true")
    args = given.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for requests in args.requests:
            folder = (args.folder or Path(temporary)) / f"requests-{requests}"
            if not folder.exists():  # in a process of its own: its memory would count as that of the commands
                maker = get_context("spawn").Process(target=make, args=(folder, requests))
                maker.start()
                maker.join()
                if maker.exitcode:
                    raise SystemExit(maker.exitcode)
            for name, arguments in QUESTIONS.items():
                if args.only in name:
                    found = [ask(folder, arguments) for _ in range(args.repeat)]
                    times = sorted(one[0] for one in found)
                    most = max(one[1] for one in found)
                    rows.append({"requests": requests, "question": name, "s": times, "mb": most, "exit": found[-1][2]})
                    took = f"{times[len(times) // 2]:6.2f} s  {most:7.0f} MB"
                    print(f"{requests:>12,}  {name:26}  {took}  exit {found[-1][2]}")
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
