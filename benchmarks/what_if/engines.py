"""Predict how language-model engines fare at twice their load, from published runs of others at the lower one.

Reads `replay_data` of https://github.com/inference-sim/training at commit c4f0340: vLLM on H100s, arrivals and times of
each request. Eight of its runs have two rates. From the requests of the lower rate alone, whose time is one stage,
those of the higher one are predicted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import numpy as np

from stagetrace.analysis.what_if.changes import Change
from stagetrace.analysis.what_if.model import fit
from stagetrace.analysis.what_if.prediction import PERCENTILES, predict
from stagetrace.analysis.what_if.recorded import WORK, Recorded

WARM_S: Final = 30.0  # of the higher rate that is left out, until as many are in flight as there are at it


def recorded(requests: list[dict[str, Any]], times: list[dict[str, Any]]) -> Recorded:
    """Return requests, in the order of their arrival, whose whole time is their inference."""
    start = np.array([one["arrival_time_us"] / 1e6 for one in requests])
    took = np.array([one["e2e_s"] for one in times])
    none = np.zeros(len(start))
    return Recorded(
        start_s=start - start[0],
        duration_s=took,
        receive_s=none,
        wait_s=none,
        send_s=none,
        work_s=dict.fromkeys(WORK, none) | {"inference": took},
        process=np.zeros(len(start), dtype=np.intp),
        path=np.full(len(start), "engine"),
        batch=np.full(len(start), np.nan),
        within_s=np.full(len(start), np.nan),
        cpus=None,
        cpu_s=None,
        is_engine=True,
    )


def main() -> None:
    """Print what is predicted beside what was measured, a line for each run."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path, help="`replay_data`")
    errors: list[list[float]] = []
    for path in sorted(arguments.parse_args().folder.glob("*[a-z].json")):
        if path.name.endswith("_ground_truth.json"):
            continue
        truth = json.loads(path.with_name(f"{path.stem}_ground_truth.json").read_text())
        known = {one["index"]: one for one in truth if not one["has_error"]}
        requests = [one for one in json.loads(path.read_text())["requests"] if one["index"] in known]
        arrive = np.array([one["arrival_time_us"] / 1e6 for one in requests])
        middle = float(arrive[-1]) / 2
        low, high = (
            [one for one, at in zip(requests, arrive, strict=True) if since <= at < until]
            for since, until in ((0.0, middle), (middle + WARM_S, float(arrive[-1])))
        )
        rate = len(high) / len(low)
        if rate < 1.5:  # a run of one rate
            continue
        a, b = (recorded(some, [known[one["index"]] for one in some]) for some in (low, high))
        found = predict(path.stem, fit(a, [], 64.0), [Change(rate=b.per_s / a.per_s)])
        line = f"{path.stem[16:]:28} {a.per_s:5.1f} -> {b.per_s:5.1f}/s "
        if found.refusal is not None:
            print(line, found.refusal)
            continue
        values = found.changes[0][1].percentiles_ms
        actual = {name: float(np.percentile(b.duration_s, rank)) for name, rank in PERCENTILES.items()}
        before = {name: float(np.percentile(a.duration_s, rank)) for name, rank in PERCENTILES.items()}
        errors.append([values[name].value / 1e3 / actual[name] - 1 for name in PERCENTILES])
        shown = (
            f"{name} {before[name]:.2f} -> {values[name].value / 1e3:.2f} s, was {actual[name]:.2f}"
            for name in PERCENTILES
        )
        print(line, "; ".join(shown))
    mean = np.abs(errors).mean(axis=0)
    print("mean error", ", ".join(f"{name} {100 * one:.1f} %" for name, one in zip(PERCENTILES, mean, strict=True)))


if __name__ == "__main__":
    main()
