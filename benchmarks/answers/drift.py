"""Measure how well `drift` finds new levels, how often it gives a false alarm, and how late an alarm of --watch is.

Levels: series of 60, 200 and 1,000 values with 1, 2 and 6 steps, in eleven kinds of noise, against PELT of
`ruptures` with its default penalty (2 log n times the variance of the noise, from differences). A mark counts if it
is within five values. Turing: the series of one dimension in a clone of github.com/alan-turing-institute/TCPD, given
by --tcpd, against its annotations, by the measures of van den Burg and Williams (2020, arXiv:2003.06222). Alarms:
months of steps of five minutes without change, looked at as --watch does, a day at a time. Delays: steps of time from
a change to its alarm.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import ruptures
from scipy.signal import lfilter

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT)]

from stagetrace.analysis import drift  # noqa: E402
from stagetrace.analysis.levels import levels as find_levels  # noqa: E402
from stagetrace.analysis.levels import noise_of_differences  # noqa: E402
from stagetrace.analysis.series import (  # noqa: E402
    Track,
    without_pattern,
)
from stagetrace.cli.drift.view import (  # noqa: E402
    ALARMS,
    Alarms,
)

MARGIN: Final = 5
STEP_NS: Final = 300 * 10**9
DAY: Final = 288  # steps
NOON: Final = 1_772_366_400_000_000_000
Noise = Callable[[np.random.Generator, int], Any]


def autocorrelated(rho: float) -> Noise:
    """Return a first-order autoregression of variance 1."""
    share = np.sqrt(1 - rho * rho)
    return lambda rng, size: lfilter([share], [1, -rho], rng.standard_normal(size + 200))[200:]


NOISES: dict[str, Noise] = {
    "gaussian": lambda rng, size: rng.standard_normal(size),
    "log-normal": lambda rng, size: (rng.lognormal(0, 0.5, size) - 1.13) / 0.6,
    "heavy tail (t3)": lambda rng, size: rng.standard_t(3, size) / 1.73,
    "autocorrelated 0.4": autocorrelated(0.4),
    "autocorrelated 0.7": autocorrelated(0.7),
    "outliers, 3 %": lambda rng, size: rng.standard_normal(size) + (rng.random(size) < 0.03) * rng.uniform(8, 25, size),
    "uneven": lambda rng, size: rng.standard_normal(size) * np.where(np.arange(size) % 100 < 50, 0.5, 1.5),
    "two modes": lambda rng, size: (rng.random(size) < 0.3) * 3.0 + 0.5 * rng.standard_normal(size),
    "whole numbers": lambda rng, size: np.round(rng.standard_normal(size)),
    "on a slope": lambda rng, size: rng.standard_normal(size) + np.arange(size) / size * 6,
    "day pattern": lambda rng, size: rng.standard_normal(size) + 4 * np.sin(2 * np.pi * np.arange(size) / 24),
}


def pelt(values: Any) -> list[int]:
    """Return the levels by PELT with squared loss."""
    penalty = 2 * np.log(len(values)) * max(noise_of_differences(values), 1e-9) ** 2
    method = ruptures.KernelCPD(kernel="linear", min_size=4)  # squared loss, in C
    return [int(one) for one in method.fit(values).predict(pen=penalty)[:-1]]


def drifted(values: Any) -> list[int]:
    """Return the levels as `drift` finds them in a series of hours."""
    clean, _ = without_pattern(values, drift.periods_of(3_600 * 10**9))
    return [int(one) for one in find_levels(clean).starts]


METHODS: dict[str, Callable[[Any], list[int]]] = {
    "drift": drifted,
    "PELT": pelt,
}


def stepped(rng: np.random.Generator, size: int, steps: int, deviations: float) -> tuple[Any, list[int]]:
    """Return levels and where they begin, 15 values apart at least."""
    while True:
        at = np.sort(rng.choice(np.arange(15, size - 15), steps, replace=False))
        if (np.diff(at) >= 15).all():
            break
    values = np.zeros(size)
    for one in at:
        values[one:] += deviations * rng.choice([-1, 1]) * rng.uniform(1, 1.6)
    return values, [int(one) for one in at]


def right(marks: list[int], truth: list[int]) -> int:
    """Return how many changes have a mark of their own nearby."""
    left = list(marks)
    count = 0
    for one in truth:
        near = [mark for mark in left if abs(mark - one) <= MARGIN]
        if near:
            left.remove(min(near, key=lambda mark: abs(mark - one)))
            count += 1
    return count


def levels(repeat: int) -> None:
    """Print F1 and false alarms for each 1,000 values without change, of each method."""
    for name, method in METHODS.items():
        rng = np.random.default_rng(18)
        began = time.process_time()
        print(f"\n{name:22} {'F1: 3 deviations':>17} {'5 deviations':>13} {'false alarms per 1,000 values':>30}")
        total = []
        for noise, make in NOISES.items():
            scores = []
            for deviations in (3, 5):
                found = marked = there = 0
                for size, steps in ((60, 1), (200, 2), (1000, 6)):
                    for _ in range(repeat):
                        values, truth = stepped(rng, size, steps, deviations)
                        marks = method(values + make(rng, size))
                        found, marked, there = found + right(marks, truth), marked + len(marks), there + len(truth)
                scores.append(2 * found / max(marked + there, 1))
            false = sum(len(method(make(rng, size))) for size in (100, 1000) for _ in range(1000 * repeat // size))
            print(f"  {noise:20} {scores[0]:17.3f} {scores[1]:13.3f} {false / (2 * repeat):30.2f}", flush=True)
            total.append((*scores, false / (2 * repeat)))
        mean = np.mean(total, axis=0)
        took = time.process_time() - began
        print(f"  {'mean':20} {mean[0]:17.3f} {mean[1]:13.3f} {mean[2]:30.2f}   {took:.0f} s of CPU")


def f_measure(annotations: dict[str, list[int]], marks: list[int]) -> float:
    """Return F1 within MARGIN: precision against all annotators together, recall as the mean over them."""
    found = {0, *marks}
    everyone = {0, *(one for many in annotations.values() for one in many)}
    precision = right(sorted(found), sorted(everyone)) / len(found)
    recall = np.mean([right(sorted(found), sorted({0, *many})) / len({0, *many}) for many in annotations.values()])
    return float(2 * precision * recall / (precision + recall))


def covering(annotations: dict[str, list[int]], marks: list[int], size: int) -> float:
    """Return how well the segments between marks cover those of each annotator (Jaccard), as the mean over them."""
    ours = _segments(marks, size)
    of_each = []
    for many in annotations.values():
        covered = 0.0
        for low, high in _segments(many, size):
            best = max(
                max(0, min(high, end) - max(low, start)) / (max(high, end) - min(low, start)) for start, end in ours
            )
            covered += (high - low) * best
        of_each.append(covered / size)
    return float(np.mean(of_each))


def _segments(marks: list[int], size: int) -> list[tuple[int, int]]:
    edges = sorted({0, size, *(one for one in marks if 0 < one < size)})
    return list(pairwise(edges))


def turing(folder: Path) -> None:
    """Print F1 and covering of each method, of the series of one dimension that the clone holds."""
    annotations = json.loads((folder / "annotations.json").read_text())
    series = []
    for path in sorted(folder.glob("datasets/*/*.json")):
        found = json.loads(path.read_text())
        if found["n_dim"] == 1 and found["name"] in annotations:
            raw = [np.nan if value is None else float(value) for value in found["series"][0]["raw"]]
            series.append((found["name"], np.array(raw)))
    methods: dict[str, Callable[[Any], list[int]]] = {**METHODS, "no change at all": lambda _: []}
    scores: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    print(f"\nTuring Change Point Dataset, {len(series)} series of one dimension: F1 and covering of {list(methods)}")
    for name, values in series:
        line = []
        for method, made in scores.items():
            known = np.flatnonzero(np.isfinite(values))
            marks = [int(known[one]) for one in methods[method](values[known])]
            made.append((f_measure(annotations[name], marks), covering(annotations[name], marks, len(values))))
            line += [f"{made[-1][0]:.2f} {made[-1][1]:.2f}"]
        print(f"  {name:24} {len(values):6} {'  |  '.join(line)}", flush=True)
    for method, made in scores.items():
        print(
            f"  {method:24} F1 {np.mean([one for one, _ in made]):.3f} covering {np.mean([one for _, one in made]):.3f}"
        )


def track(values: Any, name: str = "p99") -> Track:
    """Return a series of one route in steps of five minutes."""
    return Track("shop", "POST /predict", None, None, name, NOON, STEP_NS, tuple(map(float, values)), 100 * len(values))


# The noise of a p99 of some hundred requests is about 10 % of it.
SERVED: dict[str, Noise] = {
    "gaussian": lambda rng, size: 50 * (1 + 0.1 * rng.standard_normal(size)),
    "log-normal": lambda rng, size: 50 * np.exp(0.1 * rng.standard_normal(size)),
    "heavy tail": lambda rng, size: 50 * np.exp(0.06 * rng.standard_t(3, size)),
    "autocorrelated 0.5": lambda rng, size: 50 * np.exp(0.1 * autocorrelated(0.5)(rng, size)),
    "day pattern": lambda rng, size: (
        50 * np.exp(0.1 * rng.standard_normal(size) + 0.4 * np.maximum(np.sin(2 * np.pi * np.arange(size) / DAY), 0))
    ),
}


def answers(repeat: int) -> None:
    """Print how often one answer about 18 series of a day (of the day pattern: of four days) has a false change."""
    rng = np.random.default_rng(19)
    print(f"\nfalse answers, of {repeat} about 18 series without change")
    for name, make in SERVED.items():
        size = 4 * DAY if name == "day pattern" else DAY
        false = 0
        for _ in range(repeat):
            looked = drift.look([track(np.maximum(make(rng, size), 0.1), f"p{n}") for n in range(18)])
            false += any(one.changes for one in looked)
        print(f"  {name:20} {false}", flush=True)


def months(count: int, every: int) -> None:
    """Print the alarms of months of one series, watched a day at a time (of the day pattern: four)."""
    rng = np.random.default_rng(20)
    print(f"\nfalse alarms of {count} months of watching one series, asked every {5 * every} minutes")
    for name, make in SERVED.items():
        window = 4 * DAY if name == "day pattern" else DAY
        alarms = 0
        for _ in range(count):
            values = np.maximum(make(rng, 30 * DAY + window), 0.1)
            alarmed = Alarms()
            for end in range(window, len(values), every):
                one = track(values[end - window : end])
                moved = Track(*(*_fields(one)[:5], NOON + (end - window) * STEP_NS, *_fields(one)[6:]))
                alarms += len(alarmed.new(drift.look([moved], alarms=ALARMS)))
        print(f"  {name:20} {alarms}", flush=True)


def _fields(one: Track) -> tuple[Any, ...]:
    return tuple(getattr(one, name) for name in one.__dataclass_fields__)


def delays(repeat: int) -> None:
    """Print the steps of time from a change to its alarm, at the median and the 90th percentile."""
    rng = np.random.default_rng(21)
    print(f"\nsteps of time to the alarm, of {repeat} changes each; noise of 10 %")
    for size in (0.2, 0.3, 0.5, 1.0):
        took = []
        for _ in range(repeat):
            values = SERVED["log-normal"](rng, 2 * DAY)
            values[DAY:] *= 1 + size
            alarmed = Alarms()
            for end in range(DAY + 1, 2 * DAY):
                if alarmed.new(drift.look([track(values[end - DAY : end])], alarms=ALARMS)):
                    took.append(end - DAY)
                    break
        middle, late = (np.quantile([*took, *[np.inf] * (repeat - len(took))], q, method="lower") for q in (0.5, 0.9))
        print(f"  +{100 * size:.0f} %: {middle:.0f}, {late:.0f}; {len(took)} of {repeat} found", flush=True)


def main() -> None:
    """Print all parts, or the named ones."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("parts", nargs="*", help="levels, turing, answers, months, delays; default: all")
    given.add_argument("--tcpd", type=Path, help="a clone of TCPD, for turing")
    given.add_argument("--repeat", type=int, default=20)
    given.add_argument("--months", type=int, default=3)
    given.add_argument("--every", type=int, default=4, help="steps between two looks of a watch")
    args = given.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "levels": lambda: levels(args.repeat),
        "answers": lambda: answers(args.repeat),
        "months": lambda: months(args.months, args.every),
        "delays": lambda: delays(args.repeat),
    }
    if args.tcpd is not None:
        parts["turing"] = lambda: turing(args.tcpd)
    for name, part in parts.items():
        if not args.parts or name in args.parts:
            part()


if __name__ == "__main__":
    main()
