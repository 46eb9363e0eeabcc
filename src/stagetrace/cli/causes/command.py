"""`stagetrace causes`: what distinguishes breaches from good requests, and which service slow traces lose time in."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.cli.arguments.options import add_selection, window
from stagetrace.cli.causes import view
from stagetrace.cli.output.formats import add_format
from stagetrace.output.times import between

if TYPE_CHECKING:
    from stagetrace.analysis.cases import Cases
    from stagetrace.analysis.localise import Localised
    from stagetrace.output.answer import Answer
    from stagetrace.store.base import Reader, Relations, Selection

DESCRIPTION: Final = (
    "Find what distinguishes the requests that missed their objective from the good ones of the same route: values of\n"
    "attributes, up to three together, stages, causes by their own verdicts, moments from which on there were more,\n"
    "the services downstream in which their traces lost the time, and calls that stopped. With --against, traces of\n"
    "the window are compared with those of a normal one instead, which needs no objective. Names nothing where\n"
    "nothing distinguishes them."
)
EXAMPLE: Final = "stagetrace causes --since 10m --against 70m..10m"
_TRACES: Final = 600  # of each side
_SPANS: Final = 60_000  # of each side
_MANY: Final = 20  # requests that a trace may have here, for enough traces to be in the sample


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_selection(parser, cause=False)
    parser.add_argument(
        "--against",
        metavar="SINCE..UNTIL",
        type=between,
        help="a window in which all was normal, to compare the traces of this one with; default: breaches are compared "
        "with the good requests of the same window",
    )
    add_format(parser)


def answer(reader: Reader, wanted: Selection, args: argparse.Namespace) -> Answer:
    """Return the differences of the breaches of a selection."""
    from stagetrace.analysis import releases
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
        released = releases.ask(relations, cases.stored, cases)
    return view.answer(cases, diagnose(cases, released), services, args, reason)


def _breached_against_good(reader: Reader, relations: Relations, cases: Cases) -> Localised | None:
    """Return where breached traces lost time, against those of good requests."""
    from stagetrace.analysis.cases import BREACH, GOOD

    if not cases.breaches or not cases.good:
        return None
    ids = [
        _sampled(relations, verdict, count)
        for verdict, count in ((BREACH, cases.breaches), (GOOD, cases.stored - cases.breaches))
    ]
    bad = set(ids[0])
    return _localised(reader, ids[0], [one for one in ids[1] if one not in bad])


def _window_against(reader: Reader, relations: Relations, normal: Relations) -> Localised:
    """Return where the traces of a window lost time, against those of another."""
    from stagetrace.analysis.cases import ANY

    ids = []
    for one in (relations, normal):
        (total,) = one.reduce("counts") or [{}]
        stored = total.get("stored") or 0
        ids.append(_sampled(one, ANY, stored) if stored else _of_spans(one))
    bad = set(ids[0])
    return _localised(reader, ids[0], [one for one in ids[1] if one not in bad])


def _sampled(relations: Relations, verdict: int, count: float) -> list[str]:
    from stagetrace.analysis.cases import part

    found = relations.reduce("traces", verdict=verdict, below=part(_TRACES * _MANY, count), most=_TRACES * _MANY)
    # Ids are random: those that are first in their order are as good as any. A stride is better where they are not.
    ids = [str(row["trace_id"]) for row in found]
    return ids[:: max(1, len(ids) // _TRACES)][:_TRACES]


def _of_spans(relations: Relations) -> list[str]:
    """Return traces of a window without an entry span: spans of tools that record no kind."""
    found = relations.connection.execute(
        "SELECT DISTINCT trace_id FROM spans ORDER BY hash(trace_id), trace_id LIMIT $1", [_TRACES]
    ).fetchall()
    return [trace_id for (trace_id,) in found]


def _localised(reader: Reader, slow: Sequence[str], normal: Sequence[str]) -> Localised:
    from stagetrace.analysis.localise import localise

    return localise(_traces(reader, slow), _traces(reader, normal))


def _traces(reader: Reader, ids: Sequence[str]) -> list[Any]:
    """Return the spans of these traces, until there are very many."""
    found: list[Any] = []
    spans = 0
    for trace in reader.traces(ids):
        found.append(trace.spans)
        spans += len(trace.spans)
        if spans > _SPANS:
            break
    return found
