"""The two relations that every analysis and `stagetrace query` see, alike over every store, by the one schema.

Absent attributes, and those of another type than their column, are NULL. Entry spans are the spans of kind SERVER.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from stagetrace import columns, semconv

# Column -> (attribute, DuckDB type); of both relations unless the schema has a narrower choice.
TYPED: Final[Mapping[str, tuple[str, str]]] = {
    one.name: (one.attribute, one.type) for one in columns.SCHEMA if one.attribute is not None and one.relations
}
# Column -> the name of its attribute before OpenTelemetry's semantic conventions 1.23, read where that is absent.
OLDER: Final[Mapping[str, str]] = {one.name: one.older for one in columns.SCHEMA if one.older is not None}

SPANS: Final[Mapping[str, str]] = {one.name: one.type for one in columns.SCHEMA if columns.SPANS in one.relations}
REQUESTS: Final[Mapping[str, str]] = {
    one.in_requests or one.name: one.type for one in columns.SCHEMA if columns.REQUESTS in one.relations
}
# The columns of the view that both are made of; `requests` computes a few more.
LOADED: Final[Mapping[str, str]] = {
    one.name: one.type for one in columns.SCHEMA if one.relations and (one.attribute is not None or one.made is None)
}

# Stage -> column with its total, which the entry span itself carries: `requests` is a filter of `spans`, never a join.
STAGE_COLUMNS: Final[Mapping[str, str]] = {
    stage: next(one.name for one in columns.SCHEMA if one.attribute == semconv.stage_total_ms(stage))
    for stage in semconv.STAGES
}
OTHER_STAGES: Final = "other_ms"
# Those that a store decodes row by row, so that a question that names none of them is cheaper.
DECODED: Final = frozenset({"attributes"})


def probability_of(found: float | None) -> float | None:
    """Return the sampling probability of an entry span: 0 for a value that is none, None where it is 1."""
    if found is None or found == 1:
        return None
    return found if columns.LEAST_PROBABILITY <= found < 1 else 0.0


def weight_of(probability: float | None, *, breached: bool | None) -> float:
    """Return how many requests a row of `requests` stands for, as the schema has it for SQL.

    A breach stands for itself, for the head sampler of its process drops none; any other request for as many as its
    probability implies. Where that is not known it counts as one, and `estimates.Sample` records that.
    """
    return 1 / probability if probability and not breached else 1.0
