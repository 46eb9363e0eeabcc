"""How `bottleneck` words and draws where the time of requests goes. Pure: groups in, sentences, tables, JSON out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.analysis.bottleneck import CUT, PERCENTILES, Group, Stage, needed
from stagetrace.analysis.stage_bins import NO_STAGE, Band
from stagetrace.output import units
from stagetrace.output.answer import keys_of
from stagetrace.output.chart import Chart, Stacked
from stagetrace.output.table import Column, Table, numbers, numeric
from stagetrace.output.units import milliseconds, rounded_percent

if TYPE_CHECKING:
    from stagetrace.analysis.span_tree import Portion

_NONE: Final = "(no stage)"
_ON_PATH: Final = 10  # lines of the critical paths
_SHOWN: Final = 20  # groups, to people
_NUMBERS: Final = numbers(*PERCENTILES)


class Paths(NamedTuple):
    """The spans that take the time of critical paths, of so many requests whose spans are stored."""

    requests: int
    portions: list[Portion]


def sentence(group: Group) -> str:
    """Return the answer in one sentence."""
    known = [percentile for percentile, band in group.bands.items() if band is not None]
    if not known:
        return f"Not enough data: {_requests(group)}, and {_enough()}."
    if not group.stages:
        return f"None of the {_requests(group)} takes any time."
    last = known[-1]
    slowest = max(group.stages, key=lambda one: one.share[last] or 0.0)
    if slowest.stage is NO_STAGE and (slowest.share[last] or 0.0) >= 1:
        return (
            f"Nothing is known of where the {_took(group, last)} at {last} go: the requests have no stages, "
            "which stagetrace records (STAGETRACE=1)."
        )
    which = "Of the stored requests, sampled in a way that is not known, at" if group.sample.is_unknown else "At"
    text = f"{which} {last} ({_took(group, last)}) {_words(slowest)} takes {_share(slowest, last)} of the time"
    # Their intervals overlap.
    others = [(one, one.interval[last]) for one in group.stages if one is not slowest]
    least = slowest.interval[last]
    rivals = [one for one, most in others if most is not None and least is not None and most[1] > least[0]]
    if rivals:
        second = max(rivals, key=lambda one: one.share[last] or 0.0)
        text += f" and {_words(second)} {_share(second, last)}, too few requests to know which takes more"
    if last != "p50":
        median = max(group.stages, key=lambda one: one.share["p50"] or 0.0)
        same = "it is" if median is slowest else _words(median)
        text += f"{';' if rivals else ','} at p50 ({_took(group, 'p50')}) {same} {rounded_percent(median.share['p50'])}"
    best = max(group.stages, key=lambda one: one.what_if[last] or 0.0)
    if best.what_if[last] is not None:
        brings = rounded_percent(best.what_if[last], 1)
        text += f"; {100 * CUT:g} % off {_words(best)} would bring {last} down by {brings}"
    if last != "p99":
        text += f"; not enough requests for p99 ({_requests(group)}, {_enough(known)})"
    return f"{text}."


def parts(group: Group) -> list[str | Table | Chart]:
    """Return tables, the picture and lines of one group."""
    if not group.stages:
        return list(_notes(group))
    known = [percentile for percentile, band in group.bands.items() if band is not None]
    rows = [(_name(one), *(_share(one, percentile) for percentile in PERCENTILES)) for one in group.stages]
    kinds = [
        (name, *(rounded_percent(shares[percentile]) for percentile in PERCENTILES))
        for name, shares in (
            ("waiting (queue)", group.queue_share),
            ("network", group.network_share),
            ("service", group.service_share),
            (_NONE, group.share_of([NO_STAGE])),
        )
    ]
    cuts = [
        (_name(one), *("-" if part is None else f"{rounded_percent(part, 1)} less" for part in one.what_if.values()))
        for one in group.stages
        if any(part is not None for part in one.what_if.values())
    ]
    drawn = [
        (f"{percentile} {_took(group, percentile)}", {_name(one): one.share[percentile] or 0.0 for one in group.stages})
        for percentile in known
    ]
    columns = (Column("stage"), *_NUMBERS)
    less = Table(columns, cuts, f"If a stage took {100 * CUT:g} % less, the total would take")
    return [
        Stacked("Share of the time, by percentile of the total", drawn),
        Table(columns, rows, "Share of the time, with 95 % intervals"),
        Table((Column("time"), *_NUMBERS), kinds, "Waiting against service"),
        *([less] if cuts else []),
        *_notes(group),
    ]


def _notes(group: Group) -> Iterator[str]:
    """Yield notes on the numbers, and on missing ones."""
    bands = [
        f"{percentile}: {band.requests:,} of {milliseconds(band.low_ms)} to {milliseconds(band.high_ms)} "
        f"(ranks {100 * band.low:.3g} to {100 * band.high:.3g} %)"
        for percentile, band in group.bands.items()
        if band is not None
    ]
    if bands:
        yield f"Requests around {'; '.join(bands)}; {_requests(group)} in all."
    lacking = [percentile for percentile, band in group.bands.items() if band is None]
    if lacking and bands:
        yield f"Not enough data at {' and '.join(lacking)}: {_enough(set(PERCENTILES) - set(lacking))}."
    if group.backwards:
        yield f"{group.backwards:,} more ended before they started, as a clock stepped back: they are in nothing above."
    if group.overlapping:
        yield f"The stages of {group.overlapping:,} take longer together than the whole: shares are of their sum."
    note = units.note("requests", group.sample)
    if note:
        yield note


def path_parts(paths: Mapping[str, Paths]) -> list[str | Table | Chart]:
    """Return the table of the spans on the critical paths."""
    shares: dict[tuple[str, str], dict[str, float]] = {}
    for percentile, found in paths.items():
        for one in found.portions:
            shares.setdefault((one.service, one.name), {})[percentile] = one.share
    if not shares:
        return []
    ordered = sorted(shares.items(), key=lambda item: [-item[1].get(one, 0.0) for one in reversed(PERCENTILES)])
    rows = [
        (service, name, *(rounded_percent(share.get(at, 0.0 if at in paths else None)) for at in PERCENTILES))
        for (service, name), share in ordered[:_ON_PATH]
    ]
    counts = ", ".join(f"{found.requests} at {percentile}" for percentile, found in paths.items())
    more = f"; {len(ordered) - _ON_PATH} more have less" if len(ordered) > _ON_PATH else ""
    columns = (Column("service"), Column("span"), *_NUMBERS)
    title = "Share of the critical paths of the newest requests around each percentile"
    return [Table(columns, rows, title), f"Critical paths of {counts}{more}."]


def group_parts(groups: Sequence[Group], by: Sequence[str]) -> list[str | Table | Chart]:
    """Return a table with a line for each group."""
    if not groups:
        return []
    rows = [
        (
            *("-" if value is None else str(value) for value in group.by),
            units.about(round(group.requests), group.sample),
            *(_slowest(group, percentile) for percentile in PERCENTILES),
        )
        for group in groups[:_SHOWN]
    ]
    columns = (
        *(Column(key) for key in by),
        numeric("requests"),
        *(Column(f"{percentile}: most time") for percentile in PERCENTILES),
    )
    made: list[str | Table | Chart] = [Table(columns, rows, f"By {', '.join(by)}")]
    if len(groups) > _SHOWN:
        made.append(f"{len(groups) - _SHOWN} more groups have fewer requests: --json has them all.")
    return made


def _slowest(group: Group, percentile: str) -> str:
    if not group.stages or group.bands[percentile] is None:
        return "-"
    one = max(group.stages, key=lambda stage: stage.share[percentile] or 0.0)
    return f"{_took(group, percentile)}, {_name(one)} {_share(one, percentile)}"


def keys(group: Group, by: Sequence[str]) -> dict[str, Any]:
    """Return the keys of `--json` for one group."""
    return {
        **({"by": dict(zip(by, group.by, strict=True))} if group.by else {}),
        "requests": round(group.requests),
        **units.keys(group.sample),
        "negative_durations": group.backwards,
        "overlapping_stages": group.overlapping,
        "total_ms": dict(group.total_ms),
        "bands": {percentile: _band_keys(band) for percentile, band in group.bands.items()},
        "needed": {percentile: needed(percentile) for percentile in PERCENTILES},
        "stages": [keys_of(one, stage=_name(one)) for one in group.stages],
        "queue_share": group.queue_share,
        "network_share": group.network_share,
        "service_share": group.service_share,
        "no_stage_share": group.share_of([NO_STAGE]),
    }


def _band_keys(band: Band | None) -> dict[str, Any] | None:
    if band is None:
        return None
    return {"ranks": [band.low, band.high], "ms": [band.low_ms, band.high_ms], "stored": band.requests}


def path_keys(paths: Mapping[str, Paths]) -> dict[str, Any]:
    """Return the keys of `--json` for the critical paths, by percentile."""
    made = {
        percentile: {
            "requests": found.requests,
            "spans": [
                {"service": one.service, "name": one.name, "share": one.share, "ms": one.duration_ns / 1e6}
                for one in found.portions
            ],
        }
        for percentile, found in paths.items()
    }
    return {"critical_paths": {percentile: made.get(percentile) for percentile in PERCENTILES}}


def _name(one: Stage) -> str:
    return _NONE if one.stage is NO_STAGE else one.stage


def _words(one: Stage) -> str:
    return "no stage" if one.stage is NO_STAGE else one.stage


def _requests(group: Group) -> str:
    count = units.about(round(group.requests), group.sample)
    return f"{count} request{'' if count == '1' else 's'}"


def _enough(known: Sequence[str] | set[str] = ()) -> str:
    lacking = [f"{needed(percentile)} for {percentile}" for percentile in PERCENTILES if percentile not in known]
    return f"{', '.join(lacking)} would be enough"


def _took(group: Group, percentile: str) -> str:
    return milliseconds(group.total_ms[percentile])


def _share(one: Stage, percentile: str) -> str:
    """Return `71 % [66, 75]`."""
    interval = one.interval[percentile]
    around = "" if interval is None else f" [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]"
    return f"{rounded_percent(one.share[percentile])}{around}"
