"""Breaches and verdicts in words: how many, which bounds were missed, what is to blame. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv
from stagetrace.analysis.breach_details import WIRE, Hop, Owner, on_path, owner_of
from stagetrace.causes.cause import DOWNSTREAM, UNKNOWN
from stagetrace.errors import StoreError
from stagetrace.output import units
from stagetrace.output.answer import completeness, keys_of
from stagetrace.output.objectives import requests
from stagetrace.output.units import UTC, Zone, milliseconds, shown, threshold, window
from stagetrace.semconv import text
from stagetrace.store.base import SERVER, Breaches, Entry, Missed, Reader, Selection, SpanRow, Tally, Trace
from stagetrace.store.entries import entry_of
from stagetrace.text import printable

if TYPE_CHECKING:
    from stagetrace.analysis.breach_details import Group, Groups

# --- Breaches with the owners of their time: as JSON, and what is to blame in a few words.

FOLLOWED: Final = 200  # traces that one answer looks into


def owners_of(reader: Reader, entries: Sequence[Entry]) -> list[Owner]:
    """Return the owner of the time of each breach; by its trace if it waited for a service or is of no stage."""
    followed = list(dict.fromkeys(one.trace_id for one in entries if _is_followed(one)))
    traces: dict[str, Trace | str] = dict.fromkeys(
        followed[FOLLOWED:], f"only {FOLLOWED} traces are looked into, those of the newest"
    )
    followed = followed[:FOLLOWED]
    try:
        traces.update((one.trace_id, one) for one in (reader.traces(followed) if followed else ()))
    except StoreError as error:
        traces.update(dict.fromkeys(followed, str(error).partition("\n")[0]))
    return [_owner(entry, traces) for entry in entries]


def _is_followed(entry: Entry) -> bool:
    if entry.stage is not None or entry.objective is None:
        return entry.cause == DOWNSTREAM
    from stagetrace.analysis.judging import AFTERWARDS

    return entry.objective.endswith(AFTERWARDS)  # its span is of another sender, which has no stages


def _owner(entry: Entry, traces: Mapping[str, Trace | str]) -> Owner:
    """Return the owner of the time of one breach, by its trace, or by the reason why that could not be followed."""
    if not _is_followed(entry):
        return _not_followed(entry)
    trace = traces.get(entry.trace_id, f"there is no trace {entry.trace_id}")
    if isinstance(trace, str):
        return _not_followed(entry, trace)
    top = next((span for span in trace.spans if span.span_id == entry.span_id), None)
    if top is None:
        return _not_followed(entry, f"trace {entry.trace_id} lacks its span")
    own = Hop(entry.service, None, entry.duration_ms)
    return owner_of(top, trace.spans) if entry.stage is not None else Owner((own, on_path(top, trace.spans)))


def worst_paths(reader: Reader, groups: Iterable[Group]) -> dict[tuple[str, str], str]:
    """Return what takes most of the critical path of the worst breach of each group without a stage, by its trace."""
    wanted = {one.worst_trace_id: one.service for one in groups if one.stage is None}
    found = {}
    for trace in reader.traces(list(wanted)) if wanted else ():
        service = wanted[trace.trace_id]
        tops = [span for span in trace.spans if span.kind == SERVER and span.service == service]
        if tops:
            hop = on_path(max(tops, key=lambda span: span.duration_ns), trace.spans)
            found[trace.trace_id, service] = f"{hop.service} {hop.stage}, {milliseconds(hop.duration_ms)}"
    return found


def _not_followed(entry: Entry, reason: str | None = None) -> Owner:
    """Return the owner of a breach whose trace need not, or cannot, be followed: its own slowest stage."""
    took_ms = entry.duration_ms if entry.stage is None else entry.stages.get(entry.stage, 0.0)
    return Owner((Hop(entry.service, entry.stage, took_ms),), reason)


# --- The bounds of an objective that a breach missed, in words.


def as_json(answer: Breaches, owners: Sequence[Owner]) -> dict[str, Any]:
    """Return the object that `breaches --each --json` prints."""
    entries = [_entry_json(entry, owner) for entry, owner in zip(answer.breaches, owners, strict=True)]
    return {**_tally_json(answer.tally, answer.reason), "breaches": entries}


def groups_as_json(found: Groups, tally: Tally, reason: str | None, limit: int | None = None) -> dict[str, Any]:
    """Return the object that `breaches --json` prints; `reason`: what the breaches lack, beside what the limit cuts."""
    more = found.different - len(found.groups)
    cut = f"limit {limit} reached, there are {more} smaller groups" if more else None
    groups = [asdict(one) for one in found.groups]
    return {**_tally_json(tally, cut, reason), "groups": groups, "different": found.different}


def _tally_json(tally: Tally, *reasons: str | None) -> dict[str, Any]:
    cuts = [one for one in (*reasons, tally.reason) if one is not None]
    return {
        **completeness("; ".join(cuts) or None),
        "requests": tally.requests,
        "judged": tally.judged,
        "missed": tally.missed,
        "excluded": tally.excluded,
        "overrun_ms": tally.overrun_ms,
        "lost": [{**asdict(one), "share": one.overrun_ms / (tally.overrun_ms or 1)} for one in tally.lost],
        "counted_all": tally.reason is None,
        **units.keys(tally.sample),
        "newest_request_unix_nano": tally.newest_unix_nano,
    }


def _entry_json(entry: Entry, owner: Owner) -> dict[str, Any]:
    return keys_of(
        entry,
        "end_unix_nano",
        duration_ms=entry.duration_ms,
        missed=missed_keys(entry),
        peer=owner.path[0].peer,
        owner={**owner.last._asdict(), **completeness(owner.reason)},
        path=[hop._asdict() for hop in owner.path],
    )


def blame_text(entry: Entry, owner: Owner) -> str:
    """Return the slowest stage and its cause, or the way down to the owner of the time."""
    stage = entry.stage or "-"
    if entry.stage is None and len(owner.path) > 1:
        return f"{owner.last.service} {owner.last.stage}"
    if owner.last.stage == WIRE:
        below = [f"{hop.service} {hop.stage}" for hop in owner.path[1:-1]]
        return " > ".join([stage, *below, f"wire to {owner.last.peer}"])
    below = [f"{hop.service} {hop.stage or '-'}" for hop in owner.path[1:]]
    if owner.last.peer is not None:
        below.append(f"{owner.last.peer} (no trace)")
    if below:
        return " > ".join([stage, *below])
    return with_cause(entry.stage, entry.cause)


def stage_of(group: Group, paths: Mapping[tuple[str, str], str]) -> str:
    """Return the stage and cause of a group of breaches or, without a stage, what took the worst its time."""
    return paths.get((group.worst_trace_id, group.service)) or with_cause(group.stage, group.cause)


def with_cause(stage: str | None, cause: str | None) -> str:
    """Return the stage of a breach and, if it is known, its cause."""
    return f"{stage or '-'} ({cause})" if cause not in (None, UNKNOWN) else stage or "-"


# --- How many requests missed their objective, out of how many, and where the time went: in one or two sentences.

_CAUSES: Final = 5  # named one by one
_SERVICES: Final = 5
_AGO: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_FROM: Final = 2  # of a unit, or the smaller unit is used
_SECOND_MS: Final = 1000.0


def summary(reader: Reader, tally: Tally, wanted: Selection, zone: Zone = UTC) -> list[str]:
    """Return the answer in a sentence, and its subject: a selection, in the services that have any of it."""
    names = tally.services or ((wanted.service,) if wanted.service is not None else reader.services())
    if not names:
        return ["The store holds no spans of any service yet."]
    is_narrowed = replace(wanted, service=None, judged_by=None, limit=None, causes=(), codes=()).is_filtered
    more = f" and {len(names) - _SERVICES} more" if len(names) > _SERVICES else ""
    noun = "service" if len(names) == 1 else "services"
    of = f"{noun} {', '.join(map(printable, names[:_SERVICES]))}{more}{window(wanted.since_ns, wanted.until_ns, zone)}"
    about = f"{'The selected' if is_narrowed else 'All'} requests of {of}"
    if not tally.requests:
        return [f"No requests in this window{_last(tally, zone)}.", f"{about}."]
    if not tally.judged:
        return [f"{requests(tally.requests)}, none judged: {_why(tally)}.", f"{about}."]
    missed, of_how_many = _missed_text(tally)
    because = f" because of {' or '.join(wanted.causes)}" if wanted.causes else ""
    at = f" at {printable(' or '.join(wanted.codes))}" if wanted.codes else ""
    what = "their objective" if wanted.judged_by is None else printable(wanted.judged_by)
    rest = tally.requests - tally.judged - tally.excluded
    others = [f"{tally.excluded:,} excluded"] if tally.excluded else []
    others += [f"{rest:,} that no objective matches"] if rest else []
    unjudged = f"; not judged: {', '.join(others)}" if others else ""
    note = units.note("the count", tally.sample)
    return [
        f"{missed} missed {what}{because}{at}{_over(tally)}{of_how_many}.",
        f"{about}{unjudged}.",
        *([] if note is None else [f"{note}."]),
    ]


def _missed_text(tally: Tally) -> tuple[str, str]:
    """Return how many requests are breaches, and the end of the sentence: `of` a bound would read as a share."""
    mark = units.mark(tally.sample)
    if tally.reason is None:
        return f"{tally.missed:,} of {mark}{tally.judged:,} judged requests", ""
    read = f"; of how many is not known: only {mark}{requests(tally.judged, 'judged request')} were read"
    return f"{'' if tally.all_missed else 'at least '}{requests(tally.missed)}", read


def _over(tally: Tally) -> str:
    """Return how much time was lost in all, and to which stages and causes, the most first."""
    if not tally.missed:
        return ""
    whole = tally.overrun_ms
    if whole <= 0:
        return ""
    kinds = [(f"{one.stage or '(no stage)'}/{one.cause or 'unknown'}", one.overrun_ms) for one in tally.lost[:_CAUSES]]
    named = [f"{printable(kind)} {100 * over_ms / whole:.0f} %" for kind, over_ms in kinds]
    rest = tally.lost[_CAUSES:]
    if rest:
        named.append(f"{requests(len(rest), 'other')} {100 * sum(one.overrun_ms for one in rest) / whole:.0f} %")
    return f", {total(whole)} over in all: {', '.join(named)}"


def total(ms: float) -> str:
    """Return the time of many requests, which may be seconds."""
    return f"{ms / _SECOND_MS:.1f} s" if ms >= _SECOND_MS else f"{ms:.1f} ms"


def _why(tally: Tally) -> str:
    """Return why no request was judged."""
    if tally.excluded == tally.requests:
        return "the policy excludes them"
    rest = tally.requests - tally.excluded
    if not tally.recorded:
        return "their spans carry no verdict, which only stagetrace writes (STAGETRACE=1 and STAGETRACE_SLA)"
    besides = f"{tally.excluded:,} excluded, and of the other {rest:,} " if tally.excluded else ""
    return f"{besides}no objective matches (STAGETRACE_SLA of the service)"


def _last(tally: Tally, zone: Zone) -> str:
    """Return when there were requests, if ever."""
    if tally.newest_unix_nano is None:
        return ", nor at any other time"
    seconds = (time.time_ns() - tally.newest_unix_nano) // 10**9
    at = f"{shown(tally.newest_unix_nano, zone, 0)} {zone.name}"
    if seconds < 0:
        return f", the last one at {at}"
    size, unit = next((one for one in _AGO if seconds >= _FROM * one[0]), _AGO[-1])
    return f", the last one {seconds // size} {unit} ago, at {at}"


WITHIN: Final = "within"
# The text of each bound in a sentence, and in a column.
_SENTENCES: Final = {
    WITHIN: "took {}",
    "first_chunk": "first chunk after {}",
    "per_chunk": "gap of {} between two chunks",
    "first_token": "first token after {}",
    "per_token": "{} for each token after the first",
}
_SHORT: Final = {
    "first_chunk": "{} first chunk",
    "per_chunk": "{} gap",
    "first_token": "{} first token",
    "per_token": "{} a token",
}
_ROUNDING_MS: Final = 0.001


def missed_sentence(missed: Missed) -> str:
    """Return one bound in words: `first chunk after 163.20 ms, 100 ms allowed`."""
    took = _SENTENCES.get(missed.bound, f"{missed.bound} {{}}").format(milliseconds(missed.took_ms))
    return f"{took}, {threshold(missed.allowed_ms)} allowed"


def part(entry: Entry) -> Missed | None:
    """Return the bound that made a breach, where that is not the whole duration."""
    return next((one for one in entry.missed[:1] if one.bound != WITHIN), None)


def column(entry: Entry) -> str:
    """Return the duration that exceeded the limit: of the request, of the first chunk, or of a gap between chunks."""
    decisive, whole = part(entry), milliseconds(entry.duration_ms)
    if decisive is not None:
        return _SHORT.get(decisive.bound, "{}").format(milliseconds(decisive.took_ms))
    if entry.missed or entry.threshold_ms is None or entry.overrun_ms is None:
        return whole
    # Recorded by a release that did not record the missed bound.
    part_ms = entry.threshold_ms + entry.overrun_ms
    return whole if part_ms > entry.duration_ms - _ROUNDING_MS else f"{milliseconds(part_ms)} of {whole}"


def missed_keys(entry: Entry) -> list[dict[str, Any]]:
    """Return all bounds that were missed, the one that decided first."""
    if entry.missed:
        return [one._asdict() for one in entry.missed]
    if entry.threshold_ms is None or entry.duration_ms <= entry.threshold_ms:
        return []
    return [{"bound": WITHIN, "took_ms": entry.duration_ms, "allowed_ms": entry.threshold_ms}]


# --- The verdict on one entry span in words, as a command and the page show it. Pure.

BREACH = "BREACH"
NOT_JUDGED: Final = "NOT JUDGED"


class Verdict(NamedTuple):
    """A verdict: its word, the sentence behind that, and what is known of a breach, each with its name."""

    word: str  # BREACH, GOOD, EXCLUDED or NOT JUDGED
    sentence: str
    reasons: tuple[tuple[str, str], ...]
    entry: Entry


def verdict_of(span: SpanRow, spans: Sequence[SpanRow]) -> Verdict:
    """Return the verdict on one entry span, out of the spans of its trace."""
    is_excluded = text(span.attributes, semconv.SLA_VERDICT) == "excluded"
    breached = span.attributes.get(semconv.SLA_BREACHED)
    return verdict(entry_of(span, spans), None if breached is None else bool(breached), is_excluded=is_excluded)


def verdict(entry: Entry, breached: bool | None, *, is_excluded: bool) -> Verdict:
    """Return a verdict in words; `breached` is None where the request is not judged."""
    who = f"{entry.service} {entry.name}: took {milliseconds(entry.duration_ms)}"
    allowed = "" if entry.threshold_ms is None else f", {threshold(entry.threshold_ms)} allowed"
    if breached is None:
        return Verdict("EXCLUDED" if is_excluded else NOT_JUDGED, who, (), entry)
    if not breached:
        return Verdict("GOOD", f"{who}{allowed}", (), entry)
    over = "" if entry.overrun_ms is None else f", over by {milliseconds(entry.overrun_ms)}"
    decisive, whole = part(entry), ""
    if decisive is not None:
        who, allowed = f"{entry.service} {entry.name}: {missed_sentence(decisive)}", ""
        whole = f"; the whole response took {milliseconds(entry.duration_ms)}"
    severity = f" ({entry.severity})" if entry.severity else ""
    return Verdict(BREACH, f"{who}{allowed}{over}{severity}{whole}", tuple(_reasons(entry)), entry)


def _reasons(entry: Entry) -> Iterator[tuple[str, str]]:
    """Yield what is known of a breach: other missed bounds, stage, evidence, objective."""
    if entry.missed[1:]:
        yield "also missed", "; ".join(map(missed_sentence, entry.missed[1:]))
    if entry.stage is not None:
        took = f", {milliseconds(entry.stages[entry.stage])}" if entry.stage in entry.stages else ""
        yield "stage", f"{entry.stage}{took}"
    if entry.cause:
        yield "cause", entry.cause
    if entry.evidence:
        yield "evidence", entry.evidence
    if entry.objective:
        yield "objective", entry.objective
