"""`stagetrace causes`: what distinguishes breaches from good requests, and which service slow traces lose time in."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments import ALONE, next_command, selection_options, window
from stagetrace.cli.ask import PRINTED
from stagetrace.cli.registry import Option
from stagetrace.output.answer import Answer, keys_of
from stagetrace.output.chart import Bars
from stagetrace.output.table import COMMON, Column, Table, numeric, table_of
from stagetrace.output.units import Zone, between, chance, milliseconds, percent, shown, since_text, values_text

if TYPE_CHECKING:
    from stagetrace.analysis.cases import Cases
    from stagetrace.analysis.causes import Contrast
    from stagetrace.analysis.diagnosis import Diagnosis, Finding
    from stagetrace.analysis.localise import Localised, Stopped
    from stagetrace.store.base import Reader, Relations, Selection

DESCRIPTION: Final = (
    "Find what distinguishes the requests that missed their objective from the good ones of the same route: values of\n"
    "attributes, up to three together, stages, causes by their own verdicts, moments from which on there were more,\n"
    "the services downstream in which their traces lost the time, and calls that stopped. With --against, traces of\n"
    "the window are compared with those of a normal one instead, which needs no objective. Names nothing where\n"
    "nothing distinguishes them."
)
EXAMPLE: Final = "stagetrace causes --since 10m --against 70m..10m"
OPTIONS: Final = (
    *selection_options(cause=False),
    Option(
        "--against SINCE..UNTIL",
        "a window in which all was normal, to compare the traces of this one with; default: breaches are compared with "
        "the good requests of the same window",
        between,
    ),
    *PRINTED,
)
_TRACES: Final = 600  # of each side
_SPANS: Final = 60_000  # of each side
_MANY: Final = 20  # requests that a trace may have here, for enough traces to be in the sample


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the differences of the breaches of a selection."""
    from stagetrace.analysis import onset
    from stagetrace.analysis.cases import ask, ask_slow
    from stagetrace.analysis.diagnosis import diagnose

    with reader.relations(wanted) as relations:
        cases = ask(relations)
        reason = relations.reason
        if args.against is None:
            services = _breached_against_good(reader, relations, cases)
        else:
            since, until = args.against
            since_ns, until_ns = window(since, until, args.tz)
            with reader.relations(replace(wanted, since_ns=since_ns, until_ns=until_ns)) as normal:
                if not cases.rows:
                    cases = ask_slow(relations, normal)
                services = _window_against(reader, relations, normal)
                reason = reason or normal.reason
        released = onset.ask(relations, cases.stored, cases)
    if services is not None and len(services.services) <= 1 and not args.against:
        services = None  # a single one is explained by its stages
    found = diagnose(cases, released)
    return Answer(
        "Causes of breaches",
        _sentence(cases, found, services, args.tz),
        _keys(cases, found, services),
        _parts(cases, found, services, args.tz),
        reason=reason,
        steps=[next_command(args, "why", trace_id, **ALONE) for trace_id in _examples(found)[:1]],
    )


def _examples(found: Diagnosis) -> list[str]:
    evidence = [*(one.evidence for one in found.findings), *(one.evidence for one in found.causes)]
    return [trace_id for one in evidence for trace_id in one.trace_ids]


def _breached_against_good(reader: Reader, relations: Relations, cases: Cases) -> Localised | None:
    """Return where breached traces lost time, against those of good requests."""
    from stagetrace.analysis.cases import BREACH, GOOD

    if not cases.breaches or not cases.good:
        return None
    breached = _sample_ids(relations, BREACH, cases.breaches)
    return _localise(reader, breached, _sample_ids(relations, GOOD, cases.stored - cases.breaches))


def _window_against(reader: Reader, relations: Relations, normal: Relations) -> Localised:
    """Return where the traces of a window lost time, against those of another."""
    from stagetrace.analysis.cases import ANY

    ids = []
    for one in (relations, normal):
        (total,) = one.reduce("counts") or [{}]
        stored = total.get("stored") or 0
        ids.append(_sample_ids(one, ANY, stored) if stored else _of_spans(one))
    return _localise(reader, *ids)


def _sample_ids(relations: Relations, verdict: int, count: float) -> list[str]:
    from stagetrace.analysis.cases import part

    found = relations.reduce("traces", verdict=verdict, below=part(_TRACES * _MANY, count), most=_TRACES * _MANY)
    # Ids are random: those that are first in their order are as good as any. A stride is better where they are not.
    ids = [str(row["trace_id"]) for row in found]
    return ids[:: max(1, len(ids) // _TRACES)][:_TRACES]


def _of_spans(relations: Relations) -> list[str]:
    """Return traces of a window without an entry span: spans of tools that record no kind."""
    return [str(row["trace_id"]) for row in relations.reduce("traces_of_spans", most=_TRACES)]


def _localise(reader: Reader, slow: Sequence[str], normal: Sequence[str]) -> Localised:
    from stagetrace.analysis.localise import localise

    found: tuple[list[Any], list[Any]] = ([], [])
    bad = set(slow)
    for traces, ids in zip(found, (slow, [one for one in normal if one not in bad]), strict=True):
        spans = 0
        for trace in reader.traces(ids):
            traces.append(trace.spans)
            spans += len(trace.spans)
            if spans > _SPANS:
                break
    return localise(*found)


# --- The output of `stagetrace causes`: the sentence, tables, a picture, and the keys of JSON.

LEAST: Final = 5  # requests or traces of each kind: of `analysis.diagnosis` and `localise`, which are heavy to import
_SHOWN: Final = 10  # rows of a table
_FEWER: Final = "How many fewer breaches there would be, at least, if these requests did as well as the others"


def _sentence(cases: Cases, found: Diagnosis, services: Localised | None, zone: Zone) -> str:
    if not cases.rows:
        return _of_traces(services)
    culprit = services.culprits[0] if services is not None and services.culprits else None
    lost = "" if culprit is None else _of_culprit(culprit)
    stopped = "" if services is None or not services.stopped else f"; {_of_stopped(services.stopped[0])}"
    what = "slow requests" if cases.by_time else "breaches"
    those = f"the {cases.breaches:,.0f} {what} from the {cases.good:,.0f} good requests"
    if found.findings:
        others = len(found.findings) - 1
        more = f"; {others} more {'finding' if others == 1 else 'findings'}" if others else ""
        where = f"; traces lose their time in {lost}{stopped}" if lost else stopped
        first = found.findings[0]
        begun = "" if first.since is None else f", since {since_text(*first.since, zone)}"
        return f"{_sentence_of(first.contrast, cases)}{begun}{more}{where}."
    if lost:
        return f"No attribute distinguishes {those}; they lose their time in {lost}{stopped}."
    if stopped:
        return _sentenced(f"{stopped[2:]}; no attribute distinguishes {those}")
    if min(found.breaches, found.good) < LEAST:
        numbers = f"{cases.breaches:,.0f} {what} and {cases.good:,.0f} good requests"
        return f"Not enough data: {numbers}; {LEAST} of each are needed."
    but = f" but the time in {found.stages[0].stage} ({_plus(found.stages[0].excess_ms)})" if found.stages else ""
    return f"Nothing distinguishes {those}{but}."


def _of_traces(services: Localised | None) -> str:
    """Return the sentence where no request is there to compare, but traces may be."""
    if services is None:
        return "No request here was judged: set an objective (STAGETRACE_SLA), or give --against SINCE..UNTIL."
    if services.normal_ms is None:
        there = f"{services.slow} traces here and {services.normal} in the window of --against"
        return f"Not enough data: {there}; {LEAST} of each are needed."
    stopped = _of_stopped(services.stopped[0]) if services.stopped else ""
    if services.culprits:
        return f"Traces lose their time in {_of_culprit(services.culprits[0])}{f'; {stopped}' if stopped else ''}."
    if stopped:
        return _sentenced(stopped)
    return f"Nothing distinguishes the {services.slow} traces here from the {services.normal} normal ones."


def _of_stopped(one: Stopped) -> str:
    """Return that calls stopped, in words."""
    now, before = (f"{100 * share:.0f} %" for share in (one.share, one.normal_share))
    return f"calls to {one.callee} stopped ({now} of {one.operation} of {one.caller} make them, normally {before})"


def _sentenced(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _of_culprit(one: Any) -> str:
    if one.errors > 0 and one.excess_ms <= 0:
        return f"{one.service} (fails first in {100 * one.errors:.0f} % more of them)"
    failing = f", first to fail in {100 * one.errors:.0f} % more" if one.errors > 0 else ""
    return f"{one.service} ({_plus(one.excess_ms)}{failing})"


def having(values: Mapping[str, str | None]) -> str:
    """Return values of attributes as a sentence has them: `with a 1 and b 2 and without c`."""
    has = " and ".join(f"{key} {value}" for key, value in values.items() if value is not None)
    lacks = " and ".join(key for key, value in values.items() if value is None)
    return " and ".join(f"{word} {which}" for word, which in (("with", has), ("without", lacks)) if which)


def _sentence_of(one: Contrast, cases: Cases) -> str:
    risk = one.breached / (one.breached + one.good)
    others = (cases.breaches - one.breached) / max(1e-9, cases.breaches + cases.good - one.breached - one.good)
    missed = "are slow" if cases.by_time else "miss their objective"
    return (
        f"Requests {having(one.values)} {missed} {one.relative_risk:.1f} times as often as others of their route "
        f"({percent(risk)} against {percent(others)})"
    )


def _plus(ms: float) -> str:
    return f"{'+' if ms >= 0 else '-'}{milliseconds(abs(ms))}"


def _keys(cases: Cases, found: Diagnosis, services: Localised | None) -> dict[str, Any]:
    return {
        "attributes": [_attribute(one) for one in found.findings],
        "services": [
            keys_of(one, "interval_ms", interval=one.interval_ms, operation=one.operation or None)
            for one in (services.culprits if services is not None else ())
        ],
        "stages": [keys_of(one, "interval_ms", interval=one.interval_ms) for one in found.stages],
        "causes": [keys_of(one, "evidence", **keys_of(one.evidence)) for one in found.causes],
        "changes": [keys_of(one, release=one.release and one.release.keys()) for one in found.changes],
        "breaches": cases.breaches if cases.rows else None,
        "good": cases.good if cases.rows else None,
        "by_time": cases.by_time,
        "compared": {"breaches": found.breaches, "good": found.good},
        "estimated": cases.is_estimate,
        "sampling_known": not cases.is_unknown,
        "excess_ms": found.excess_ms,
        "tests": found.tests,
        "skipped": list(found.skipped),
        "stopped": [keys_of(one) for one in (services.stopped if services is not None else ())],
        "traces": None if services is None else keys_of(services, "culprits", "services", "stopped"),
    }


def _attribute(one: Finding) -> dict[str, Any]:
    found = one.contrast
    interval = [found.interval[0], found.interval[1] if found.interval[1] < float("inf") else None]
    at, release = (None, None) if one.since is None else one.since
    since = {"since_unix_nano": at, "since_release": release and release.keys()}
    return keys_of(
        found, "rows", "requests", interval=interval, explained=found.explained, **keys_of(one.evidence), **since
    )


def _parts(cases: Cases, found: Diagnosis, services: Localised | None, zone: Zone) -> list[Any]:
    parts: list[Any] = []
    if found.findings:
        contrasts = [one.contrast for one in found.findings[:_SHOWN]]
        parts.append(_attributes(found, zone))
        parts.append(
            Bars(_FEWER, [(values_text(one.values), one.explained, f"{one.explained:,.0f}") for one in contrasts])
        )
        for one in contrasts:
            if one.also:
                parts.append(
                    f"{values_text(one.values)}: about the same requests as {'; '.join(map(values_text, one.also))}"
                )
            if one.along:
                parts.append(f"{values_text(one.values)}: explains {'; '.join(map(values_text, one.along))}")
    if services is not None and services.culprits:
        parts.append(_services(services))
    parts += [_sentenced(_of_stopped(one)) for one in (services.stopped[:_SHOWN] if services is not None else ())]
    if found.stages:
        parts.append(_stages(found))
    if found.causes:
        parts.append(_verdicts(found, zone))
    parts += [
        f"From {since_text(one.at_unix_nano, one.release, zone)} on {percent(one.after)} of the requests are "
        f"{'slow' if cases.by_time else 'breaches'}, before {percent(one.before)}."
        for one in found.changes
    ]
    return [*parts, *_notes(cases, found, services)]


def _attributes(found: Diagnosis, zone: Zone) -> Table:
    return table_of(
        found.findings[:_SHOWN],
        (
            (Column("attributes"), lambda one: values_text(one.contrast.values)),
            (numeric("breaches"), lambda one: f"{one.contrast.breached:,.0f}"),
            (numeric("of"), lambda one: f"{one.contrast.breached + one.contrast.good:,.0f}"),
            (numeric("risk"), lambda one: f"{one.contrast.relative_risk:.1f} x"),
            (numeric("95 %"), lambda one: " to ".join(f"{end:.1f}" for end in one.contrast.interval)),
            (numeric("by chance"), lambda one: chance(one.contrast.q_value)),
            (numeric("longer"), lambda one: _plus(one.evidence.excess_ms)),
            (Column("since", leaves=2), lambda one: shown(_begins(one), zone, 0)),
            (Column("until", leaves=1), lambda one: shown(one.evidence.last_unix_nano, zone, 0)),
            (Column("example", leaves=3), lambda one: "".join(one.evidence.trace_ids[:1])[:12] or "-"),
        ),
        "More frequent among breaches than among good requests of the same route",
    )


def _begins(one: Finding) -> int:
    return one.evidence.first_unix_nano if one.since is None else one.since.at_unix_nano


def _services(services: Localised) -> Table:
    return table_of(
        services.culprits[:_SHOWN],
        (
            (Column("service"), lambda one: one.service),
            (Column("operation"), lambda one: one.operation or "-"),
            (numeric("longer"), lambda one: _plus(one.excess_ms)),
            (numeric("95 %"), lambda one: " to ".join(map(_plus, one.interval_ms))),
            (numeric("normally"), lambda one: milliseconds(one.normal_ms)),
            (numeric("own"), lambda one: _plus(one.self_ms)),
            (numeric("calls"), lambda one: _plus(one.edge_ms)),
            (numeric("errors"), lambda one: f"{100 * one.errors:+.0f} %" if one.errors > 0 else "-"),
            (numeric("score"), lambda one: f"{one.score:.2f}"),
        ),
        f"Services, along the critical path of {services.slow} slow traces against {services.normal} normal ones",
    )


def _stages(found: Diagnosis) -> Table:
    return table_of(
        found.stages,
        (
            (Column("stage"), lambda one: one.stage),
            (numeric("longer"), lambda one: _plus(one.excess_ms)),
            (numeric("95 %"), lambda one: " to ".join(map(_plus, one.interval_ms))),
            (numeric("good"), lambda one: milliseconds(one.good_ms)),
            (numeric("of the excess"), lambda one: percent(one.share)),
        ),
        "Stages of breaches against those of good requests",
    )


def _verdicts(found: Diagnosis, zone: Zone) -> Table:
    return table_of(
        found.causes[:_SHOWN],
        (
            (Column("stage"), lambda one: one.stage or "-"),
            (Column("cause"), lambda one: one.cause or "-"),
            (numeric("breaches"), lambda one: f"{one.breaches:,}"),
            (numeric("of all"), lambda one: percent(one.share)),
            (
                Column("mostly at", kind=COMMON),
                lambda one: "-" if one.code is None else f"{one.code} ({one.at_code:,})",
            ),
            (numeric("longer"), lambda one: _plus(one.evidence.excess_ms)),
            (Column("until", leaves=1), lambda one: shown(one.evidence.last_unix_nano, zone, 0)),
        ),
        "What the verdicts of the breaches name",
    )


def _notes(cases: Cases, found: Diagnosis, services: Localised | None) -> list[str]:
    notes = []
    if cases.rows and (found.breaches < round(cases.breaches) or found.good < round(cases.good)):
        how = "sampled when they were recorded, and " if cases.is_estimate else ""
        notes.append(
            f"Compared: {found.breaches:,} of {cases.breaches:,.0f} breaches and {found.good:,} of {cases.good:,.0f} "
            f"good requests ({how}weighed to all of them)."
        )
    if cases.is_unknown:
        notes.append("It is not known how requests were sampled: risks are of what is stored, tests hold.")
    if cases.by_time:
        notes.append("No request is judged: slow is what takes longer than 95 % of the normal ones of its route.")
    if found.skipped:
        notes.append(f"Not compared, since almost each request has its own value: {', '.join(found.skipped[:_SHOWN])}.")
    if found.tests:
        notes.append(
            f"{found.tests:,} values, pairs and triples were tested. By chance: how likely it is that any of them "
            "differs so much where nothing does."
        )
    if services is not None and services.unrooted:
        notes.append(f"{services.unrooted} traces without a root are excluded.")
    return notes
