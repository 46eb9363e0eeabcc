"""`stagetrace drift --watch`: query again and again, and report each new change for the worse once."""

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

from stagetrace.cli.base import ANSWERED
from stagetrace.cli.drift import view
from stagetrace.cli.output.lines import show, show_json
from stagetrace.errors import StagetraceError
from stagetrace.output.times import shown
from stagetrace.printable import printable
from stagetrace.store import open_store

if TYPE_CHECKING:
    from stagetrace.analysis.drift import Change, Looked
    from stagetrace.store.base import Reader, Selection

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
    from stagetrace.analysis import drift, releases, tracks

    with reader.relations(selected()) as relations:
        found = tracks.ask(relations)
        released = releases.ask(relations, found.requests)
    return drift.look(found.tracks, released, least=args.least, alarms=ALARMS)


def _report(change: Change, looked: Sequence[Looked], args: argparse.Namespace, webhook: Webhook | None) -> None:
    now = time.time_ns()
    sentence = view.change_sentence(change, looked, args.tz)
    alarm = {"sentence": sentence, "alarm_unix_nano": now, **view.change_keys(change)}
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
