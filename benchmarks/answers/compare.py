"""How often `quantile_difference` sees a difference that is not there, or misses one that is.

python benchmarks/answers/compare.py [--repeats 300]: the tables of docs/answers/compare.md, in some minutes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stagetrace.analysis.quantiles import evidence, log_limit, quantile_difference

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Draw = Callable[[np.random.Generator, int], Floats]

QUANTILES = (0.5, 0.95, 0.99)
LOOKS = np.unique(np.geomspace(100, 20_000, 60).astype(int))


def correlated(rng: np.random.Generator, size: int) -> Floats:
    """Draw log-normal durations whose neighbours are alike: AR(1), 0.5."""
    from scipy.signal import lfilter

    noise = rng.normal(0, np.sqrt(0.75), size)
    return np.exp(0.5 * lfilter([1.0], [1.0, -0.5], noise))


DRAWS: dict[str, Draw] = {
    "normal": lambda rng, size: rng.normal(100, 10, size),
    "lognormal": lambda rng, size: rng.lognormal(3, 0.5, size),
    "heavy tail (Pareto 1.5)": lambda rng, size: rng.pareto(1.5, size) + 1,
    "timer of 1 ms (ties)": lambda rng, size: np.round(rng.lognormal(1.5, 0.5, size)),
    "two modes": lambda rng, size: np.where(rng.random(size) < 0.97, rng.normal(20, 2, size), rng.normal(90, 9, size)),
    "correlated (AR 0.5)": correlated,
}


def looks(draw: Draw, factor: float, q: float, repeats: int, share: float = 1.0) -> tuple[float, int | None]:
    """Return how often no difference was ruled out at any look, and the median size at which it first was."""
    found = []
    for seed in range(repeats):
        rng = np.random.default_rng([seed, int(q * 1000)])
        a, b = draw(rng, LOOKS[-1]), factor * draw(rng, int(LOOKS[-1] * share))
        for size in LOOKS:
            low, high = quantile_difference(a[:size], b[: int(size * share)], q).interval
            if not low <= 0 <= high:
                found.append(int(size))
                break
    middle = sorted(found)[(repeats - 1) // 2] if len(found) > repeats // 2 else None
    return len(found) / repeats, middle


def ever(q: float, repeats: int, most: int = 20_000) -> float:
    """Return how often the true pair of quantiles is ever left out, with a look after each value of both samples."""
    sizes = np.arange(1, most + 1, dtype=np.float64)
    missed = 0
    for seed in range(repeats):
        counts = np.cumsum(np.random.default_rng([seed, 7]).random((2, most)) < q, axis=1).astype(np.float64)
        costs = [evidence(count, count, sizes, q, sequential=True) for count in counts]
        missed += bool(np.any(costs[1] >= log_limit(0.05, costs[0], sequential=True)))
    return missed / repeats


def fixed(draw: Draw, q: float, sizes: tuple[int, int], repeats: int) -> float:
    """Return how often the interval for one look leaves out that there is no difference."""
    missed = 0
    for seed in range(repeats):
        rng = np.random.default_rng([seed, 3])
        found = quantile_difference(draw(rng, sizes[0]), draw(rng, sizes[1]), q, sequential=False)
        missed += not found.interval[0] <= 0 <= found.interval[1]
    return missed / repeats


def of_another_mix(repeats: int, *, sequential: bool) -> tuple[float, float]:
    """Return how often another mix of two kinds is taken for a difference, and how often one of 30 % is not held."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests"))
    from analysis.test_comparison import asked, draw

    false, excluded = 0, 0
    for seed in range(repeats):
        rng = np.random.default_rng([seed, 5])
        a, same, slower = draw(rng, 1500, 0.1), draw(rng, 1500, 0.5), draw(rng, 1500, 0.05, 1.3)
        false += asked(a, same, 0.5, sequential=sequential).whole.quantiles[0].is_sure
        low, high = asked(a, slower, 0.8, sequential=sequential).whole.quantiles[0].adjusted.interval
        excluded += not low <= 0.3 <= high
    return false / repeats, excluded / repeats


def main() -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=300)
    repeats = parser.parse_args().repeats
    print(f"A/A, {len(LOOKS)} looks from 100 to 20,000 of each: share of runs with any false difference")
    for name, draw in DRAWS.items():
        print(f"  {name}:", *(f"p{100 * q:g} {looks(draw, 1, q, repeats)[0]:.3f}" for q in QUANTILES), flush=True)
    print("the true quantiles ever left out, a look after each of 20,000 values of each:")
    print(" ", *(f"p{100 * q:g} {ever(q, 10 * repeats):.4f}" for q in QUANTILES), flush=True)
    print("one look (sequential=False), A/A: share of false differences")
    for name in ("normal", "lognormal", "heavy tail (Pareto 1.5)", "timer of 1 ms (ties)"):
        for sizes in ((100, 100), (400, 400), (1000, 1000), (10_000, 10_000), (10_000, 500)):
            rates = (f"p{100 * q:g} {fixed(DRAWS[name], q, sizes, 4 * repeats):.3f}" for q in QUANTILES)
            print(f"  {name} {sizes[0]}/{sizes[1]}:", *rates, flush=True)
    print("another mix of two kinds, weighted: false differences at p50, and intervals at p80 without the true 30 %")
    print("  sequential", of_another_mix(repeats, sequential=True), flush=True)
    print("  one look", of_another_mix(repeats, sequential=False), flush=True)
    print("A/B, lognormal: share of runs that find it by 20,000 of each, and the median size at which they do")
    for factor in (1.02, 1.05, 1.1, 1.2, 1.5):
        rates = (f"p{100 * q:g} {looks(DRAWS['lognormal'], factor, q, repeats // 3)}" for q in QUANTILES)
        print(f"  x {factor}:", *rates, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
