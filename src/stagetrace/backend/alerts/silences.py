"""Silences: objectives of whose alerts no receiver is told for a time, in a file of the data folder."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import log
from stagetrace.errors import StoreError
from stagetrace.store.local.durable import replace_file
from stagetrace.system.access import open_own

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stagetrace.rules.alerts import Labels

FILE: Final = "silences.json"
MOST: Final = 1_000
LONGEST_S: Final = 30 * 86_400
_LONGEST: Final = 1_000  # characters of a name
_BYTES: Final = 4 << 20
_NS: Final = 10**9
_writing: Final = threading.Lock()


class Silence(NamedTuple):
    """Until when the alerts of an objective are silent: of one service, or of all where that is empty."""

    objective: str
    service: str
    until_unix_nano: int

    def covers(self, labels: Labels) -> bool:
        """Return whether an alert with these labels is silent."""
        found = dict(labels)
        return found.get("sla_objective") == self.objective and self.service in ("", found.get("service"))


def read(folder: Path, now_unix_nano: int) -> list[Silence]:
    """Return the silences that are not over; none where the file cannot be read, which is logged."""
    try:
        with os.fdopen(open_own(folder / FILE, os.O_RDONLY), "rb") as file:
            found = [Silence(str(a), str(b), int(until)) for a, b, until in json.loads(file.read(_BYTES))]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, RecursionError) as error:
        log.once(FILE, f"{folder / FILE} cannot be read, and nothing is silent: {type(error).__name__}: {error}")
        return []
    return [one for one in found if one.until_unix_nano > now_unix_nano]


def put(folder: Path, objective: str, service: str, seconds: float, now_unix_nano: int) -> Silence:
    """Make an objective silent for so long from now on, or no longer for 0; return what it is. Raise StoreError.

    Its caller has the store open, so that no other process writes.
    """
    if not objective or max(len(objective), len(service)) > _LONGEST:
        raise StoreError("a silence needs the name of an objective\n`stagetrace slo` has them")
    if not 0 <= seconds <= LONGEST_S:
        raise StoreError(f"a silence lasts {LONGEST_S // 86_400} days at most\nset it again then")
    made = Silence(objective, service, now_unix_nano + round(seconds * _NS))
    with _writing:
        others = [one for one in read(folder, now_unix_nano) if one[:2] != made[:2]]
        kept = sorted([*others, *([made] if seconds else [])], key=lambda one: one.until_unix_nano)[-MOST:]
        try:
            replace_file(folder / FILE, json.dumps(kept).encode())
        except OSError as error:
            why = f"{folder / FILE} cannot be written: {error.strerror}\nmake room, or check its user"
            raise StoreError(why) from None
    return made


def of(labels: Labels, silences: Sequence[Silence]) -> Silence | None:
    """Return the silence of an alert, the longest; None where it has none."""
    found = [one for one in silences if one.covers(labels)]
    return max(found, key=lambda one: one.until_unix_nano, default=None)


def parse(content: bytes) -> tuple[str, str, float]:
    """Return objective, service and seconds out of a request. Raise ValueError."""
    row: Any = json.loads(content)
    try:
        objective, service, seconds = row["objective"], row["service"], float(row["seconds"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"it lacks {error}") from None
    if not isinstance(objective, str) or not isinstance(service, str):
        raise ValueError("objective and service are texts")  # noqa: TRY004 -- of data
    return objective, service, seconds
