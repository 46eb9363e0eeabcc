"""The source of an analysis's rows: named reductions, which a store runs where its data is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from stagetrace.estimates import Sample


class Source(Protocol):
    """Runs reductions: the relations of a selection, of any store."""

    def reduce(self, name: str, by: Sequence[str] = (), **values: object) -> list[dict[str, Any]]:
        """Return the rows of a reduction, column -> value.

        `by`: the keys of their groups: columns of `requests`, `path` (route or name), or keys of attributes, which
        are read of the entry span or else of its resource, in text form; `attribute:KEY` is one also where a column
        has its name. `values` are the reduction's parameters.
        """
        ...


def by_keys(rows: Iterable[dict[str, Any]], keys: Sequence[str]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Return rows by their values of `keys`, in the order in which these come."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def sample_of(rows: Sequence[Mapping[str, Any]]) -> Sample:
    """Return the sample that rows with `stored`, `sampled` and `unknown` stand for."""
    is_sampled, is_unknown = (any(row[name] for row in rows) for name in ("sampled", "unknown"))
    return Sample(sum(row["stored"] for row in rows), is_sampled, is_unknown)


def missing_first(keys: Sequence[str]) -> Callable[[Mapping[str, Any]], list[tuple[bool, str]]]:
    """Return the sort key of rows by some columns, missing values first."""
    return lambda row: [(row[key] is not None, row[key] or "") for key in keys]
