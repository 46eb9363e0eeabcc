"""The policy whose alerts a back end evaluates, in its data folder: who asks the store elsewhere sees these alerts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.errors import PolicyError
from stagetrace.sla import policy_file
from stagetrace.sla.policy import Policy
from stagetrace.store.local import durable

if TYPE_CHECKING:
    from pathlib import Path

    from stagetrace.sla.alert_options import AlertOptions

FILE: Final = "policy.yaml"


def keep(folder: Path, policy: Policy | None) -> None:
    """Replace the policy of a folder; None: no alerts are evaluated. The addresses of receivers are left out."""
    path = folder / FILE
    try:
        if policy is None:
            path.unlink(missing_ok=True)
        else:
            durable.replace(path, policy_file.write(_without_receivers(policy)).encode())
    except (OSError, PolicyError) as error:
        with suppress(OSError):  # the one before is no longer true
            path.unlink(missing_ok=True)
        log.warning(f"`stagetrace slo` shows no alerts over {folder}: {str(error).splitlines()[0]}")


def kept(folder: Path) -> Policy | None:
    """Return the policy of a folder, None without one. Raise PolicyError where it cannot be read."""
    path = folder / FILE
    return Policy.load(str(path)) if path.is_file() else None


def _without_receivers(policy: Policy) -> Policy:
    def bare(alerts: AlertOptions) -> AlertOptions:
        return replace(alerts, webhook="", alertmanager="")

    own = (one if one.alerts is None else replace(one, alerts=bare(one.alerts)) for one in policy.objectives)
    return replace(policy, objectives=tuple(own), alerts=bare(policy.alerts))
