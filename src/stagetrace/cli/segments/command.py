"""`stagetrace segments`: how tenants, tiers, regions, input sizes fare: breaches, latency, stages, against the rest."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv
from stagetrace.analysis.naming import rank
from stagetrace.cli.arguments.options import add_selection, count, utf8
from stagetrace.cli.output.formats import add_format
from stagetrace.cli.segments import view

if TYPE_CHECKING:
    from stagetrace.analysis.cases import Cases
    from stagetrace.output.answer import Answer
    from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = (
    "Show how segments of the requests fare: by tenant, tier, region, model version, input size or any attribute. Of\n"
    "each: breaches, p50 and p99, where its time goes, its part of the time over the objectives, and whether it\n"
    "differs from the rest on the same routes. What is beyond the largest segments is summed."
)
EXAMPLE: Final = "stagetrace segments --by tenant.id --since 1d"
_ATTRIBUTES: Final = (
    "tenant.id", "tenant", "tenant.name", "user.tier", "tenant.tier", "tier", "customer.tier", "plan", "customer.id",
    "customer", "organization.id", "enduser.id", "user.id", "region", "cloud.region", "user.region",
    "geo.country.iso_code", "client.type", semconv.HTTP_REQUEST_BODY_SIZE, semconv.ML_BATCH_SIZE,
    semconv.ML_MODEL_VERSION, "service.version",
)  # fmt: skip
KNOWN: Final = tuple(sorted(_ATTRIBUTES, key=rank))  # those that a person knows best first
_NUMBERS: Final = (
    0.5  # of the values named, and of the requests: more are numbers, and fewer are in the largest segments
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_selection(parser, cause=False)
    parser.add_argument(
        "--by",
        metavar="ATTRIBUTE",
        type=utf8,
        help="attribute of the entry span or its resource, or a column of `requests`; numbers of many values become "
        f"ranges; default: the first of these that differs between requests: {', '.join(KNOWN)}",
    )
    parser.add_argument(
        "--top", metavar="N", type=count, default=20, help="how many segments; default: 20, at most 200"
    )
    add_format(parser)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return how the segments of a selection fare."""
    from stagetrace.analysis import cases
    from stagetrace.analysis.remedy import remedies
    from stagetrace.analysis.segments import segments

    most = min(args.top, 200)
    with reader.relations(wanted) as relations:
        found = cases.ask(relations)
        if not found.rows:
            found = cases.ask_any(relations)
        by = args.by or _default(found)
        rows: Sequence[Mapping[str, Any]] = []
        names: list[str | None] = []
        ranges = False
        if by is not None and found.rows:
            rows = relations.reduce("segments", [by], most=most)
            names = _names(found, by)
            if _are_numbers(rows):
                names, rows, ranges = _ranges(found, names, most)
    fares = segments(rows)
    fixed = remedies(found, names) if names else {}
    shown = view.Shown(by, fares, fixed, found, is_ranges=ranges)
    return view.answer(shown, relations.reason)


def _default(cases: Cases) -> str | None:
    """Return the best-known attribute of which requests have several values, or one that they have at all."""
    columns = {key: set(_names(cases, key)) for key in KNOWN}
    several = (key for key, found in columns.items() if len(found) > 1)
    return next(several, next((key for key, found in columns.items() if found != {None} and found), None))


def _names(cases: Cases, by: str) -> list[str | None]:
    """Return the text of an attribute or a column of each request of the sample."""
    if cases.rows and by in cases.rows[0] and by not in ("keys", "texts"):
        return [None if row[by] is None else str(row[by]) for row in cases.rows]
    found: list[str | None] = []
    for row in cases.rows:
        own = dict(zip(row["keys"], row["texts"], strict=True))
        found.append(own.get(by, dict(zip(row["resource_keys"], row["resource_texts"], strict=True)).get(by)))
    return found


def _are_numbers(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether most values are numbers, of which the largest segments have few requests."""
    from stagetrace.analysis.values import number

    named = {row["segment"] for row in rows if row["place"]} - {None}
    beyond = sum(row["requests"] for row in rows if not row["place"])
    numbers = sum(number(name) is not None for name in named)
    return bool(named) and beyond > _NUMBERS * sum(row["requests"] for row in rows) and numbers > _NUMBERS * len(named)


def _ranges(cases: Cases, names: list[str | None], most: int) -> tuple[list[str | None], list[dict[str, Any]], bool]:
    """Return the range of each request of the sample, and the rows of the reduction for these, out of the sample."""
    from stagetrace.analysis.histograms import of_cases
    from stagetrace.analysis.values import coded

    made = coded(names, 1)
    if made is None:
        return names, of_cases(cases, names, most), False
    ranges = [made.values[code] if code < len(made.values) else None for code in made.codes.tolist()]
    return ranges, of_cases(cases, ranges, most), True
