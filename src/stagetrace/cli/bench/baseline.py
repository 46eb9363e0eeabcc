"""Baselines of `stagetrace bench`: the latencies of a run in a file of their own, and the comparison with them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.base import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from stagetrace.cli.bench.options import Gate

_ALPHA: Final = 0.05
_QUANTILES: Final = (0.5, 0.95, 0.99)
_SAME: Final = 0.01  # rates that differ by less are one
_FAILED_MS: Final = 1e15
_UNKNOWN: Final = 1e6  # a relative difference beyond this is that of a failed request, or no bound


@dataclass(frozen=True)
class Baseline:
    """The contents of a `--save` file, without headers and bodies."""

    name: str
    url: str
    rate: float
    arrivals: str
    saved_unix_nano: int
    latency_ms: Sequence[float | None]  # None: failed
    format: int = 1


def folder() -> Path:
    """Return where baselines are: beside the local store, in a folder of its own."""
    from stagetrace.store.url import default_folder

    store = default_folder()
    return store.with_name(f"{store.name}-bench")


def save(kept: Baseline) -> Path:
    """Write a baseline whole or not at all, and return its file."""
    path = folder() / f"{kept.name}.json"
    content = json.dumps(asdict(kept), allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".bench-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(part).replace(path)
    except OSError as error:
        raise UsageError(f"cannot save the baseline {path}: {error.strerror}") from None
    return path


def load(name: str) -> Baseline:
    """Return a baseline. Raise UsageError where there is none of this name, or it is damaged."""
    path = folder() / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        made = Baseline(**found)
        _ = [float(one) for one in made.latency_ms if one is not None]
    except FileNotFoundError:
        known = ", ".join(sorted(one.stem for one in path.parent.glob("*.json"))) or "none yet"
        raise UsageError(f"there is no baseline {name!r}; there is: {known}\nmake it: --save {name}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"cannot read the baseline {path}: {error}\nmake it anew: --save {name}") from None
    return made


def check(kept: Baseline, rate: float, arrivals: str) -> None:
    """Raise UsageError where a run at this rate is not to be compared with a baseline."""
    if abs(kept.rate - rate) > _SAME * kept.rate or kept.arrivals != arrivals:
        of = f"{kept.rate:g} requests/s, {kept.arrivals}"
        raise UsageError(
            f"the baseline {kept.name} is of {of}, and this run of {rate:g} requests/s, {arrivals}\n"
            f"what differs would be the load: give --rate {kept.rate:g} --arrivals {kept.arrivals}"
        )


def compare(kept: Baseline, latency_ms: NDArray[np.float64], gate: Gate | None) -> dict[str, Any]:
    """Return the quantiles of both, how they differ, and whether this run is surely slower than the gate allows."""
    import numpy as np

    from stagetrace.analysis.bench import quantile
    from stagetrace.analysis.compare import quantile_difference
    from stagetrace.analysis.objective import name_of

    before = np.array([np.inf if one is None else one for one in kept.latency_ms], dtype=np.float64)
    rows, is_slower = [], None
    for q in sorted({*_QUANTILES, *([gate.percentile] if gate else [])}):
        a, b = quantile(np.sort(before), q), quantile(np.sort(latency_ms), q)
        found = quantile_difference(_finite(before), _finite(latency_ms), q, alpha=_ALPHA, sequential=False)
        difference = None if not a or b is None else b / a - 1
        interval = [one if abs(one) < _UNKNOWN else None for one in found.interval]
        rows.append({"q": name_of(q), "a_ms": a, "b_ms": b, "difference": difference, "interval": interval})
        if gate is not None and q == gate.percentile:
            is_slower = found.interval[0] > gate.slower
    return {"baseline": kept.name, "saved_unix_nano": kept.saved_unix_nano, "quantiles": rows, "is_slower": is_slower}


def _finite(latency_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return latencies with those of failed requests far above all others, in place of infinite."""
    import numpy as np

    return np.where(np.isfinite(latency_ms), latency_ms, _FAILED_MS)
