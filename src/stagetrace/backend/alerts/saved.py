"""What of alerts is in the data folder: the policy in force, and the alerts, which thus outlive a restart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from stagetrace import log
from stagetrace.errors import PolicyError
from stagetrace.policy import policy_file
from stagetrace.policy.policy import Policy
from stagetrace.rules.alerts import FIRING, PENDING, RESOLVED, Alert, Labels, Told
from stagetrace.store.local import durable
from stagetrace.store.local.durable import replace_file
from stagetrace.system.access import open_own

if TYPE_CHECKING:
    from pathlib import Path

    from stagetrace.policy.alert_options import AlertOptions

ALERTS_FILE: Final = "alerts.json"

# --- The alerts in the data folder, so that a restart neither forgets one nor sends it anew.

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
    replace_file(folder / ALERTS_FILE, json.dumps(document).encode())


def load(folder: Path) -> Saved:
    """Return what was saved; nothing where there is no file, or none that can be read, which is logged."""
    path = folder / ALERTS_FILE
    try:
        with os.fdopen(open_own(path, os.O_RDONLY), "rb") as file:
            return _parse(json.loads(file.read(_MOST)))
    except FileNotFoundError:
        return Saved()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning(f"{path} cannot be read, and alerts begin anew: {type(error).__name__}: {str(error)[:200]}")
        return Saved()


def _parse(document: Any) -> Saved:
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


POLICY_FILE: Final = "policy.yaml"


# --- The policy whose alerts a back end evaluates, in its data folder: who asks the store elsewhere sees these alerts.


def keep(folder: Path, policy: Policy | None) -> None:
    """Replace the policy of a folder; None: no alerts are evaluated. The addresses of receivers are left out."""
    path = folder / POLICY_FILE
    try:
        if policy is None:
            path.unlink(missing_ok=True)
        else:
            durable.replace_file(path, policy_file.write(_without_receivers(policy)).encode())
    except (OSError, PolicyError) as error:
        with suppress(OSError):  # the one before is no longer true
            path.unlink(missing_ok=True)
        log.warning(f"`stagetrace slo` shows no alerts over {folder}: {str(error).splitlines()[0]}")


def read_policy(folder: Path) -> Policy | None:
    """Return the policy of a folder, None without one. Raise PolicyError where it cannot be read."""
    path = folder / POLICY_FILE
    return Policy.load(str(path)) if path.is_file() else None


def _without_receivers(policy: Policy) -> Policy:
    def bare(alerts: AlertOptions) -> AlertOptions:
        return alerts._replace(webhook="", alertmanager="")

    own = (one if one.alerts is None else replace(one, alerts=bare(one.alerts)) for one in policy.objectives)
    return replace(policy, objectives=tuple(own), alerts=bare(policy.alerts))
