"""Accuracy of `stagetrace capacity`: on simulated queues, whose limit is known, and on a real service.

Queues have k servers, times in service of 20 ms on average, and Poisson arrivals whose rate is stepped up, to a share
of the servers' capacity. For each kind: how often a peak is reported, its error, how often its interval holds the
truth; and for loads without a limit, how often one is reported anyway. With --served, a service of four workers of
20 ms is recorded while clients in closed loops drive it to its end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

import services  # noqa: E402
from analysis.queues import SERVICE_S, Requests, constant, exponential, lognormal, queue  # noqa: E402
from backend.running import run_up  # noqa: E402
from benchmarks.measure import BIN, progress  # noqa: E402
from clients import step  # noqa: E402
from stagetrace.analysis.capacity import ask  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KINDS = {
    "M/M/1": (1, exponential),
    "M/M/4": (4, exponential),
    "M/D/4": (4, constant),
    "M/G/1, lognormal, cv 1": (1, lognormal(1)),
    "M/G/4, lognormal, cv 1": (4, lognormal(1)),
    "M/G/4, lognormal, cv 2": (4, lognormal(4)),
}
STEPS = (0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 1.1)
TOPS = (0.3, 0.5, 0.8, 0.95, 1.1)
EACH_S = 60
CLIENTS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 28)


def queues(seeds: int) -> None:
    """Print a line for each kind of queue and each greatest load."""
    print(
        "| queue | load up to | peak reported | error, median (greatest) | interval holds it |\n|---|--:|--:|--:|--:|"
    )
    for name, (servers, draw) in KINDS.items():
        for top in TOPS:
            progress(f"{name} to {top}")
            steps = [one for one in STEPS if one <= top]
            if top < STEPS[3]:
                steps = [top * part for part in (0.2, 0.4, 0.6, 0.8, 1)]
            found = [ask(queue(servers, steps, EACH_S, draw, seed))[0] for seed in range(seeds)]
            print(
                f"| {name} | {top} | {_cells([(one.peak_per_s, one.interval) for one in found], servers / SERVICE_S)} |"
            )


def _cells(found: Sequence[tuple[float | None, tuple[float, float | None] | None]], truth: float) -> str:
    reported = [(peak, ends) for peak, ends in found if peak is not None and ends is not None]
    share = f"{len(reported)} of {len(found)}"
    if not reported:
        return f"{share} | - | -"
    errors = [100 * (peak / truth - 1) for peak, _ in reported]
    held = sum(low <= truth <= (np.inf if high is None else high) for _, (low, high) in reported)
    greatest = max(errors, key=abs)
    return f"{share} | {np.median(errors):+.1f} % ({greatest:+.1f} %) | {held} of {len(reported)}"


def without_end(chance: np.random.Generator) -> Requests:
    """Return requests of more servers than were ever busy, at a rate stepped up, with times that vary much."""
    return queue(500, (0.002, 0.004, 0.008, 0.016), EACH_S, lognormal(4), int(chance.integers(2**31)))


def steady_with_spells(chance: np.random.Generator) -> Requests:
    """Return requests at one rate, each third minute slowed down by something else."""
    start = np.sort(chance.uniform(0, 600, 60_000))
    return _slowed(chance, start, (start // 60).astype(int) % 3 == 1, 0.3)


def varying_with_spells(chance: np.random.Generator) -> Requests:
    """Return requests whose rate goes up and down, slowed down from outside one minute in four."""
    arrivals = np.sort(chance.uniform(0, 3600, 120_000))
    start = arrivals[chance.random(len(arrivals)) < 0.55 - 0.45 * np.cos(arrivals / 3600 * 4 * np.pi)]
    return _slowed(chance, start, (start // 240).astype(int) % 4 == 1, 0.2)


def one_rate(chance: np.random.Generator) -> Requests:
    """Return requests of a pool of four at 60 % of its capacity, all the time."""
    return queue(4, (0.6,), 300, exponential, int(chance.integers(2**31)))


def _slowed(chance: np.random.Generator, start: np.ndarray, slow: np.ndarray, slow_s: float) -> Requests:
    took = chance.exponential(np.where(slow, slow_s, 0.02))
    return Requests(start * 1e9 + 1e18, (start + took) * 1e9 + 1e18)


def false_peaks(seeds: int) -> None:
    """Print for each load without a limit how often one is reported."""
    print("\n| load without a visible limit | peak reported |\n|---|--:|")
    loads: tuple[Callable[[np.random.Generator], Requests], ...] = (
        without_end,
        steady_with_spells,
        varying_with_spells,
        one_rate,
    )
    for made in loads:
        progress(made.__name__)
        reported = sum(ask(made(np.random.default_rng(seed)))[0].peak_per_s is not None for seed in range(seeds))
        print(f"| {(made.__doc__ or '').removeprefix('Return requests ').rstrip('.')} | {reported} of {seeds} |")


def served(each_s: float) -> None:
    """Print the answer for a real pool, beside the rate that its clients measured."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        services.allowed = True
        with run_up(folder) as up:
            env = {"STAGETRACE": "1", "OTEL_SERVICE_NAME": "pool", "OTEL_EXPORTER_OTLP_ENDPOINT": up.url("grpc_port")}
            argv = [sys.executable, "-m", "uvicorn", "pool:app", "--port", "{port}"]
            with services.run_service(folder, argv=argv, env=env) as service:
                rates = step(int(service.url.rpartition(":")[2]), "/work", CLIENTS, each_s)
        command = [
            str(BIN / "stagetrace"),
            "capacity",
            "--store",
            str(folder / "data"),
            "--since",
            "1h",
            "--route",
            "/work",
        ]
        found = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=False).stdout)
        print(f"\nclients: {', '.join(f'{count}: {rate:.0f}/s' for count, rate in zip(CLIENTS, rates, strict=True))}")
        print(
            f"answer: {found['sentence']}\nthe clients' greatest rate: {max(rates):.1f}/s; four workers of 20 ms: 200/s"
        )
        print(subprocess.run(command, capture_output=True, text=True, check=False).stdout)


def main() -> None:
    """Run the selected parts."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python benchmarks/answers/capacity.py --seeds 20 --served 10",
    )
    parser.add_argument("--seeds", type=int, default=20, help="runs of each queue, and of each load without a limit")
    parser.add_argument("--served", type=float, default=0, help="seconds of each number of clients; 0: no service")
    args = parser.parse_args()
    if args.seeds:
        queues(args.seeds)
        false_peaks(args.seeds)
    if args.served:
        served(args.served)


if __name__ == "__main__":
    main()
