"""Starts the alerts of a back end: the receivers that its options name, the watcher, its figures in /metrics."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from stagetrace.backend.alerts.watcher import Plan, Watcher
from stagetrace.backend.notify.alertmanager import Alertmanager
from stagetrace.backend.notify.webhook import Webhook

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from stagetrace.backend.counters import Counters
    from stagetrace.backend.notify.base import Receiver
    from stagetrace.backend.options import Alerting
    from stagetrace.store.local import LocalStore

_HELP: Final = (
    "# HELP stagetrace_alerts Alerts of objectives, by state; unknown: those whose condition is not known right now.",
    "# TYPE stagetrace_alerts gauge",
)
_ESCAPED: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def watch(alerting: Alerting, page: str, store: LocalStore, counters: Counters, stack: ExitStack) -> Watcher:
    """Start to watch the objectives over an open store, until the stack ends; `page` is the URL of the page."""
    watcher = Watcher(store.folder, store.reader, alerting.renewed, list(_receivers(alerting, page)), counters)
    counters.lines.append(lambda: _lines(watcher))
    stack.callback(watcher.stop)
    watcher.start()
    return watcher


def _receivers(alerting: Alerting, page: str) -> Iterator[Receiver]:
    page = alerting.policy.alerts.traces or page
    if alerting.webhook:
        yield Webhook(alerting.webhook, alerting.webhook_token, alerting.webhook_secret, page)
    if alerting.alertmanager:
        interval_s = Plan.of(alerting.policy).interval_s
        yield Alertmanager(alerting.alertmanager, alerting.alertmanager_token, page, interval_s)


def _lines(watcher: Watcher) -> Iterator[str]:
    """Yield the alerts in Prometheus' text format."""
    yield from _HELP
    for (objective, severity, state), count in watcher.counts().items():
        labels = {"objective": objective, "severity": severity, "state": state}
        yield f"stagetrace_alerts{{{', '.join(f'{name}={_quoted(text)}' for name, text in labels.items())}}} {count}"


def _quoted(text: str) -> str:
    return '"' + re.sub(r'[\\"\n]', lambda match: _ESCAPED[match[0]], text) + '"'
