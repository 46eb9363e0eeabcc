"""Conditions on requests, each a value of an attribute or a range of its numbers, and how often each holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from stagetrace.analysis.arrays import Array
from stagetrace.analysis.contingency import Cells, Counts
from stagetrace.analysis.naming import SIZES, rank
from stagetrace.analysis.values import Coded, coded

_CELLS: Final = 500_000  # of the table of all conditions, over all strata


class Condition(NamedTuple):
    """That an attribute has a value, or one of several; `value` None: that it is absent."""

    key: int
    value: str | None


class Conditions:
    """All conditions on some requests of which `least` or more fulfil each."""

    def __init__(self, attributes: Mapping[str, Sequence[str | None]], counts: Counts, least: int) -> None:
        self.counts = counts
        self.keys: list[str] = []
        self.skipped: list[str] = []  # keys with too many values to be informative
        made: list[Coded] = []
        for key, column in attributes.items():
            one = coded(column, least, is_size=rank(key) in SIZES)
            if one is None:
                self.skipped.append(key)
            elif len(one.values) > 1 or (len(one.values) == 1 and one.has_others):
                self.keys.append(key)
                made.append(one)
        most = max(1, _CELLS // max(1, len(made) * counts.strata))
        made = [one.shortened(most) for one in made]
        widths = [len(one.values) + 1 for one in made]
        offsets = np.cumsum([0, *widths])
        self._width = int(offsets[-1])
        self._codes = np.empty((len(counts.breached), len(made)), np.int32)
        self.of: list[Condition] = []
        self._members: list[Array] = []  # codes in all columns together
        for place, (one, offset) in enumerate(zip(made, offsets.tolist(), strict=False)):
            self._codes[:, place] = one.codes + offset
            for code, value in enumerate(one.values):
                self.of.append(Condition(place, value))
                self._members.append(np.array([offset + code]))
            for name, codes in one.unions:
                self.of.append(Condition(place, name))
                self._members.append(offset + np.array(codes))
        self.key_of = np.array([one.key for one in self.of], int)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.of)

    def table(self, rows: Array) -> Cells:
        """Return how many of these requests fulfil each condition: by stratum and condition."""
        found = self.counts.table_of(self._codes, self._width, rows)
        firsts = [one[0] for one in self._members]
        table = Cells(found.bad[:, firsts], found.good[:, firsts])
        for place, codes in enumerate(self._members):
            if len(codes) > 1:
                table.bad[:, place] = found.bad[:, codes].sum(1)
                table.good[:, place] = found.good[:, codes].sum(1)
        return table

    def holds(self, condition: int, rows: Array) -> Array:
        """Return which of these requests fulfil a condition."""
        codes = self._codes[rows, self.key_of[condition]]
        return np.asarray(np.isin(codes, self._members[condition]))

    def named(self, parts: Sequence[int]) -> dict[str, str | None]:
        """Return the values that some conditions ask for, by key in their order."""
        return {self.keys[self.of[part].key]: self.of[part].value for part in sorted(parts)}
