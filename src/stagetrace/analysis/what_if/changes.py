"""What is to be different about a service, in words, and what is to be reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A measure that is to be below a bound: `breaches` as a share, percentiles in ms."""

    measure: str
    below: float
    text: str


@dataclass(frozen=True)
class Change:
    """What is to be different; None and empty: as it is."""

    workers: int | None = None
    threads: int | None = None
    batch_size: int | None = None
    batch_wait_s: float | None = None
    rate: float | None = None  # times the present one
    per_s: float | None = None  # requests per second
    stages: Mapping[str, float] = field(default_factory=dict)  # stage -> part of its work that is left
    off_loop: tuple[str, ...] = ()  # requests that no longer hold the event loop
    most_in_process: int | None = None  # requests beyond which one is refused

    @property
    def text(self) -> str:
        """Return it in words: `2 workers, load x1.5`."""
        plain = {
            "workers": "{} workers",
            "threads": "{} threads",
            "batch_size": "batches of {}",
            "rate": "load x{:g}",
            "per_s": "{:g} requests/s",
            "most_in_process": "at most {} requests in a worker",
        }
        parts = [text.format(value) for key, text in plain.items() if (value := getattr(self, key)) is not None]
        if self.batch_wait_s is not None:
            parts.append(f"batches waiting {1e3 * self.batch_wait_s:g} ms")
        for stage, left in self.stages.items():
            parts.append(f"{stage} {100 * (left - 1):+g} %" if left else f"no {stage}")
        parts += [f"{one} off the loop" for one in self.off_loop]
        return ", ".join(parts).replace("1 workers", "1 worker") or "nothing changed"

    def keys(self) -> dict[str, Any]:
        """Return what is different, by name."""
        return {one.name: value for one in fields(self) if (value := getattr(self, one.name)) not in (None, {}, ())}


def together(changes: Sequence[Change]) -> Change | None:
    """Return several changes as one; None where there is one alone, or two are of the same thing."""
    if len(changes) < 2:  # noqa: PLR2004 -- one alone
        return None
    whole: dict[str, Any] = {}
    for key, value in (item for change in changes for item in change.keys().items()):
        if key == "stages" and not whole.get(key, {}).keys() & value.keys():
            whole[key] = whole.get(key, {}) | value
        elif key == "off_loop":
            whole[key] = whole.get(key, ()) + value
        elif key in whole:
            return None
        else:
            whole[key] = value
    return Change(**whole)
