"""Run all benchmarks of the recording side and write dist/performance.md; takes just under a quarter of an hour.

With --long more and longer rounds, which take about an hour. docs/performance.md has the figures that hold, by hand.
They have no thresholds: other work on the machine shows in their spread and fails nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import others
from benchmarks.measure import HERE, STAGETRACE, STOCK, UNTRACED, parser, progress, text

if TYPE_CHECKING:
    from types import ModuleType

DOCUMENT = HERE.parent / "dist" / "performance.md"
PACKAGES = (
    *("stagetrace", "opentelemetry-sdk", "opentelemetry-instrumentation-fastapi", "grpcio", "protobuf"),
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "scikit-learn"),
)


@dataclass(frozen=True)
class Section:
    """One benchmark: a module with `measure`, `tables` and `reading`, and the arguments of `measure`."""

    title: str
    module: str
    short: dict[str, Any]
    long: dict[str, Any]


IN_PROCESS = "CPU per request, in process"
# One line for each benchmark.
SECTIONS = (
    Section(IN_PROCESS, "inprocess_cost", {"rounds": 3, "requests": 3000}, {"rounds": 11, "requests": 8000}),
    Section("Many routes", "routes_cost", {"rounds": 2, "requests": 20_000}, {"rounds": 5, "requests": 20_000}),
    Section(
        "CPU per request, served",
        "request_cost",
        {"rounds": 3, "requests": 2500, "variants": (UNTRACED, STOCK, STAGETRACE)},
        {"rounds": 7, "requests": 3000},
    ),
    Section("gRPC", "grpc_cost", {"rounds": 3, "rpcs": 2000}, {"rounds": 7, "rpcs": 3000}),
    Section(
        "Latency",
        "latency",
        {"rounds": 3, "seconds": 10, "models": ("logistic regression",)},
        {"rounds": 7, "seconds": 60},
    ),
    Section("The threads that send", "export_thread", {"rounds": 2, "seconds": 4}, {"rounds": 5, "seconds": 20}),
    Section("Start-up and memory", "startup", {"runs": 20, "rounds": 3}, {"runs": 60, "rounds": 11}),
)
INTRODUCTION = """# Performance

Written by `python benchmarks/run.py` (`make bench`); each script also runs alone, and longer, with `--help`. Compare
columns, not machines: set-ups are interleaved and paired by round, and every figure has its spread.

*stock* is `opentelemetry-instrument` with opentelemetry-instrumentation-fastapi, traces only; *stagetrace* is
`STAGETRACE=1` with an objective. Both send to a real OTLP/gRPC receiver in another process. The service is
`benchmarks/app.py`: FastAPI and scikit-learn under uvicorn, a synchronous handler that scores one row; no access log.
"""


def moment() -> tuple[float, str]:
    """Return what may change during the run: the load average, and the commit of the measured code."""
    git = ["git", "-C", str(HERE), "log", "-1", "--format=%h", "--", "../src"]
    commit = subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip() or "unknown"
    return os.getloadavg()[0], commit


def machine(before: tuple[float, str], minutes: float) -> str:
    """Return where and when the figures were taken, as Markdown."""
    after = moment()
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    facts = {
        "Date": time.strftime("%Y-%m-%d"),
        "CPU": f"{cpu.partition(':')[2].strip()}, {len(os.sched_getaffinity(0))} cores",
        "Load average before and after": f"{before[0]:.2f}, {after[0]:.2f} (other work included)",
        "Python": f"{platform.python_version()} on {platform.system()} {platform.release()}",
        "Packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        "Stages are encoded": "in C (`native/encoder.c`)"
        if _is_native()
        else "in Python (`native/encoder.c` is not built or not used)",
        "Commit of src before and after": f"{before[1]}, {after[1]}",
        "Taken in": f"{minutes:.0f} minutes",
    }
    return "\n".join(["## Machine", "", *(f"- {name}: {fact}" for name, fact in facts.items()), ""])


def _is_native() -> bool:
    return bool(getattr(import_module("stagetrace.otlp.encode"), "NATIVE", False))


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
    arguments = parser(__doc__, "python benchmarks/run.py --others --json figures.json")
    arguments.add_argument("--document", type=Path, default=DOCUMENT, help="what to write (dist/performance.md)")
    arguments.add_argument("--long", action="store_true", help="more and longer rounds")
    arguments.add_argument("--minute-pairs", action="store_true", help="5 rounds of latency of 60 s; 20 minutes more")
    arguments.add_argument("--others", action="store_true", help=f"{', '.join(others.SHOWN)} too, installed if need be")
    names = [one.module for one in SECTIONS]
    arguments.add_argument("--only", nargs="+", choices=names, help="write of these alone; give --document, too")
    args = arguments.parse_args()
    if args.others:
        others.installed()  # now, not while something is being measured
    before, started = moment(), time.monotonic()
    results: dict[str, tuple[ModuleType, Any]] = {}
    for one in SECTIONS:
        if args.only is None or one.module in args.only:
            module = import_module(f"benchmarks.{one.module}")
            options = one.long if args.long else one.short
            if one.module == "latency" and args.minute_pairs:
                options = {**options, "rounds": 5, "seconds": 60}
            if one.title == IN_PROCESS:
                options = {**options, "with_others": args.others}
            progress(f"--- {one.title}, after {(time.monotonic() - started) / 60:.1f} minutes")
            results[one.title] = (module, module.measure(**options))
    minutes = (time.monotonic() - started) / 60
    sections = [section(title, module, result) for title, (module, result) in results.items()]
    document = "\n".join([INTRODUCTION, machine(before, minutes), *sections])
    print(document)
    args.document.parent.mkdir(exist_ok=True)
    args.document.write_text(document)
    progress(f"wrote {args.document} after {minutes:.0f} minutes")
    if args.json is not None:
        args.json.write_text(json.dumps({title: asdict(result) for title, (_, result) in results.items()}, indent=1))


if __name__ == "__main__":
    main()
