"""Measure `bottleneck`: how often its intervals cover the true share, and how long a critical path takes.

The services are made: their stages have known distributions, and the true share is that of four million requests. An
interval of 95 % is to cover it in 95 % of many samples, whatever their size.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from analysis.test_bottleneck import Requests, tails  # noqa: E402
from analysis.test_span_tree import Span  # noqa: E402
from benchmarks.measure import progress  # noqa: E402
from stagetrace.analysis.bottleneck import (  # noqa: E402
    PERCENTILES,
    ask,
)
from stagetrace.analysis.span_tree import (  # noqa: E402
    path_of,
    span_tree,
)
from stagetrace.analysis.stage_bins import half_width  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Service = Callable[[np.random.Generator, int], dict[str, Floats]]

TRUE = 4_000_000
SPANS = 100_000


def even(random: np.random.Generator, count: int) -> dict[str, Floats]:
    """Return stages whose shares are the same at each percentile."""
    whole = random.lognormal(3.0, 0.8, count)
    part = random.beta(20, 10, count)
    return {"inference": part * whole, "preprocess": (1 - part) * whole}


def bursts(random: np.random.Generator, count: int) -> dict[str, Floats]:
    """Return a queue that makes the whole tail: one request in fifty waits ten times as long as it is served."""
    waits = random.random(count) < 0.02
    return {
        "queue": np.where(waits, random.exponential(100.0, count), random.exponential(0.5, count)),
        "inference": random.lognormal(2.3, 0.3, count),
        "postprocess": random.gamma(4.0, 0.5, count),
    }


SERVICES: dict[str, Service] = {"heavy tail": tails, "even": even, "bursts": bursts}


def coverage(service: Service, sizes: list[int], samples: int) -> None:
    """Print how often the intervals of all stages cover the truth, by size and percentile."""
    random = np.random.default_rng(36)
    truth = exact(service(random, TRUE))
    for size in sizes:
        hits: dict[str, list[bool]] = {percentile: [] for percentile in PERCENTILES}
        widths: dict[str, list[float]] = {percentile: [] for percentile in PERCENTILES}
        for number in range(samples):
            (group,) = ask(Requests.tiled(service(random, size)))
            for one in group.stages:
                for percentile, interval in one.interval.items():
                    if interval is not None:
                        low, high = interval
                        hits[percentile].append(low <= truth[percentile][str(one.stage)] <= high)
                        widths[percentile].append(high - low)
            progress(f"{number + 1} of {samples} samples of {size:,}")
        cells = [
            f"{100 * float(np.mean(hits[key])):5.1f} % ({100 * float(np.mean(widths[key])):4.1f} wide)"
            if hits[key]
            else f"{'-':>19}"
            for key in PERCENTILES
        ]
        print(f"  {size:>8,}  {'  '.join(cells)}")


def exact(stages: dict[str, Floats]) -> dict[str, dict[str, float]]:
    """Return the shares around each percentile, in the bands of large samples."""
    total = np.sum(list(stages.values()), axis=0)
    order = np.argsort(total)
    found = {}
    for percentile, rank in PERCENTILES.items():
        half = half_width(rank)
        chosen = order[round((rank - half) * len(order)) : round((rank + half) * len(order))]
        whole = total[chosen].sum()
        found[percentile] = {stage: float(took[chosen].sum() / whole) for stage, took in stages.items()}
    return found


def traces() -> dict[str, list[Span]]:
    """Return large traces: of any shape, one child below the other, and all below one."""
    random = np.random.default_rng(5)
    mixed = [Span("0", None, 0, 10**9)]
    for number in range(1, SPANS):
        parent = mixed[int(random.integers(max(0, number - 50), number))]
        start, end = np.sort(random.integers(parent.start_unix_nano, parent.end_unix_nano + 1, 2)).tolist()
        mixed.append(Span(str(number), parent.span_id, start, end))
    deep = [Span("0", None, 0, 10**9), *(Span(str(n), str(n - 1), n, 10**9 - n) for n in range(1, SPANS))]
    wide = [Span("0", None, 0, 10**9), *(Span(str(n), "0", 10 * n, 10 * n + 10) for n in range(1, SPANS))]
    return {"mixed": mixed, "deep": deep, "wide": wide}


def main() -> None:
    """Print coverage by service, sample size and percentile, then the time of critical paths."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--samples", type=int, default=400, help="of each size; default: 400")
    given.add_argument("--sizes", type=int, nargs="+", default=[200, 600, 2000, 20_000])
    args = given.parse_args()
    for name, service in SERVICES.items():
        print(f"{name}: intervals that cover the true share, at {', '.join(PERCENTILES)}")
        coverage(service, args.sizes, args.samples)
    for name, spans in traces().items():
        began = time.process_time()
        count = len(path_of(span_tree(spans)).segments)
        print(
            f"critical path of {SPANS:,} spans, {name}: {time.process_time() - began:.2f} s of CPU, {count:,} segments"
        )


if __name__ == "__main__":
    main()
