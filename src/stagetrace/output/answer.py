"""The answer of a verb, before it is printed in one of its forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagetrace.output.chart import Chart
from stagetrace.output.keys import completeness
from stagetrace.output.table_layout import Table
from stagetrace.store.base import Partial


@dataclass(frozen=True)
class Answer(Partial):
    """One answer, of which `reason` explains what is missing, if anything is."""

    title: str  # heading of a page: `Service level objectives`
    sentence: str  # the answer, plainly: the first line
    keys: Mapping[str, Any]  # of `--json`, beside `complete`, `reason` and `sentence`; numbers are finite, or None
    parts: Sequence[str | Table | Chart] = ()  # what stands below: lines, tables, pictures
    is_bad: bool = False  # exit code 1
    is_undecided: bool = False  # exit code 2, unless it is bad: what was asked is not known
    reason: str | None = None


def as_json(answer: Answer) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {**completeness(answer.reason), "sentence": answer.sentence, **answer.keys}
