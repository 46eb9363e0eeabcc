"""Links from an alert to the breaches that it is about: in stagetrace's page, or in Jaeger's search."""

from __future__ import annotations

import json
from itertools import takewhile
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlsplit

from stagetrace.rules.promql import duration
from stagetrace.semconv import SLA_BREACHED, SLA_OBJECTIVE

if TYPE_CHECKING:
    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

_JAEGER_PORT: Final = 16_686


def breaches_url(policy: Policy, objective: Objective, service: str, window_s: float) -> str:
    """Return a URL of an objective's breaches of the last time; `service` goes into it as it is.

    Jaeger finds the objective that an entry span shows. Where that may be another one, which was missed too, the URL is
    of all breaches.

    The address, `traces` of the alerts, is one of Jaeger where its path ends with `/search`, its port is 16686 or its
    host has `jaeger` in it, and one of stagetrace's page otherwise.
    """
    base = policy.alerts_of(objective).traces.rstrip("/")
    if is_jaeger(base):
        wanted = {SLA_BREACHED: "true", **({SLA_OBJECTIVE: objective.name} if _is_shown(policy, objective) else {})}
        tags = quote(json.dumps(wanted, separators=(",", ":")), safe="")
        return f"{base.removesuffix('/search')}/search?service={service}&tags={tags}&lookback={_lookback(window_s)}"
    since = duration(max(60, window_s))
    missed = quote(objective.name, safe="")
    return f"{base.removesuffix('/breaches')}/breaches?service={service}&judged-by={missed}&since={since}"


def _is_shown(policy: Policy, objective: Objective) -> bool:
    """Return whether the entry span of each breach of an objective shows it: no earlier one judges along with it."""
    earlier = takewhile(lambda one: one.name != objective.name, policy.objectives)
    return not any(one.continues and (one.base or one.name) != (objective.base or objective.name) for one in earlier)


def is_jaeger(base: str) -> bool:
    """Return whether an address is one of Jaeger's page."""
    parts = urlsplit(base)
    return parts.path.endswith("/search") or f":{_JAEGER_PORT}" in parts.netloc or "jaeger" in parts.netloc


def _lookback(window_s: float) -> str:
    """Return a time that Jaeger's page offers: an hour at least."""
    hours = -(-window_s // 3_600)
    return f"{max(1, hours):.0f}h"
