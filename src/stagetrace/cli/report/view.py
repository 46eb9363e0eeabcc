"""The output of `stagetrace report`: a sentence, tables, digests, keys of `--json`. Nothing in it depends on now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

from stagetrace.analysis.report import LEAST, MOST_SHARE, Cause, Found, Incident, Line, Options, digest_of
from stagetrace.output import objectives
from stagetrace.output.chart import Bars
from stagetrace.output.keys import keys_of
from stagetrace.output.table_layout import COMMON, TIME, Column, Table, numeric, table_of
from stagetrace.output.times import Zone, shown
from stagetrace.store.base import Selection

if TYPE_CHECKING:
    from stagetrace.sla.policy import Policy

_DIGITS: Final = 12  # that are the same whatever the order in which a database sums up
_LISTED: Final = 100  # incidents in the table
_BARS: Final = 12
_NAMED: Final = 2  # causes of an incident in the table
_TRACES: Final = 3
_CONSTRUCTION: Final = (
    "SHA-256 of the options, of the number of requests, and of two sums, modulo 2^64, of the first and second quarter "
    "of each request's SHA-256 (trace id, span id, service, start, verdict, route, objective, target, and the verdicts "
    "of several objectives): order, copies and kind of store do not change it"
)


def sentence(found: Found, name: str, zone: Zone) -> str:
    """Return the report in one sentence."""
    period = f"{name} ({zone.name})"
    if not found.lines:
        return f"No request was judged in {period}, out of {objectives.requests(found.requests.requests)}."
    met = sum(one.missed is False for one in found.lines)
    judged = sum(one.counts.judged for one in found.lines)
    breaches = sum(one.counts.breaches for one in found.lines)
    many = len(found.lines)
    of = f"{met} of {objectives.requests(many, 'objective')} {'was' if many == 1 else 'were'} met in {period}"
    unknown = many - met - len(found.missed)
    rest = f"; {unknown} unknown" if unknown else ""
    about = "about " if any(one.counts.is_sampled for one in found.lines) else ""
    incidents = objectives.requests(len(found.incidents) + found.incidents_left, "incident")
    late = f"{round(breaches):,} breach{'' if round(breaches) == 1 else 'es'}"
    return f"{of}: {about}{objectives.requests(judged)} judged, {late}, {incidents}{rest}."


def keys(
    found: Found, options: Options, wanted: Selection, name: str, zone: Zone, policy: Policy | None = None
) -> dict[str, Any]:
    """Return the keys of `--json`; the digest of the result is of all others."""
    result = {
        "period": {
            "name": name,
            "zone": zone.name,
            "since_unix_nano": options.since_ns,
            "until_unix_nano": options.until_ns,
        },
        "told": bool(found.lines) and not found.undetermined,
        "requests": round(found.requests.requests),
        "judged": round(sum(one.counts.judged for one in found.lines)),
        "breaches": round(sum(one.counts.breaches for one in found.lines)),
        "excluded": _reasons(found.excluded),
        "unjudged": _reasons(found.unjudged),
        "objectives": [_line(one, options) for one in found.lines],
        **({} if policy is None else {"unused": list(found.unused)}),
        "incidents": [_incident(one) for one in found.incidents],
        "stored": found.stored,
        "first_unix_nano": found.first_unix_nano,
        "last_unix_nano": found.last_unix_nano,
    }
    meant = {
        "since": options.since_ns,
        "until": options.until_ns,
        "excluded": [list(one) for one in options.excluded],
        "credits": [[str(part) for part in one] for one in options.tiers],
        "incidents": [options.burn, options.gap_s],
        **({} if policy is None else {"targets": [[one.name, one.target_text] for one in policy.objectives]}),
        "selection": [wanted.service, wanted.route, wanted.model, sorted(wanted.segments.items()), wanted.limit],
    }
    inputs = digest_of(meant, found.stored, [str(one) for one in found.sums])
    return {**result, "digest": {"inputs": inputs, "result": digest_of(result), "construction": _CONSTRUCTION}}


def _reasons(found: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"reason": reason, "requests": round(count)} for reason, count in found.items()]


def _line(one: Line, options: Options) -> dict[str, Any]:
    known = one.attained
    return keys_of(
        one,
        *("target_text", "counts", "attained", "credit"),
        *(("description", "is_in_policy") if one.is_in_policy is None else ()),
        target=one.target.share,
        judged=round(one.counts.judged),
        breaches=round(one.counts.breaches),
        attainment=None if known is None else round(known.value, _DIGITS),
        interval=None if known is None else [round(known.low, _DIGITS), round(known.high, _DIGITS)],
        credit_percent=None if one.credit is None or not options.tiers else float(one.credit),
        estimated=known is not None and known.is_estimate,
        sampling_known=not one.counts.is_unknown,
    )


def _incident(one: Incident) -> dict[str, Any]:
    return keys_of(one, "target_text", judged=round(one.judged), causes=[cause._asdict() for cause in one.causes])


def parts(
    found: Found, options: Options, digest: Mapping[str, str], reason: str | None, zone: Zone
) -> Iterator[str | Table | Bars]:
    """Yield the parts below the sentence."""
    ends = [f"{shown(at, zone, 0)} {zone.name}" for at in (options.since_ns, options.until_ns)]
    yield f"From {ends[0]} up to {ends[1]}, by the start of each request."
    yield from _caveats(found, reason)
    if found.first_unix_nano is not None and found.last_unix_nano is not None:
        first, last = (f"{shown(at, zone, 0)}" for at in (found.first_unix_nano, found.last_unix_nano))
        yield f"The store holds {objectives.requests(found.stored)} of this period, from {first} to {last} {zone.name}."
    if found.lines:
        yield _objectives(found, options)
        yield Bars("Error budget of the period that was spent", list(_spent(found)))
        yield from _of_policy(found)
    counted = [(reason, count) for listed in (found.excluded, found.unjudged) for reason, count in listed.items()]
    if counted:
        rows = [(why, f"{count:,.0f}") for why, count in counted]
        yield Table((Column("requests that do not count"), Column("requests", is_number=True)), rows)
    if found.incidents:
        yield _incidents(found.incidents[:_LISTED], zone)
        yield from _definition(found, options)
    elif found.lines:
        yield "No incident."
    yield f"Digest of the inputs: {digest['inputs']} ({_CONSTRUCTION})."
    yield f"Digest of the result: {digest['result']} (SHA-256 of the keys of --json)."


def _caveats(found: Found, reason: str | None) -> Iterator[str]:
    if reason is not None:
        yield f"Not complete: {reason}. Counts and digests are of what was there."
    estimated = [one for one in found.lines if one.attained is not None and one.attained.is_estimate]
    if estimated:
        of = objectives.requests(len(estimated), "objective")
        yield f"~ Of {of} counts are estimates out of sampled requests (breaches are all there)."
    if found.undetermined:
        of = objectives.requests(len(found.undetermined), "objective")
        yield f">= Of {of} it is not known how requests were sampled: the result is unknown."


def _objectives(found: Found, options: Options) -> Table:
    heads = [Column("service", kind=COMMON), Column("route", leaves=3), Column("objective")]
    heads += [Column(name, is_number=True) for name in ("wanted", "judged", "breaches", "attainment")]
    heads += [Column("95 %", leaves=2), Column("met")]
    heads += [Column("credit", is_number=True)] if options.tiers else []
    return Table(heads, [(*_cells(one), *([_credit(one.credit)] if options.tiers else [])) for one in found.lines])


def _of_policy(found: Found) -> Iterator[str]:
    """Yield what the policy says of the objectives, and where requests and policy have different ones."""
    described = {one.objective: one.description for one in found.lines if one.description}
    yield from (f"{name}: {description}" for name, description in described.items())
    gone = dict.fromkeys(one.objective or "" for one in found.lines if one.is_in_policy is False)
    if gone:
        yield f"The policy has no such objectives, and their targets are the recorded ones: {_names(gone)}."
    if found.unused:
        yield f"No request under these objectives of the policy: {_names(found.unused)}."


def _names(names: Iterable[str]) -> str:
    listed = list(names)
    return f"{', '.join(listed[:_LISTED])}{f' and {len(listed) - _LISTED:,} more' if len(listed) > _LISTED else ''}"


def _spent(found: Found) -> Iterator[tuple[str, float | None, str]]:
    for one in found.lines[:_BARS]:
        known = one.attained
        spent = None if known is None or one.target.budget <= 0 else (1 - known.value) / one.target.budget
        text = "?" if spent is None else f"{100 * spent:.0f} %"
        name = (one.objective or one.route).partition(" within ")[0]
        yield f"{name} of {one.service}", spent, text


def _cells(one: Line) -> tuple[str, ...]:
    known = one.attained
    return (
        one.service,
        one.route,
        one.objective or "-",
        objectives.wanted(one.target.share),
        objectives.about(one.counts.judged, one.counts),
        f"{one.counts.breaches:,.0f}",
        "?" if known is None else f"{'~' if known.is_estimate else ''}{objectives.percent(known.value)}",
        "-" if known is None else objectives.interval(known),
        "?" if one.missed is None else "no" if one.missed else "yes",
    )


def _credit(credit: Fraction | None) -> str:
    return "?" if credit is None else f"{float(credit):g} %"


def _incidents(listed: tuple[Incident, ...], zone: Zone) -> Table:
    return table_of(
        listed,
        (
            (Column(f"incident from ({zone.name})", kind=TIME), lambda one: shown(one.since_unix_nano, zone, 0)),
            (numeric("minutes"), lambda one: f"{(one.until_unix_nano - one.since_unix_nano) / 60e9:.0f}"),
            (Column("service", kind=COMMON), lambda one: one.service),
            (Column("route"), lambda one: one.route),
            (numeric("judged"), lambda one: f"{one.judged:,.0f}"),
            (numeric("breaches"), lambda one: f"{one.breaches:,}"),
            (Column("stage: cause"), lambda one: ", ".join(_cause(each, one) for each in one.causes[:_NAMED]) or "-"),
            (
                Column("traces", leaves=1),
                lambda one: " ".join(dict.fromkeys(cause.trace_id for cause in one.causes[:_TRACES])) or "-",
            ),
        ),
    )


def _cause(cause: Cause, one: Incident) -> str:
    named = f"{cause.stage or '(no stage)'}: {cause.cause or 'unknown'}"
    return f"{named} {100 * cause.breaches / one.breaches:.0f} %"


def _definition(found: Found, options: Options) -> Iterator[str]:
    yield (
        f"An incident is a run of minutes, {objectives.length(options.gap_s)} apart at most, each with {LEAST} "
        f"breaches or more and a burn rate of {options.burn:g} or more (or {100 * MOST_SHARE:.0f} % breaches, where "
        "that is less)."
    )
    if len(found.incidents) > _LISTED:
        yield f"These are the first {_LISTED} of {len(found.incidents):,} incidents; --json has all."
