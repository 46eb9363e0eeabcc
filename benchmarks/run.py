"""Run all benchmarks with short settings and write docs/performance.md; takes about ten minutes.

Figures, no thresholds: a machine with other work on it shows in their spread and fails nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import latency, request_cost, startup
from benchmarks.measure import HERE, parser, progress, text

if TYPE_CHECKING:
    from types import ModuleType

DOCUMENT = HERE.parent / "docs" / "performance.md"
PACKAGES = (
    *("stagetrace", "opentelemetry-sdk", "opentelemetry-instrumentation-fastapi", "grpcio", "protobuf"),
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "scikit-learn"),
)
INTRODUCTION = """# What recording costs

Written by `python benchmarks/run.py` (`make bench`); each script there runs alone, too, and longer, with `--help`.
Compare columns, not machines: set-ups are interleaved and paired by round, and every figure comes with its spread.

The service is `benchmarks/app.py`, FastAPI and scikit-learn under uvicorn, a synchronous handler that scores one row.
*stock* is `opentelemetry-instrument` as it comes, traces only; *stagetrace* is `STAGETRACE=1` with a promise. Both send
to a real OTLP/gRPC receiver in another process. No access log anywhere.
"""


def moment() -> tuple[float, str]:
    """Return what may change while the figures are taken: the load average, and the commit of the measured code."""
    git = ["git", "-C", str(HERE), "log", "-1", "--format=%h", "--", "../src"]
    commit = subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip() or "unknown"
    return os.getloadavg()[0], commit


def machine(before: tuple[float, str]) -> str:
    """Return where and when the figures were taken, as Markdown."""
    after = moment()
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    facts = {
        "Date": time.strftime("%Y-%m-%d"),
        "CPU": f"{cpu.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores",
        "Load average before and after": f"{before[0]:.2f}, {after[0]:.2f} (other work included)",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.release()}",
        "Packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "Commit of src before and after": f"{before[1]}, {after[1]}",
    }
    return "\n".join(["## Machine", "", *(f"- {name}: {fact}" for name, fact in facts.items()), ""])


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def section(title: str, module: ModuleType, result: Any) -> str:
    """Return one benchmark's part of the document: how it measures, its figures, what they mean."""
    how = (module.__doc__ or "").strip()
    return f"## {title}\n\n{how}\n\n{text(module.tables(result), module.reading(result))}\n"


def main() -> None:
    """Run, print, write."""
    arguments = parser(__doc__, "python benchmarks/run.py --json figures.json")
    arguments.add_argument("--document", type=Path, default=DOCUMENT, help="what to write (docs/performance.md)")
    args = arguments.parse_args()
    before = moment()
    started = time.monotonic()
    results: dict[str, tuple[ModuleType, Any]] = {
        "CPU per request": (request_cost, request_cost.measure(rounds=7, requests=2500)),
        "Latency": (latency, latency.measure(rounds=3, seconds=10, shares=list(latency.LOADS))),
        "Start-up and memory": (startup, startup.measure(runs=60, rounds=7)),
    }
    sections = [section(title, module, result) for title, (module, result) in results.items()]
    document = "\n".join([INTRODUCTION, machine(before), *sections])
    print(document)
    args.document.write_text(document)
    progress(f"wrote {args.document} after {(time.monotonic() - started) / 60:.0f} minutes")
    if args.json is not None:
        args.json.write_text(json.dumps({title: asdict(result) for title, (_, result) in results.items()}, indent=1))


if __name__ == "__main__":
    main()
