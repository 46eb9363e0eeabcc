"""Links from an alert to the breaches that it is about: in stagetrace's page, or in Jaeger's search."""

from __future__ import annotations

import json
from typing import Final
from urllib.parse import quote, urlsplit

from stagetrace.rules.promql import duration
from stagetrace.semconv import SLA_BREACHED, SLA_OBJECTIVE

_JAEGER_PORT: Final = 16_686


def breaches_url(traces: str, objective: str, service: str, window_s: float) -> str:
    """Return a URL of an objective's breaches of the last time; `service` goes into it as it is.

    `traces` is an address of Jaeger where its path ends with `/search`, its port is 16686 or its host has `jaeger` in
    it, and one of stagetrace's page otherwise.
    """
    base = traces.rstrip("/")
    if is_jaeger(base):
        tags = quote(json.dumps({SLA_BREACHED: "true", SLA_OBJECTIVE: objective}, separators=(",", ":")), safe="")
        return f"{base.removesuffix('/search')}/search?service={service}&tags={tags}&lookback={_lookback(window_s)}"
    since = duration(max(60, window_s))
    segment = quote(f"{SLA_OBJECTIVE}={objective}", safe="")
    return f"{base.removesuffix('/breaches')}/breaches?service={service}&segment={segment}&since={since}"


def is_jaeger(base: str) -> bool:
    """Return whether an address is one of Jaeger's page."""
    parts = urlsplit(base)
    return parts.path.endswith("/search") or f":{_JAEGER_PORT}" in parts.netloc or "jaeger" in parts.netloc


def _lookback(window_s: float) -> str:
    """Return a time that Jaeger's page offers: an hour at least."""
    hours = -(-window_s // 3_600)
    return f"{max(1, hours):.0f}h"
