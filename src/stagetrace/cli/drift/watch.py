"""`stagetrace drift --watch`: ask again and again, and say once of each new change for the worse."""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from stagetrace.cli.arguments.times import shown
from stagetrace.cli.base import ANSWERED
from stagetrace.cli.drift import view
from stagetrace.cli.output.lines import show, show_json
from stagetrace.cli.output.terminal import printable
from stagetrace.errors import StagetraceError
from stagetrace.store import open_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from stagetrace.analysis.drift import Change, Looked
    from stagetrace.store.base import Reader, Selection

# Each look tests all series anew, so that one may give a tenth of the false alarms of an answer, and an alarm must be
# found by two looks in a row. docs/answers/drift.md says how many false ones a month that makes.
ALARMS: Final = 0.001
LOOKS: Final = 2
SAME: Final = 6  # steps within which a change is the one that was told already
_TRIES: Final = 3
_TIMEOUT_S: Final = 10.0
_PAUSE_S: Final = 0.5


class Told(NamedTuple):
    """A change that was found: what of, and when."""

    series: tuple[Any, ...]
    at_unix_nano: int
    step_ns: int

    def is_same(self, other: Told) -> bool:
        """Tell whether it is the same change, of which the time may be found anew a little off."""
        near = SAME * max(self.step_ns, other.step_ns)
        return self.series == other.series and abs(self.at_unix_nano - other.at_unix_nano) <= near


class Alarms:
    """Which changes are new: found by LOOKS looks in a row, and not told yet."""

    def __init__(self) -> None:
        """Know of none."""
        self._told: list[Told] = []
        self._seen: list[tuple[Told, int]] = []

    def new(self, looked: Sequence[Looked]) -> list[Change]:
        """Return the changes for the worse that are to be told after this look."""
        fresh: list[Change] = []
        seen: list[tuple[Told, int]] = []
        for change in (change for one in looked for change in one.changes if change.ongoing and change.relative > 0):
            track = change.track
            one = Told((*track.group, track.stage, track.quantile), change.at_unix_nano, track.step_ns)
            if any(one.is_same(other) for other in self._told):
                continue
            looks = 1 + max((count for other, count in self._seen if one.is_same(other)), default=0)
            seen.append((one, looks))
            if looks >= LOOKS:
                fresh.append(change)
                self._told.append(one)
        self._seen = seen
        return fresh


class Webhook:
    """Posts alarms; what fails is counted and said on stderr, and never ends the watch."""

    def __init__(self, url: str) -> None:
        """Post to a URL, of which only the host is ever shown: its path may be a secret."""
        self._url, self.host = url, urlsplit(url).hostname
        self.failed = 0

    def post(self, alarm: dict[str, Any]) -> None:
        """Post one alarm, in three tries at most; an answer of 400 to 499 is final."""
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
                why = f"it answered {error.code}"
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
    hook = Webhook(args.webhook) if args.webhook else None
    alarms = Alarms()
    with open_store(url) as reader:
        looked = look(reader, selected, args)  # what is wrong with options and store ends the command here
        _say(f"watching {len(looked)} series, every {args.interval:g} s; Ctrl-C ends")
        try:
            while True:
                for change in alarms.new(looked):
                    _tell(change, looked, args, hook)
                time.sleep(args.interval)
                try:
                    looked = look(reader, selected, args)
                except StagetraceError as error:
                    _warn(f"the store could not be read: {error}")
        except KeyboardInterrupt:
            return ANSWERED


def look(reader: Reader, selected: Callable[[], Selection], args: argparse.Namespace) -> list[Looked]:
    """Return what is found now."""
    from stagetrace.analysis import drift, tracks

    with reader.relations(selected()) as relations:
        found = tracks.ask(relations)
    return drift.look(found.tracks, least=args.least, alarms=ALARMS)


def _tell(change: Change, looked: Sequence[Looked], args: argparse.Namespace, hook: Webhook | None) -> None:
    now = time.time_ns()
    alarm = {"sentence": view.said(change, looked, args.tz), "alarm_unix_nano": now, **view.change_keys(change)}
    if args.json:
        show_json(alarm)
    else:
        show(f"{shown(now, args.tz, 0)} {args.tz.name}  {printable(alarm['sentence'])}")
    sys.stdout.flush()
    if hook is not None:
        hook.post(alarm)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _warn(text: str) -> None:
    _say(f"warning: {printable(text)}")
