"""Which requests `stagetrace compare` compares: those of --a and --b, or two versions of a model; and the gates."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.cli.arguments import segment, window
from stagetrace.cli.registry import UsageError
from stagetrace.output.units import between, shown
from stagetrace.store.base import Reader, Selection

if TYPE_CHECKING:
    from stagetrace.analysis.comparison import Comparison

VERSION: Final = "version"
SERVICE_VERSION: Final = "service.version"
_FIELDS: Final = ("model", "service", "route")
_PERIOD: Final = "period"
STORES: Final = ("store", "file")


@dataclass(frozen=True)
class Side:
    """One side: its name, its requests, their store, if that is another one, and their period, if it has its own."""

    name: str
    wanted: Selection
    url: str | None = None
    period: tuple[int, int] | None = None


def side_part(text: str) -> tuple[str, str]:
    """Return key and value of `KEY=VALUE`, as --a and --b take it."""
    key, value = segment(text)
    if not value:
        raise ValueError(f"{text!r} has no value")
    if key == _PERIOD:
        between(value)
    return key, value


def store_of(parts: Sequence[tuple[str, str]]) -> str | None:
    """Return the store that a side names. Raise UsageError if it names two."""
    found = [value for key, value in parts if key in STORES]
    if len(found) > 1:
        raise UsageError("one side names two stores\ngive one store=URL or file=PATH for each side")
    return found[0] if found else None


def side(reader: Reader, wanted: Selection, parts: Sequence[tuple[str, str]], args: argparse.Namespace) -> Side:
    """Return the side with these keys and values."""
    fields: dict[str, Any] = {}
    segments = dict(wanted.segments)
    names = []
    period = None
    for key, value in parts:
        if key in STORES:
            names.append(value)
        elif key == _PERIOD:
            since_ns, until_ns = period = window(*between(value), args.tz)
            fields |= {"since_ns": since_ns, "until_ns": until_ns}
            names.append(f"{shown(since_ns, args.tz, 0)} to {shown(until_ns, args.tz, 0)}")
        elif key in _FIELDS:
            if getattr(wanted, key) not in (None, value):
                raise UsageError(f"--{key} and a side name two values of {key}\nleave --{key} out")
            fields[key] = value
            names.append(f"{key} {value}")
        else:
            attribute = _version_key(reader, wanted, value) if key == VERSION else key
            if segments.get(attribute, value) != value:
                raise UsageError(f"{key} is given twice, with two values\none request has one value of it")
            segments[attribute] = value
            names.append(f"{key} {value}")
    return Side(" ".join(names), replace(wanted, segments=segments, **fields), store_of(parts), period)


def check(a: Side, b: Side) -> None:
    """Raise UsageError where a request may be on both sides."""
    if a.url != b.url:
        return
    times = ("since_ns", "until_ns")
    alike = replace(a.wanted, **{name: getattr(b.wanted, name) for name in times}) == b.wanted
    first, last = max(a.wanted.since_ns, b.wanted.since_ns), min(a.wanted.until_ns, b.wanted.until_ns)
    if alike and first < last:
        both = "are the same requests" if a.wanted == b.wanted else "have a part of their periods in common"
        raise UsageError(f"--a and --b {both}\na request can be on one side only")


def _version_key(reader: Reader, wanted: Selection, value: str) -> str:
    """Return the attribute that has this version: the model's, or else the service's."""
    with reader.relations(wanted) as relations:
        if any(row["model_version"] == value for row in relations.reduce("versions", ["model_version"])):
            return semconv.ML_MODEL_VERSION
        rows = relations.reduce("versions", [SERVICE_VERSION])
    return SERVICE_VERSION if any(row[SERVICE_VERSION] == value for row in rows) else semconv.ML_MODEL_VERSION


def newest_two(reader: Reader, wanted: Selection) -> tuple[Side, Side] | None:
    """Return the two newest versions of the model with most requests that has two, or of the service; else None."""
    for group, key, attribute in (
        ("model", "model_version", semconv.ML_MODEL_VERSION),
        ("service", SERVICE_VERSION, SERVICE_VERSION),
    ):
        with reader.relations(wanted) as relations:
            rows = relations.reduce("versions", [group, key])
        found = _two(rows, group, key)
        if found is not None:
            name, versions = found
            fields: dict[str, Any] = {} if name is None else {group: name}
            a, b = (
                Side(
                    f"version {version}",
                    replace(wanted, segments={**wanted.segments, attribute: version}, **fields),
                )
                for version in versions
            )
            return a, b
    return None


def _two(rows: Sequence[Mapping[str, Any]], group: str, key: str) -> tuple[str | None, tuple[str, str]] | None:
    found: dict[str | None, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row[key] is not None:
            found.setdefault(row[group], []).append(row)
    several = {name: of_one for name, of_one in found.items() if len(of_one) > 1}
    if not several:
        return None
    name = max(several, key=lambda one: (sum(row["requests"] for row in several[one]), repr(one)))
    old, new = sorted(several[name], key=lambda row: (row["first"], row[key]))[-2:]
    return name, (old[key], new[key])


class Gate(NamedTuple):
    """By how much b may be slower at a quantile, relative to a."""

    q: float
    limit: float
    text: str


def state_of(gate: Gate, compared: Comparison) -> str:
    """Return the state of a gate: with too little data it neither passes nor fails."""
    found = next(one.adjusted for one in compared.whole.quantiles if one.adjusted.q == gate.q)
    low, high = found.interval
    return "fail" if low > gate.limit else "pass" if high <= gate.limit else "undecided"


def gate_keys(gates: list[tuple[Gate, str]]) -> dict[str, Any]:
    """Return the keys of `--json` about gates: the worst state, and each gate."""
    states = {state for _, state in gates}
    worst = next((state for state in ("fail", "undecided", "pass") if state in states), None)
    return {"gate": worst, "gates": [{"gate": gate.text, "state": state} for gate, state in gates]}
