"""What each member of the reader contract is asked for, and what that means, worked out of the spans themselves."""

from __future__ import annotations

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, cast

import pytest

from stagetrace import semconv
from stagetrace.analysis.estimates import Sample
from stagetrace.store import Selection
from stagetrace.store.base import Lost, Tally
from stagetrace.store.rows import value
from stagetrace.store.typed import value as typed
from store.feed import MS, Made
from store.spans import ALL, BASE, CODES, END, ENTRIES, NASTY, RENAMED, RPC, WHOLE

SHOWN = "POST /predict within 50ms"
SELECTIONS = {
    "time": WHOLE,
    "part": Selection(BASE + 70 * MS, BASE + 280 * MS),
    "edges": Selection(ALL[40].start, ALL[80].start),
    "service": replace(WHOLE, service="contract-1"),
    "inner-service": replace(WHOLE, service="contract-back"),  # of traces that begin in another
    "route": replace(WHOLE, route="/rank"),
    "rpc": replace(WHOLE, route=RPC),
    "model": replace(WHOLE, model="Tagger"),
    "nasty": replace(WHOLE, route=NASTY, model=NASTY),
    "text": replace(WHOLE, segments={"tenant": "it's"}),
    "empty": replace(WHOLE, segments={"tenant": ""}),
    "integer": replace(WHOLE, segments={"tier": "1"}),
    "float": replace(WHOLE, segments={"ratio": "0.5"}),
    "whole-float": replace(WHOLE, segments={"ratio": "50"}),
    "boolean": replace(WHOLE, segments={"paying": "true"}),
    "renamed": replace(WHOLE, segments={RENAMED[1]: "client"}),
    "by-its-older-name": replace(WHOLE, segments={RENAMED[0]: "cancelled"}),
    "resource": replace(WHOLE, segments={"pod": "pod-1"}),
    "several": replace(WHOLE, service="contract-0", route="/predict", segments={"pod": "pod-0", "tenant": "blue"}),
    "none": replace(WHOLE, route=RPC, model="Ranker"),  # both are known, and no request has the two
    "earlier": Selection(BASE - 2000 * MS, BASE - 1000 * MS, service="contract-1"),
    "as-shown": replace(WHOLE, route="POST /predict /rank"),  # name and route, as lists show a request
    "name-as-shown": replace(WHOLE, route="POST /predict"),
    "shown-elsewhere": replace(WHOLE, route="odd"),
    "path-as-shown": replace(WHOLE, route="HTTP GET /items/7"),
    "breached": replace(WHOLE, breached=True),
    "kept": replace(WHOLE, breached=False, service="contract-1"),
    "cause": replace(WHOLE, causes=("gc",)),
    "causes": replace(WHOLE, causes=("gc", "downstream"), service="contract-0"),
    "newest-of-causes": replace(WHOLE, causes=("gc", "cpu_wait"), limit=5),
    "causes-within-limit": replace(WHOLE, causes=("cpu_wait", "gc"), limit=100, breached=True),
    "no-such-cause": replace(WHOLE, causes=("lock_wait",)),
    "code": replace(WHOLE, codes=(CODES[0],)),
    "file": replace(WHOLE, codes=("app.py",), service="contract-0"),
    "line": replace(WHOLE, codes=("app.py:4",)),
    "several-codes": replace(WHOLE, codes=(CODES[0], CODES[1]), breached=True),
    "overlapping-codes": replace(WHOLE, codes=("*in predict*", "app.py:4*"), limit=6),
    "code-and-cause": replace(WHOLE, codes=(CODES[1],), causes=("gc", "unknown")),
    "judged-by-the-shown": replace(WHOLE, judged_by=SHOWN, service="contract-1"),
    "judged-by": replace(WHOLE, judged_by="predict-p99"),
    "missed": replace(WHOLE, judged_by="predict", breached=True, limit=7),
    "missed-by-none": replace(WHOLE, judged_by="predict-p99", breached=True),
    "newest": replace(WHOLE, limit=7),
    "newest-of": replace(WHOLE, service="contract-0", breached=True, limit=3),
    "all-of": replace(WHOLE, service="contract-0", limit=1000),
}


# What those are asked that are read like another: bounds, filters of each kind, an attribute that hides one, a limit.
BASIC = ("edges", "several", "as-shown", "causes", "several-codes", "newest-of", "judged-by", "missed")


def has_texts(member: str) -> bool:
    """Return whether a member has attributes as texts: ClickHouse and VictoriaTraces do."""
    return member.startswith("clickhouse") or member.endswith("/select/tempo")


def seen(one: Made, member: str) -> Made:
    """Return a span as a store can know it: in some, attributes that stagetrace does not know are texts."""
    if not has_texts(member):
        return one
    attributes = {key: value(typed(key, text_of(found))) for key, found in one.attributes.items()}
    return replace(one, attributes=attributes)


def meant(selection: Selection, member: str = "") -> list[Made]:
    """Return the entry spans that a selection means, newest first: the oracle, on what was made."""

    def is_meant(one: Made) -> bool:
        read = {**one.resource, **one.attributes}
        read |= {name: read[other] for name, other in (RENAMED, RENAMED[::-1]) if other in read}
        wanted = selection.segments.items()
        return (
            selection.since_ns <= one.start < selection.until_ns
            and selection.service in (None, one.service)
            and selection.route in (None, *_routes(one))
            and selection.model in (None, one.attributes.get(semconv.ML_MODEL_NAME))
            and selection.breached in (None, one.attributes.get(semconv.SLA_BREACHED) is True)
            and (selection.judged_by is None or _is_judged(one, selection.judged_by, breached=selection.breached))
            and (not selection.causes or one.attributes.get(semconv.SLA_BREACH_CAUSE) in selection.causes)
            and (not selection.codes or any(_is_at(one, code) for code in selection.codes))
            and all(key in read and text_of(read[key]) == value for key, value in wanted)
        )

    found = sorted(
        filter(is_meant, (seen(one, member) for one in ENTRIES)),
        key=lambda one: (-one.start, one.trace_id, one.span_id),
    )
    return found[: selection.limit]


def _is_at(one: Made, wanted: str) -> bool:
    """Return whether a breach is at a line of code, by the parts of its text."""
    code = one.attributes.get(semconv.SLA_BREACH_CODE)
    if code is None:
        return False
    line, _, _ = code.partition(" in ")
    return any(fnmatchcase(part, wanted) for part in (code, line, line.partition(":")[0]))


def _verdict(one: Made, objective: str) -> str | None:
    """Return the verdict of one objective, by the parts of the texts."""
    read = one.attributes
    if read.get(semconv.SLA_OBJECTIVE) == objective:
        return str(read.get(semconv.SLA_VERDICT))
    parts = (part.partition(": ") for part in str(read.get(semconv.SLA_VERDICTS, "")).split("; "))
    return next((word for word, _, about in parts if about.startswith(f"{objective} (")), None)


def _is_judged(one: Made, objective: str, *, breached: bool | None) -> bool:
    word = _verdict(one, objective)
    return word == "breach" if breached else word is not None


def _routes(one: Made) -> tuple[str, ...]:
    route = one.attributes.get("http.route", one.attributes.get("rpc.method"))
    if not isinstance(route, str):
        target = one.attributes.get("http.target")
        return (one.name if target is None else f"{one.name} {target.partition('?')[0]}",)
    return route, one.name if route in one.name else f"{one.name} {route}"


def text_of(value: Any) -> str:
    return {"True": "true", "False": "false"}.get(str(value), str(value).removesuffix(".0"))


def tally(selection: Selection, member: str = "") -> Tally:
    """Return what became of the requests that a selection means: the oracle, on what was made."""
    every = replace(selection, breached=None, causes=(), codes=(), limit=None)
    found, ever = meant(every, member), meant(replace(every, since_ns=0, until_ns=END), member)
    name = selection.judged_by
    verdicts = [one.attributes.get(semconv.SLA_VERDICT) if name is None else _verdict(one, name) for one in found]
    missed = meant(replace(selection, breached=True, limit=None), member)
    lost: dict[tuple[str, str], list[float]] = {}
    for one in missed:
        read = one.attributes
        of_kind = lost.setdefault((read[semconv.SLA_BREACH_STAGE], read[semconv.SLA_BREACH_CAUSE]), [])
        of_kind.append(read[semconv.SLA_OVERRUN_MS] if name in (None, read[semconv.SLA_OBJECTIVE]) else 0.0)
    return Tally(
        requests=len(found),
        judged=verdicts.count("good") + verdicts.count("breach"),
        missed=len(missed),
        excluded=verdicts.count("excluded"),
        recorded=sum(
            any(key.startswith("ml.stage.") for key in one.attributes)
            or isinstance(one.attributes.get(semconv.SLA_VERDICT), str)
            for one in found
        ),
        lost=tuple(
            sorted(
                (Lost(*kind, len(over), cast("float", pytest.approx(sum(over)))) for kind, over in lost.items()),
                key=lambda one: (-sum(lost[one.stage or "", one.cause or ""]), -one.missed, one.stage, one.cause),
            )
        ),
        newest_unix_nano=max((one.start for one in found or ever), default=None),
        sample=Sample(len(found), is_estimate=False, is_unknown=False),
        services=tuple(sorted({one.service for one in found})),
    )
