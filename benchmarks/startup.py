"""Measure what recording costs a process at its start, whether it serves or not.

Two virtual environments differ in one file only, stagetrace's activation file; the package itself is in both. Commands
that serve nothing are started in them repeatedly, in random order within each round; a second, identical set of runs
without the file shows how much of a difference is noise. Then the service is started until its first response.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import (
    STAGETRACE,
    STOCK,
    UNTRACED,
    Spread,
    Table,
    bootstrap,
    clean_environment,
    differences,
    parser,
    progress,
    rotated,
    run_receiver,
    serve,
    show,
    status_kb,
)

if TYPE_CHECKING:
    import resource
    from collections.abc import Mapping, Sequence

SOURCE = Path(__file__).resolve().parent.parent / "src"
ACTIVATION_FILE = "stagetrace.pth"
BARE, CONTROL = "no activation file", "no activation file, again"
IDLE, SWITCHED_ON = "file, variable not set", "file, STAGETRACE=1"
# The peak memory of wait4 includes the parent's, as it was before the child's exec; the kernel's own count of
# the new process does not.
TELL_MEMORY = "print(open('/proc/self/status').read())"
COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "pip --version": ("-m", "pip", "--version"),
}
SERVED = (UNTRACED, STOCK, STAGETRACE)


@dataclass(frozen=True)
class Startup:
    """By command and set-up, one figure a run or round."""

    cpu_ms: dict[str, dict[str, list[float]]]
    wall_ms: dict[str, dict[str, list[float]]]
    peak_mb: dict[str, list[float]]
    service: dict[str, dict[str, list[float]]]


def measure(runs: int, rounds: int) -> Startup:
    """Start each command `runs` times in each set-up, and the service `rounds` times."""
    result = Startup({}, {}, {}, {})
    with tempfile.TemporaryDirectory() as folder:
        setups = _setups(Path(folder))
        for name, command in COMMANDS.items():
            progress(f"{name}: {runs} runs in each of {len(setups)} set-ups")
            result.cpu_ms[name], result.wall_ms[name] = _times(setups, command, runs)
        result.peak_mb.update(_memory(setups, runs))
    result.service.update(_service(rounds))
    return result


def _setups(folder: Path) -> dict[str, tuple[Path, Mapping[str, str]]]:
    """Make the environments; return the interpreter and the variables of each set-up."""
    bare, active = (_environment(folder / name) for name in ("bare", "active"))
    shutil.copy(SOURCE / ACTIVATION_FILE, _packages(active))
    return {
        BARE: (bare, {}),
        CONTROL: (bare, {}),
        IDLE: (active, {}),
        SWITCHED_ON: (active, {"STAGETRACE": "1"}),
    }


def _environment(folder: Path) -> Path:
    progress(f"making the virtual environment {folder.name!r}")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    for package in ("stagetrace", "stagetrace_contrib"):
        shutil.copytree(SOURCE / package, _packages(python) / package)
    installed = _packages(python) / "stagetrace-0.dist-info"
    installed.mkdir()
    (installed / "entry_points.txt").write_text("[stagetrace.patches]\ncontrib = stagetrace_contrib.registry\n")
    subprocess.run([python, "-m", "compileall", "-q", folder], check=True, stdout=subprocess.DEVNULL)
    return python


def _packages(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python*")) / "site-packages"


def _times(
    setups: Mapping[str, tuple[Path, Mapping[str, str]]], command: Sequence[str], runs: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return CPU and wall milliseconds of each run by set-up; a first run of each is not counted."""
    cpu_ms: dict[str, list[float]] = {name: [] for name in setups}
    wall_ms: dict[str, list[float]] = {name: [] for name in setups}
    chance = random.Random(0)
    for number in range(runs + 1):
        for name in chance.sample(list(setups), len(setups)):
            python, env = setups[name]
            cpu, wall = _run([str(python), *command], {**clean_environment(), **env})
            if number:
                cpu_ms[name].append(cpu * 1e3)
                wall_ms[name].append(wall * 1e3)
    return cpu_ms, wall_ms


def _run(argv: list[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Run a command to its end; return its user + system CPU seconds, and the wall seconds."""
    quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    started = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, env, file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    wall = time.perf_counter() - started
    if status:
        raise SystemExit(f"{argv} failed")
    return _cpu(usage), wall


def _cpu(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def _memory(setups: Mapping[str, tuple[Path, Mapping[str, str]]], runs: int) -> dict[str, list[float]]:
    """Return the peak resident megabytes of a process that does nothing else."""
    peak_mb: dict[str, list[float]] = {name: [] for name in setups}
    for _ in range(runs):
        for name, (python, env) in setups.items():
            argv = [str(python), "-c", TELL_MEMORY]
            status = subprocess.run(
                argv, env={**clean_environment(), **env}, check=True, capture_output=True, text=True
            )
            peak_mb[name].append(status_kb(status.stdout, "VmHWM") / 1024)
    return peak_mb


def _service(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Return wall and CPU seconds until the first answer, and the memory then and after some requests."""
    keys = ("ready_s", "ready_cpu_s", "ready_mb", "loaded_mb")
    result: dict[str, dict[str, list[float]]] = {variant.name: {key: [] for key in keys} for variant in SERVED}
    with run_receiver() as receiver:
        for number in range(rounds):
            for variant in rotated(SERVED, number):
                with serve(variant, receiver) as server:
                    ready_mb = server.rss_mb()
                    server.load("--warm-up", "0", "--requests", "2000")
                    figures = (server.ready_s, server.ready_cpu_s, ready_mb, server.rss_mb())
                for key, figure in zip(keys, figures, strict=True):
                    result[variant.name][key].append(figure)
                progress(f"round {number + 1}/{rounds}  {variant.name:12} ready after {server.ready_s:.2f} s")
    return result


def tables(result: Startup) -> list[Table]:
    """Return the tables for people."""
    made = []
    for command, by_setup in result.cpu_ms.items():
        walls = result.wall_ms[command]
        rows = [
            [name, Spread.of(values).text(1), _added(values, by_setup[BARE]), *_pair(walls[name], walls[BARE])]
            for name, values in by_setup.items()
        ]
        runs = len(by_setup[BARE])
        columns = ("set-up", "CPU, ms", "added (95 %)", "wall, ms", "added (95 %)")
        made.append(Table(f"`{command}`, {runs} runs; median (least to greatest), added paired by run", columns, rows))
    rows = [[name, *_pair(values, result.peak_mb[BARE], 2)] for name, values in result.peak_mb.items()]
    made.append(Table("Peak memory of a process that does nothing", ("set-up", "MB", "added (95 %)"), rows))
    return [*made, _service_table(result.service)]


def reading(result: Startup) -> list[str]:
    """Return what the figures mean."""
    lines = []
    for command, by_setup in result.cpu_ms.items():
        added = {name: _added(by_setup[name], by_setup[BARE]) for name in (CONTROL, IDLE, SWITCHED_ON)}
        lines.append(
            f"`{command}`: the activation file alone adds {added[IDLE]} ms of CPU, with the variable set "
            f"{added[SWITCHED_ON]} ms; the same set-up measured against itself differs by {added[CONTROL]} ms, "
            "so smaller differences are noise."
        )
    return lines


def _service_table(service: Mapping[str, Mapping[str, list[float]]]) -> Table:
    base = service[UNTRACED.name]
    units = {"ready_s": 1e3, "ready_cpu_s": 1e3, "ready_mb": 1, "loaded_mb": 1}
    columns = ("set-up", "wall, ms", "added", "CPU, ms", "added", "MB when ready", "added", "MB after 2000", "added")
    rows = []
    for name, figures in service.items():
        row = [name]
        for key, unit in units.items():
            values, others = ([one * unit for one in source[key]] for source in (figures, base))
            row += [
                Spread.of(values).text(),
                "" if name == UNTRACED.name else Spread.of(differences(values, others)).text(),
            ]
        rows.append(row)
    rounds = f"{len(base['ready_s'])} rounds; median (least to greatest)"
    return Table(f"The service from its start to its first answer, and its memory: {rounds}", columns, rows)


def _pair(values: list[float], base: list[float], digits: int = 1) -> tuple[str, str]:
    return Spread.of(values).text(digits), _added(values, base, digits + 1)


def _added(values: list[float], base: list[float], digits: int = 2) -> str:
    """Return the median of the paired differences with its interval."""
    if values is base:
        return ""
    paired = differences(values, base)
    low, high = bootstrap(paired)
    return f"{Spread.of(paired).median:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def main() -> None:
    """Measure and print."""
    arguments = parser(__doc__, "python benchmarks/startup.py --runs 60 --json startup.json")
    arguments.add_argument("--runs", type=int, default=60, help="of each command in each set-up")
    arguments.add_argument("--rounds", type=int, default=7, help="of the service in each set-up")
    args = arguments.parse_args()
    show(measure(args.runs, args.rounds), tables, reading, args.json)


if __name__ == "__main__":
    main()
