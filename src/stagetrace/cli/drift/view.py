"""The output of `drift`: the sentence, the keys, the table, the pictures and the notes."""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from stagetrace.analysis.drift import DAY_NS, SLOPE, Change, Looked
from stagetrace.analysis.drift_kinds import LEAST_REQUESTS
from stagetrace.analysis.onset import INSTANCE, Release, near
from stagetrace.analysis.series import LEAST_STEPS, MOST_GROUPS, NEEDED, Track, Tracks
from stagetrace.cli.output import show, show_json
from stagetrace.cli.registry import ANSWERED
from stagetrace.errors import StagetraceError
from stagetrace.output.answer import keys_of
from stagetrace.output.chart import Chart, Series
from stagetrace.output.table import COMMON, Column, Table, numeric, table_of
from stagetrace.output.units import Zone, milliseconds, release_name, shown, threshold
from stagetrace.store import open_store
from stagetrace.text import printable

if TYPE_CHECKING:
    from stagetrace.store.base import Reader, Selection

_DRAWN: Final = 6
_TIMES: Final = 2.0  # from which on a factor is said, and no share
_MINUTES: Final = 60
_LISTED: Final = 40
_NEAR: Final = 3  # steps between a change of a request and the one of the stage that made it
_MINUTE_NS: Final = 60 * 10**9
_UNITS: Final = ((DAY_NS, "d"), (3600 * 10**9, "h"), (_MINUTE_NS, "min"), (10**9, "s"))


def sentence(found: Tracks, looked: Sequence[Looked], zone: Zone) -> str:
    """Return the answer: the change that does most harm; without any, the size that would have been seen."""
    if not looked:
        return (
            f"Not enough data: {found.requests:,} requests{_over(found)}, and a route with {LEAST_REQUESTS:,} or more"
            f" can be looked at."
        )
    changed = [one for one in looked if one.changes]
    if not changed:
        seen = max(one.detectable for one in looked if one.track.stage is None)
        return (
            f"No change in {len(looked)} series{_over(found)}"
            f" (a step of {100 * seen:.0f} % or more would have been seen in each){_trend_clause(looked)}."
        )
    first = main(looked)
    among = f"; {len(changed)} of {len(looked)} series changed."
    if first.is_small:
        within = first.track.within_ms
        against = "the request" if within is None else f"the request and its objective of {threshold(within)}"
        return f"No change that matters: {change_sentence(first, looked, zone)} is small against {against}{among}"
    return f"{change_sentence(first, looked, zone)}{_culprit(first, looked)}{among}"


def _trend_clause(looked: Sequence[Looked]) -> str:
    """Return what a series does that has no change: its slope, of the one that rises most."""
    found = [(one.track, one.trend) for one in looked if one.trend is not None]
    if not found:
        return ""
    track, trend = max(found, key=lambda one: (one[1].ms_per_h > 0, one[0].stage is None, abs(one[1].ms_per_h)))
    of = f"{track.quantile} of {f'{track.stage} of ' if track.stage else ''}{_route(track, looked)}"
    return (
        f", but {of} {'rises' if trend.ms_per_h > 0 else 'falls'} by {milliseconds(abs(trend.ms_per_h))} an hour, from "
        f"{milliseconds(trend.before_ms)} to {milliseconds(trend.after_ms)}, without a moment at which that began"
    )


def main(looked: Sequence[Looked]) -> Change:
    """Return the change that matters most: for the worse and still so, of a whole request, with the most harm."""
    changes = [change for one in looked for change in one.changes]
    most = max(changes, key=_weight)
    return max(
        (one for one in changes if _is_same(one, most)),
        key=lambda one: (one.track.stage == most.track.stage, one.track.quantile),
    )


def _weight(change: Change) -> tuple[Any, ...]:
    harm = abs(change.harm_ms or 0.0)
    return (*_class(change), change.track.stage is None, change.ongoing, harm, abs(change.relative))


def _class(change: Change) -> tuple[bool, bool]:
    return not change.is_small, change.ongoing and change.relative > 0


def _is_same(one: Change, most: Change) -> bool:
    """Return whether a change is the same one, of another quantile perhaps."""
    near = abs(one.at_unix_nano - most.at_unix_nano) <= _NEAR * max(one.track.step_ns, most.track.step_ns)
    kind = (one.track.group, one.track.having, one.track.stage is None, one.ongoing, *_class(one))
    return near and kind == (most.track.group, most.track.having, most.track.stage is None, most.ongoing, *_class(most))


def change_sentence(change: Change, looked: Sequence[Looked], zone: Zone) -> str:
    """Return one change in words."""
    track = change.track
    if track.having:
        return _kind_sentence(change, looked, zone)
    of = f"{track.quantile} of {f'{track.stage} of ' if track.stage else ''}{_route(track, looked)}"
    span = f"from {milliseconds(change.before_ms)} to {milliseconds(change.after_ms)} ({by(change)})"
    if change.kind == SLOPE:
        verb = "has grown" if change.relative > 0 else "has fallen"
        at, ms_per_h = _clock(change.at_unix_nano, track, zone), abs(change.slope_ms_per_h or 0.0)
        is_short = abs(change.after_ms - change.before_ms) < ms_per_h  # it lasted less than an hour
        rate = f"{milliseconds(ms_per_h / _MINUTES)} a minute" if is_short else f"{milliseconds(ms_per_h)} an hour"
        return f"{of} {verb} {span} since {at}, by {rate}"
    return f"{of} stepped {'up' if change.relative > 0 else 'down'} {span} {_moment(change, zone)}"


def _kind_sentence(change: Change, looked: Sequence[Looked], zone: Zone) -> str:
    """Return the change of a kind of requests in words: which, how many, by how much, since when."""
    values = change.track.having
    having = " and ".join(f"without {key}" if value is None else f"with {key} {value}" for key, value in values)
    factor = change.relative + 1
    longer = f"{factor:.1f} times as long" if factor >= _TIMES else f"{100 * change.relative:.0f} % longer"
    return (
        f"Requests of {_route(change.track, looked)} {having} {'take' if change.ongoing else 'took'} {longer} "
        f"({milliseconds(change.before_ms)} before, {milliseconds(change.after_ms)} after, at the median) "
        f"{_moment(change, zone)}: {change.requests or 0:,.0f} of {change.of or 0:,.0f} requests"
    )


def _route(track: Track, looked: Sequence[Looked]) -> str:
    """Return a route with its model and service, where there are others."""
    of = track.route
    if track.model and len({one.track.model for one in looked}) > 1:
        of += f" (model {track.model})"
    return f"{of} of {track.service}" if len({one.track.service for one in looked}) > 1 else of


def _moment(change: Change, zone: Zone) -> str:
    """Return when a step was: with the release, if it began with one."""
    if change.release is not None:
        word = "since" if change.ongoing else "with"
        return f"{word} {release_name(change.release)} at {_clock(change.at_unix_nano, change.track, zone, to_s=True)}"
    word = "at" if not change.track.having else "since" if change.ongoing else "from"
    return f"{word} {_clock(change.at_unix_nano, change.track, zone)}"


def by(change: Change) -> str:
    """Return the change as a share."""
    return f"{100 * change.relative:+.0f} %"


def _culprit(change: Change, looked: Sequence[Looked]) -> str:
    """Return which stage changed with a request, if one did: the one that changed by the most."""
    if change.track.stage:
        return ""
    if change.in_stage:
        return f", in {'their' if change.track.having else 'its'} stage {change.in_stage}"
    near = [
        other
        for one in looked
        for other in one.changes
        if other.track.stage
        and other.track.group == change.track.group
        and (other.relative > 0) == (change.relative > 0)
        and abs(other.at_unix_nano - change.at_unix_nano) <= _NEAR * max(other.track.step_ns, change.track.step_ns)
    ]
    same = [other for other in near if other.track.quantile == change.track.quantile] or near
    most = max(same, key=lambda other: abs(other.after_ms - other.before_ms), default=None)
    return f", in its stage {most.track.stage}" if most else ""


def _clock(at: int, track: Track, zone: Zone, *, to_s: bool = False) -> str:
    """Return a time to the minute, where steps are no shorter, and its day where the series has more than one."""
    text = shown(at, zone, 0)
    if track.step_ns >= _MINUTE_NS and not to_s:
        text = text[:-3]
    last = track.start_unix_nano + (len(track.values) - 1) * track.step_ns
    one_day = shown(track.start_unix_nano, zone, 0)[:10] == shown(last, zone, 0)[:10]
    return f"{text[11:] if one_day else text} {zone.name}"


def _over(found: Tracks) -> str:
    length = found.until_unix_nano - found.since_unix_nano
    return f" over {duration(length)}" if length > 0 else ""


def duration(length_ns: int) -> str:
    """Return a duration in the unit of which it has two or more."""
    for unit, name in _UNITS:
        if length_ns >= 2 * unit:
            return f"{length_ns / unit:.3g} {name}"
    return f"{length_ns / 10**9:.3g} s"


def change_keys(change: Change) -> dict[str, Any]:
    """Return one change as `--json` and webhooks have it."""
    release = None if change.release is None else change.release.keys()
    return {**_track_keys(change.track), **keys_of(change, "track", relative=change.relative, release=release)}


def _track_keys(track: Track) -> dict[str, Any]:
    return {
        "series": track.name,
        "service": track.service,
        "route": track.route,
        "model": track.model,
        "stage": track.stage,
        "quantile": track.quantile,
        "attributes": dict(track.having),
    }


def keys(found: Tracks, looked: Sequence[Looked], released: Sequence[Release]) -> dict[str, Any]:
    """Return the keys of `--json`."""
    return {
        "changes": [change_keys(change) for one in looked for change in one.changes],
        "series": [
            {
                **_track_keys(one.track),
                "requests": one.track.requests,
                "step_s": one.track.step_ns / 10**9,
                "steps": sum(value is not None for value in one.track.values),
                "detectable": one.detectable,
                "trend_ms_per_h": None if one.trend is None else one.trend.ms_per_h,
                "pattern_s": [period * one.track.step_ns / 10**9 for period in one.periods],
            }
            for one in looked
        ],
        "releases": [{"service": one.service, **one.keys()} for one in released],
        "requests": found.requests,
        "since_unix_nano": found.since_unix_nano or None,
        "until_unix_nano": found.until_unix_nano or None,
        "not_looked_at": {"too_few_requests": found.thin, "beyond_the_largest": found.left_out},
        "outside": found.outside,
        "negative": found.negative,
    }


def parts(
    found: Tracks, looked: Sequence[Looked], released: Sequence[Release], zone: Zone
) -> list[str | Table | Chart]:
    """Return the parts below the sentence."""
    changes = sorted((change for one in looked for change in one.changes), key=_weight, reverse=True)
    made: list[str | Table | Chart] = []
    if changes:
        made.append(_table(changes[:_LISTED], zone))
    if len(changes) > _LISTED:
        made.append(f"{len(changes) - _LISTED} more changes: --json has them all.")
    drawn = list(dict.fromkeys(change.track for change in changes))[:_DRAWN]
    made += [_picture(track, [change for change in changes if change.track == track], released) for track in drawn]
    return [*made, *_notes(found, looked)]


def _table(changes: Sequence[Change], zone: Zone) -> Table:
    releases = any(change.release for change in changes)
    return table_of(
        changes,
        (
            (Column("service", kind=COMMON, leaves=3), lambda one: one.track.service),
            (Column("model", kind=COMMON, leaves=2), lambda one: one.track.model or "-"),
            (Column("series"), lambda one: one.track.name),
            (Column("kind", leaves=4), lambda one: one.kind),
            (Column("since"), lambda one: shown(one.at_unix_nano, zone, 0)),
            *(((Column("with"), lambda one: release_name(one.release) if one.release else "-"),) if releases else ()),
            (numeric("before"), lambda one: milliseconds(one.before_ms)),
            (numeric("after"), lambda one: milliseconds(one.after_ms)),
            (numeric("change"), by),
            (numeric("lost", 5), lambda one: "-" if one.harm_ms is None else f"{one.harm_ms / 1000:,.3g} s"),
            (numeric("q", 1), lambda one: f"{one.q_value:.1g}"),
        ),
    )


def _picture(track: Track, changes: Sequence[Change], released: Sequence[Release]) -> Series:
    """Return a series with its changes, and with the versions that were released meanwhile."""
    marks = [(change.at_unix_nano, by(change)) for change in changes]
    last = track.start_unix_nano + len(track.values) * track.step_ns
    marks += [
        (one.at_unix_nano, one.value)
        for one in near(released, track.service, track.start_unix_nano, last)
        if one.key != INSTANCE and one.model in (None, track.model)
    ]
    return Series(track.name, track.values, track.start_unix_nano, track.step_ns, "ms", sorted(marks))


def _notes(found: Tracks, looked: Sequence[Looked]) -> list[str]:
    """Return the notes for judging the answer."""
    notes = []
    patterns = {period * one.track.step_ns for one in looked for period in one.periods}
    if patterns:
        notes.append(f"Patterns that repeat were taken out: every {', '.join(map(duration, sorted(patterns)))}.")
    if looked and found.until_unix_nano - found.since_unix_nano < 2 * DAY_NS:
        notes.append("With less than two days of data, a daily pattern looks like drift: try --since 7d.")
    if found.thin:
        least = f"{LEAST_REQUESTS}, and for quantiles over time "
        least += ", ".join(f"{LEAST_STEPS * needed:,} for {name}" for name, needed in NEEDED.items())
        notes.append(f"{found.thin} of {found.groups} routes and models have too few requests: {least} are needed.")
    if found.left_out:
        notes.append(f"Looked at: the {MOST_GROUPS} routes and models with the most requests, of {found.groups:,}.")
    if found.outside:
        notes.append(f"{found.outside:,} requests far from all others in time count for nothing: a clock was off.")
    if found.negative:
        notes.append(f"{found.negative:,} requests that end before they start count for nothing: a clock was set back.")
    if found.unknown:
        notes.append("Requests were sampled, and it is not known how: quantiles are those of what is stored.")
    elif found.sampled:
        notes.append("Requests were sampled: quantiles count each for as many as it stands for.")
    return notes


# --- `stagetrace drift --watch`: query again and again, and report each new change for the worse once.

# Each look tests all series anew, so that one may give a tenth of the false alarms of an answer, and an alarm must be
# found by two looks in a row. docs/answers/drift.md gives the number of false ones a month.
ALARMS: Final = 0.001
LOOKS: Final = 2
SAME: Final = 6  # steps within which a change counts as one that was reported already
_TRIES: Final = 3
_TIMEOUT_S: Final = 10.0
_PAUSE_S: Final = 0.5


class Seen(NamedTuple):
    """A change that was found: its series and its time."""

    series: tuple[Any, ...]
    at_unix_nano: int
    step_ns: int

    def is_same(self, other: Seen) -> bool:
        """Return whether it is the same change, of which the time may be found anew a little off."""
        near = SAME * max(self.step_ns, other.step_ns)
        return self.series == other.series and abs(self.at_unix_nano - other.at_unix_nano) <= near


def is_alarm(change: Change) -> bool:
    """Return whether a change is for the worse, still so, and large enough to matter."""
    return change.ongoing and change.relative > 0 and not change.is_small


class Alarms:
    """Finds new changes: seen by LOOKS looks in a row, and not reported yet."""

    def __init__(self) -> None:
        """Know of none."""
        self._reported: list[Seen] = []
        self._seen: list[tuple[Seen, int]] = []

    def new(self, looked: Sequence[Looked]) -> list[Change]:
        """Return the changes for the worse to report after this look."""
        fresh: list[Change] = []
        seen: list[tuple[Seen, int]] = []
        for change in (change for one in looked for change in one.changes if is_alarm(change)):
            track = change.track
            one = Seen((*track.group, track.stage, track.quantile), change.at_unix_nano, track.step_ns)
            if any(one.is_same(other) for other in self._reported):
                continue
            looks = 1 + max((count for other, count in self._seen if one.is_same(other)), default=0)
            seen.append((one, looks))
            if looks >= LOOKS:
                fresh.append(change)
                self._reported.append(one)
        self._seen = seen
        return fresh


class Webhook:
    """Posts alarms; failures are counted, reported on stderr, and never end the watch."""

    def __init__(self, url: str) -> None:
        """Post to a URL, of which only the host is ever shown: its path may be a secret."""
        self._url, self.host = url, urlsplit(url).hostname
        self.failed = 0

    def post(self, alarm: dict[str, Any]) -> None:
        """Post one alarm, in three tries at most; a status of 400 to 499 is final."""
        body = json.dumps(alarm, allow_nan=False).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "stagetrace"}
        why = ""
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(_PAUSE_S * 2**attempt)
            request = urllib.request.Request(self._url, body, headers)  # noqa: S310 -- `drift.webhook` lets HTTP alone in
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S):  # noqa: S310
                    return
            except urllib.error.HTTPError as error:
                why = f"it responded with {error.code}"
                error.close()
                if error.code < 500:  # noqa: PLR2004
                    break
            except (OSError, ValueError, HTTPException) as error:
                why = str(getattr(error, "reason", error)) or type(error).__name__
        self.failed += 1
        so_far = "1 alarm" if self.failed == 1 else f"{self.failed} alarms"
        _warn(f"the webhook at {self.host} did not take an alarm: {why}; {so_far} not posted so far")


def watch(url: str, args: argparse.Namespace, selected: Callable[[], Selection]) -> int:
    """Watch until Ctrl-C and return the exit code. Raise StoreError where the store cannot be read at all.

    `selected` gives the requests of one look, which depend on the time.
    """
    webhook = Webhook(args.webhook) if args.webhook else None
    alarms = Alarms()
    with open_store(url) as reader:
        looked = look(reader, selected, args)  # what is wrong with options and store ends the command here
        _print(f"watching {len(looked)} series, every {args.interval:g} s; Ctrl-C ends")
        try:
            while True:
                for change in alarms.new(looked):
                    _report(change, looked, args, webhook)
                time.sleep(args.interval)
                try:
                    looked = look(reader, selected, args)
                except StagetraceError as error:
                    _warn(f"the store could not be read: {error}")
        except KeyboardInterrupt:
            return ANSWERED


def look(reader: Reader, selected: Callable[[], Selection], args: argparse.Namespace) -> list[Looked]:
    """Return the present changes."""
    from stagetrace.analysis import drift, onset
    from stagetrace.analysis.series import ask

    with reader.relations(selected()) as relations:
        found = ask(relations)
        released = onset.ask(relations, found.requests)
    return drift.look(found.tracks, released, least=args.least, alarms=ALARMS)


def _report(change: Change, looked: Sequence[Looked], args: argparse.Namespace, webhook: Webhook | None) -> None:
    now = time.time_ns()
    sentence = change_sentence(change, looked, args.tz)
    alarm = {"sentence": sentence, "alarm_unix_nano": now, **change_keys(change)}
    if args.json:
        show_json(alarm)
    else:
        show(f"{shown(now, args.tz, 0)} {args.tz.name}  {printable(sentence)}")
    sys.stdout.flush()
    if webhook is not None:
        webhook.post(alarm)


def _print(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _warn(text: str) -> None:
    _print(f"warning: {printable(text)}")
