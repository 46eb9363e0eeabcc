"""Measure how often intervals of attainment hold the truth, and how often a kept objective is called missed.

Requests are drawn with a chance of a breach, then sampled as a head sampler does: each good one is kept with a
probability, each breach always. What is estimated is the attainment of the requests that there were.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from stagetrace.analysis.attainment import Counts, Target, attained, exact_interval, is_missed

LEAST = 1e-15  # chance of a count that matters
CASES = [
    (target, requests, probability)
    for target in (0.99, 0.999)
    for requests in (1_000, 10_000, 100_000)
    for probability in (0.01, 0.1, 0.5)
]


def sampled(target: float, requests: int, probability: float, runs: int, chance: np.random.Generator) -> dict[str, Any]:
    """Return how intervals out of samples do, of a service that keeps its objective just so on average."""
    held = missed_wrongly = missed = intervals = 0
    widths = []
    for _ in range(runs):
        breaches = int(chance.binomial(requests, 1 - target))
        kept = int(chance.binomial(requests - breaches, probability))
        weight = 1 / probability
        good, spread = kept * weight, kept * weight * (weight - 1)
        found = Counts(good + breaches, good, breaches, 0, spread, weight, kept + breaches, is_sampled=True)
        known = attained(found)
        if known is None:
            continue
        intervals += 1
        truth = 1 - breaches / requests
        held += known.low <= truth <= known.high
        widths.append(known.high - known.low)
        verdict = is_missed(known, Target(target, 1.0))
        missed += verdict is True
        missed_wrongly += verdict is True and truth >= target
    return {
        "target": target,
        "requests": requests,
        "probability": probability,
        "coverage": held / intervals,
        "missed": missed / intervals,
        "wrongly": missed_wrongly / intervals,
        "width": float(np.median(widths)),
    }


def exact(target: float, requests: int) -> float:
    """Return how often the interval of exact counts holds the chance with which the service meets its objective."""
    counts = np.arange(requests + 1)
    chances = binom.pmf(counts, requests, target)
    likely = counts[chances > LEAST]
    held = [low <= target <= high for low, high in (exact_interval(int(n), requests) for n in likely)]
    return float(np.sum(chances[likely][held]))


def main() -> None:
    """Print a line for each case."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--runs", type=int, default=4_000)
    given.add_argument("--json", action="store_true")
    args = given.parse_args()
    chance = np.random.default_rng(18)
    rows = [sampled(*case, args.runs, chance) for case in CASES]
    for row in rows:
        case = f"{100 * row['target']:g} % of {row['requests']:>7,}, sampled at {row['probability']:<4g}"
        shares = f"coverage {100 * row['coverage']:5.1f} %  missed {100 * row['missed']:5.2f} %"
        print(f"{case}  {shares}  wrongly {100 * row['wrongly']:5.2f} %  width {row['width']:.5f}")
    whole = {f"{target:g} of {n}": exact(target, n) for target in (0.99, 0.999) for n in (100, 5_000)}
    for name, coverage in whole.items():
        print(f"exact counts, {name}: coverage {100 * coverage:.2f} %")
    if args.json:
        print(json.dumps({"sampled": rows, "exact": whole}))


if __name__ == "__main__":
    main()
