"""The alerts in the data folder, so that a restart neither forgets one nor sends it anew."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from stagetrace import log
from stagetrace.own_files import open_own
from stagetrace.rules.alert_messages import Told
from stagetrace.rules.alert_state import FIRING, PENDING, RESOLVED, Alert, Labels
from stagetrace.store.local.durable import replace

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "alerts.json"
_VERSION: Final = 1
_MOST: Final = 64 << 20  # bytes
_STATES: Final = {one: one for one in (PENDING, FIRING, RESOLVED)}
T = TypeVar("T", Alert, Told)


@dataclass(frozen=True)
class Saved:
    """What is saved; `told` by the key of its receiver."""

    alerts: Mapping[Labels, Alert] = field(default_factory=dict)
    told: Mapping[str, Mapping[Labels, Told]] = field(default_factory=dict)


def save(folder: Path, saved: Saved) -> None:
    """Replace the file, atomically and durably. Raise OSError."""
    document = {
        "version": _VERSION,
        "alerts": [asdict(one) for one in saved.alerts.values()],
        "told": {key: [asdict(one) for one in told.values()] for key, told in saved.told.items()},
    }
    replace(folder / FILE, json.dumps(document).encode())


def load(folder: Path) -> Saved:
    """Return what was saved; nothing where there is no file, or none that can be read, which is logged."""
    path = folder / FILE
    try:
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            return _saved(json.loads(file.read(_MOST)))
    except FileNotFoundError:
        return Saved()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning(f"{path} cannot be read, and alerts begin anew: {type(error).__name__}: {str(error)[:200]}")
        return Saved()


def _saved(document: Any) -> Saved:
    if document["version"] != _VERSION:
        raise ValueError(f"it is of version {document['version']!r}")
    alerts = [
        Alert(
            str(row["rule"]),
            _labels(row["labels"]),
            _labels(row["annotations"]),
            _STATES[row["state"]],
            float(row["held_s"]),
            int(row["started_unix_nano"]),
            int(row["ended_unix_nano"]),
            quiet_s=None if row.get("quiet_s") is None else float(row["quiet_s"]),
        )
        for row in document["alerts"]
    ]
    told = {str(key): _by_labels(map(_read_told, rows)) for key, rows in document["told"].items()}
    return Saved(_by_labels(alerts), told)


def _read_told(row: Mapping[str, Any]) -> Told:
    times = int(row["started_unix_nano"]), float(row["since_s"])
    return Told(_labels(row["labels"]), _labels(row["annotations"]), *times)


def _by_labels(found: Iterable[T]) -> dict[Labels, T]:
    return {one.labels: one for one in found}


def _labels(pairs: list[list[str]]) -> Labels:
    return tuple((str(name), str(text)) for name, text in pairs)
