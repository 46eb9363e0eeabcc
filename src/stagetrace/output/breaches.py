"""Breaches with the owners of their time: as JSON, and what is to blame in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis.time_owner import WIRE, Hop, Owner, owner_of
from stagetrace.errors import StoreError
from stagetrace.output import missed_bounds, sampling
from stagetrace.output.keys import completeness, keys_of
from stagetrace.sla.cause import DOWNSTREAM, UNKNOWN
from stagetrace.store.base import Breaches, Entry, Reader, Tally, Trace

if TYPE_CHECKING:
    from stagetrace.analysis.breach_groups import Groups

FOLLOWED: Final = 200  # traces that one answer looks into


def owners_of(reader: Reader, entries: Sequence[Entry]) -> list[Owner]:
    """Return the owner of the time of each breach; traces of those that waited for another service are read at once."""
    followed = list(dict.fromkeys(one.trace_id for one in entries if one.cause == DOWNSTREAM))
    traces: dict[str, Trace | str] = dict.fromkeys(
        followed[FOLLOWED:], f"only {FOLLOWED} traces are looked into, those of the newest"
    )
    followed = followed[:FOLLOWED]
    try:
        traces.update((one.trace_id, one) for one in (reader.traces(followed) if followed else ()))
    except StoreError as error:
        traces.update(dict.fromkeys(followed, str(error).partition("\n")[0]))
    return [_owner(entry, traces) for entry in entries]


def _owner(entry: Entry, traces: Mapping[str, Trace | str]) -> Owner:
    """Return the owner of the time of one breach, by its trace, or by the reason why that could not be followed."""
    if entry.cause != DOWNSTREAM:
        return _not_followed(entry)
    trace = traces.get(entry.trace_id, f"there is no trace {entry.trace_id}")
    if isinstance(trace, str):
        return _not_followed(entry, trace)
    top = next((span for span in trace.spans if span.span_id == entry.span_id), None)
    if top is None:
        return _not_followed(entry, f"trace {entry.trace_id} lacks its span")
    return owner_of(top, trace.spans)


def _not_followed(entry: Entry, reason: str | None = None) -> Owner:
    """Return the owner of a breach whose trace need not, or cannot, be followed: its own slowest stage."""
    took_ms = entry.duration_ms if entry.stage is None else entry.stages.get(entry.stage, 0.0)
    return Owner((Hop(entry.service, entry.stage, took_ms),), reason)


def as_json(answer: Breaches, owners: Sequence[Owner]) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    entries = [_entry_json(entry, owner) for entry, owner in zip(answer.breaches, owners, strict=True)]
    return {**_tally_json(answer.tally, answer.reason), "breaches": entries}


def groups_as_json(found: Groups, tally: Tally, reason: str | None, limit: int | None = None) -> dict[str, Any]:
    """Return the object that `--group --json` prints; `reason`: what the breaches lack, beside what the limit cuts."""
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
        **sampling.keys(tally.sample),
        "newest_request_unix_nano": tally.newest_unix_nano,
    }


def _entry_json(entry: Entry, owner: Owner) -> dict[str, Any]:
    return keys_of(
        entry,
        "end_unix_nano",
        duration_ms=entry.duration_ms,
        missed=missed_bounds.as_json(entry),
        peer=owner.path[0].peer,
        owner={**owner.last._asdict(), **completeness(owner.reason)},
        path=[hop._asdict() for hop in owner.path],
    )


def blamed(entry: Entry, owner: Owner) -> str:
    """Return the slowest stage and its cause, or the way down to the owner of the time."""
    stage = entry.stage or "-"
    if owner.last.stage == WIRE:
        below = [f"{hop.service} {hop.stage}" for hop in owner.path[1:-1]]
        return " > ".join([stage, *below, f"wire to {owner.last.peer}"])
    below = [f"{hop.service} {hop.stage or '-'}" for hop in owner.path[1:]]
    if owner.last.peer is not None:
        below.append(f"{owner.last.peer} (no trace)")
    if below:
        return " > ".join([stage, *below])
    return with_cause(entry.stage, entry.cause)


def with_cause(stage: str | None, cause: str | None) -> str:
    """Return the stage of a breach and, if it is known, its cause."""
    return f"{stage or '-'} ({cause})" if cause not in (None, UNKNOWN) else stage or "-"
