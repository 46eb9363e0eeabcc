"""How often `causes` and `segments` are right: false findings, planted effects, injected faults; and how fast.

python benchmarks/answers/causes.py [--seeds 200] [--systems 40] [--incidents 20]
    [--only null|planted|incidents|faults|mixes|segments|speed]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from analysis.microservices import FAULTS, Fault, System, window  # noqa: E402
from analysis.test_segments import made  # noqa: E402
from benchmarks.answers.incidents import KINDS, incident, is_same, meant  # noqa: E402
from stagetrace.analysis.causes import search  # noqa: E402
from stagetrace.analysis.localise import localise  # noqa: E402

Columns = dict[str, list[str | None]]


def columns(rng: np.random.Generator, size: int, keys: int) -> Columns:
    """Return attributes that have nothing to do with anything."""
    return {f"k{key}": [f"v{value}" for value in rng.integers(0, rng.integers(2, 60), size)] for key in range(keys)}


def null(seeds: int) -> None:
    """Print in how many draws without any cause something is found."""
    for size, keys in ((500, 10), (5_000, 10), (5_000, 30)):
        false = 0
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            route = rng.choice(3, size, p=[0.6, 0.3, 0.1])
            breached = rng.random(size) < np.array([0.01, 0.2, 0.5])[route]
            false += bool(search(columns(rng, size, keys), breached.tolist(), strata=route.tolist()).contrasts)
        print(f"null: {size:,} requests x {keys} keys: something found in {false} of {seeds} draws")


def planted(seeds: int) -> None:
    """Print how often a planted value and a planted pair come first, and whether anything else is named."""
    for kind in ("value", "pair"):
        for risk in (0.04, 0.08, 0.2):
            first, others = 0, 0
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                found = columns(rng, 5_000, 10)
                found["version"] = [str(one) for one in rng.choice(["a", "b"], 5_000, p=[0.8, 0.2])]
                found["tenant"] = [str(one) for one in rng.choice(["gold", "free"], 5_000, p=[0.3, 0.7])]
                hit = np.array(found["version"]) == "b"
                wanted = {"version": "b"}
                if kind == "pair":
                    hit &= np.array(found["tenant"]) == "gold"
                    wanted["tenant"] = "gold"
                named = search(found, (rng.random(5_000) < np.where(hit, risk, 0.02)).tolist()).contrasts
                first += bool(named) and named[0].values == wanted
                others += sum(one.values != wanted for one in named)
            print(f"planted {kind}: {risk:.0%} against 2 %: first in {first} of {seeds}, {others} other findings")


def incidents(seeds: int) -> None:
    """Print precision and recall of the findings of planted incidents, and how often the first one is a cause.

    A finding is right if its requests are about those of a cause, and named if it has its name as well.
    """
    for kind in KINDS:
        counts: Counter[str] = Counter()
        began = time.process_time()
        for seed in range(seeds):
            one = incident(kind, seed)
            found = search(one.columns, one.breached, one.weights, one.routes).contrasts
            masks = [meant(one, each.values) for each in found]
            right = [any(is_same(mask, hit) for _, hit in one.causes) for mask in masks]
            counts["found"] += len(found)
            counts["right"] += sum(right)
            counts["causes"] += len(one.causes)
            counts["recalled"] += sum(any(is_same(mask, hit) for mask in masks) for _, hit in one.causes)
            counts["first"] += right[:1] == [True]
            counts["named"] += bool(found) and any(found[0].values == values for values, _ in one.causes)
        used = (time.process_time() - began) / seeds
        print(
            f"incident {kind}: precision {counts['right'] / max(1, counts['found']):.2f}, "
            f"recall {counts['recalled'] / counts['causes']:.2f}, first right {counts['first']} of {seeds}, "
            f"by its name {counts['named']}; {used:.2f} s of CPU with the making"
        )


def mixes(systems: int) -> None:
    """Print how often a service is named where only the mix of calls differs, and where one of them is slower, too."""
    names = ("stock", "prices", "search", "refunds", "mail", "media")
    innocent = right = others = 0
    for seed in range(systems):
        rng = np.random.default_rng(seed)
        now, normal = (dict(zip(names, rng.uniform(0.05, 0.95, len(names)).tolist(), strict=True)) for _ in range(2))
        innocent += bool(localise(window(rng, 0, now), window(rng, 1000, normal)).culprits)
        target = str(rng.choice(names))
        found = localise(window(rng, 2000, now, **{target: 20.0}), window(rng, 3000, normal)).culprits
        right += bool(found) and found[0].service == target
        others += any(one.service != target for one in found)
    print(f"mixes: a service named in {innocent} of {systems} without a fault")
    print(f"mixes: the slower one first in {right} of {systems}, another one named in {others}")


def faults(systems: int) -> None:
    """Print how often the service with an injected fault is ranked first, and among the first three."""
    for strength, count in ((1.0, 150), (0.3, 150), (0.3, 60)):
        for kind in FAULTS:
            ranks: Counter[str] = Counter()
            for seed in range(systems):
                rng = np.random.default_rng(seed)
                system = System(seed)
                target = str(rng.choice(system.reached()))
                slow, normal = system.traces(count, rng, Fault(kind, target, strength)), system.traces(count, rng)
                wanted = {target, f"db-of-{target}"} if kind == "database" else {target}
                named = [one.service for one in localise(slow, normal).culprits]
                place = next((at for at, name in enumerate(named) if name in wanted), None)
                ranks["first"] += place == 0
                ranks["of three"] += place is not None and place < 3
                ranks["silent"] += not named
            shown = ", ".join(f"{name} {ranks[name]}" for name in ("first", "of three", "silent"))
            print(f"fault {kind}, strength {strength}, {count} traces: {shown} of {systems}")
    false = 0
    for seed in range(systems):
        rng = np.random.default_rng(seed)
        traces = System(seed).traces(200, rng)
        order = rng.permutation(200)
        false += bool(localise([traces[at] for at in order[:100]], [traces[at] for at in order[100:]]).culprits)
    print(f"no fault: a service named in {false} of {systems}")


def segment_draws(seeds: int) -> None:
    """Print how often any of 12 equal segments differs, and how often one with more breaches does."""
    false = 0
    for seed in range(seeds):
        found = made(seed, 3_000)[0]
        false += any(min(one.q_value or 1, one.latency_q_value or 1) <= 0.05 for one in found.segments)
    print(f"segments: any of 12 equal ones differs in {false} of {seeds} draws")
    for share in (0.04, 0.06, 0.1):
        hits = sum(any(one.segment == "t3" for one in made(seed, 6_000, share)[0].different) for seed in range(seeds))
        print(f"segments: one with {share:.0%} against 2 % differs in {hits} of {seeds} draws")


def speed() -> None:
    """Print how long 200,000 requests with 30 keys take."""
    rng = np.random.default_rng(5)
    size = 200_000
    found = columns(rng, size, 28)
    found["id"] = [f"{one:032x}" for one in range(size)]
    found["size"] = [str(one) for one in rng.integers(0, 10**6, size)]
    breached = (rng.random(size) < np.where(np.array(found["k5"]) == "v1", 0.2, 0.03)).tolist()
    routes = rng.integers(0, 10, size).tolist()
    began, cpu = time.perf_counter(), time.process_time()
    tests = search(found, breached, strata=routes).tests
    took, used = time.perf_counter() - began, time.process_time() - cpu
    print(
        f"speed: {size:,} requests x {len(found)} keys, 10 routes: {took:.1f} s, {used:.1f} s of CPU, {tests:,} tests"
    )


def main() -> None:
    """Run the studies."""
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--seeds", type=int, default=200)
    given.add_argument("--systems", type=int, default=40)
    given.add_argument("--incidents", type=int, default=20)
    given.add_argument("--only", default="")
    args = given.parse_args()
    studies = {
        "null": lambda: null(args.seeds),
        "planted": lambda: planted(args.seeds),
        "incidents": lambda: incidents(args.incidents),
        "mixes": lambda: mixes(args.systems),
        "faults": lambda: faults(args.systems),
        "segments": lambda: segment_draws(args.seeds),
        "speed": speed,
    }
    for name, study in studies.items():
        if args.only in name:
            study()


if __name__ == "__main__":
    main()
