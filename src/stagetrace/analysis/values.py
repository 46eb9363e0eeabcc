"""An attribute of many requests as small integers: one for each value that enough of them have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import isfinite
from typing import Final, TypeAlias

import numpy as np

from stagetrace.analysis.arrays import Array

MOST_VALUES: Final = 1000  # of one key, the most frequent
_BINS_FROM: Final = 20  # distinct numbers, for them to be divided into bins
_QUANTILES: Final = (0.25, 0.5, 0.75, 0.9, 0.99)
_FEW: Final = 0.5  # a key of which more than this share of the requests have a value of their own is an id


_Unions: TypeAlias = "Sequence[tuple[str, Sequence[str]]]"


@dataclass(frozen=True)
class Coded:
    """The code of each request, a place in `values`; `len(values)` for a value that is none of them."""

    codes: Array
    values: tuple[str | None, ...]  # the most frequent first
    has_others: bool
    unions: tuple[tuple[str, tuple[int, ...]], ...] = ()  # of ranges: all beyond an edge, and all up to it

    def shortened(self, most: int) -> Coded:
        """Return it with the most frequent values alone."""
        if len(self.values) <= most:
            return self
        return Coded(np.minimum(self.codes, most), self.values[:most], has_others=True)


def coded(column: Sequence[str | None], least: int, *, is_size: bool = False) -> Coded | None:
    """Return the values that at least so many requests have; None where almost each request has its own.

    Numbers of many values become ranges between quantiles (25, 50, 75, 90 and 99 %). `is_size`: few numbers are in an
    order, too.
    """
    places = {value: place for place, value in enumerate(dict.fromkeys(column))}
    codes = np.fromiter(map(places.__getitem__, column), np.int64, len(column))
    if len(places) >= _BINS_FROM:
        binned = _binned(list(places), codes)
        if binned is not None:
            codes, names, unions = binned
            return _with_unions(_frequent(codes, names, least), unions)
        present = len(column) - (np.count_nonzero(codes == places[None]) if None in places else 0)
        if len(places) > max(_BINS_FROM, _FEW * present):
            return None
    made = _frequent(codes, list(places), least)
    ordered = sorted((found, name) for name in made.values if name is not None and (found := number(name)) is not None)
    if is_size and len(ordered) >= len([name for name in made.values if name is not None]):
        return _with_unions(made, list(_beyond([edge for edge, _ in ordered[:-1]], [name for _, name in ordered])))
    return made


def _with_unions(made: Coded, unions: _Unions) -> Coded:
    """Return it with those of these sets of values that are more than one of its values."""
    places = {name: place for place, name in enumerate(made.values)}
    kept = [(name, tuple(places[one] for one in of if one in places)) for name, of in unions]
    return replace(made, unions=tuple((name, of) for name, of in kept if len(of) > 1))


def _beyond(edges: Sequence[float], labels: Sequence[str]) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield, for the end of each value but the last, what is beyond it and what is up to it."""
    for place, edge in enumerate(edges, 1):
        yield f"over {_text(edge)}", labels[place:]
        yield f"up to {_text(edge)}", labels[:place]


def _frequent(codes: Array, names: list[str | None], least: int) -> Coded:
    sizes = np.bincount(codes, minlength=len(names))
    order = np.argsort(-sizes, kind="stable")
    kept = order[sizes[order] >= least][:MOST_VALUES]
    recode = np.full(len(names), len(kept))
    recode[kept] = np.arange(len(kept))
    return Coded(recode[codes], tuple(names[place] for place in kept), has_others=bool(sizes.sum() > sizes[kept].sum()))


def _binned(names: list[str | None], codes: Array) -> tuple[Array, list[str | None], _Unions] | None:
    """Return codes and names of ranges, and of what is beyond or up to an edge, if all values are numbers.

    Absence remains a value of its own.
    """
    numbers = [number(name) for name in names]
    if any(one is None and name is not None for one, name in zip(numbers, names, strict=True)):
        return None
    of_value = np.array([np.nan if one is None else one for one in numbers])
    values = of_value[codes]
    there = ~np.isnan(values)
    edges = np.unique(np.quantile(values[there], _QUANTILES, method="inverted_cdf"))
    low, high = values[there].min(), values[there].max()
    edges = edges[edges < high]
    if not len(edges):
        return None
    ends = [low, *edges, high]
    labels = [range_text(first, last, is_first=not place) for place, (first, last) in enumerate(pairwise(ends))]
    bins = np.where(there, np.searchsorted(edges, np.where(there, values, low), side="left"), len(labels))
    return bins, [*labels, None], list(_beyond(edges.tolist(), labels))


def range_text(low: float, high: float, *, is_first: bool) -> str:
    """Return how a range is written that does not include its low end, unless it is the first one."""
    return f"{_text(low)} to {_text(high)}" if is_first else f"over {_text(low)}, to {_text(high)}"


def _text(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else f"{value:g}"


def number(text: str | None) -> float | None:
    """Return the finite number that a text is, or None."""
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        return None
    return found if isfinite(found) else None
