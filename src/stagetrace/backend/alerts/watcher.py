"""Looks at the store at each interval, decides which alerts fire, and offers them to the receivers."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from stagetrace import log
from stagetrace.backend.alerts import saved, silences
from stagetrace.backend.alerts.counting import Found, Replayed, add_counts, count
from stagetrace.backend.alerts.notify import Alertmanager, Outbox, Webhook
from stagetrace.backend.counters import ThrottledLog
from stagetrace.errors import StagetraceError, StoreError
from stagetrace.rules import alerts as alert_seen
from stagetrace.rules.alerts import FIRING, PENDING, RESOLVED, Alert, Labels, advance
from stagetrace.rules.base import RulesError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import ExitStack
    from pathlib import Path

    from stagetrace.backend.alerts.notify import Receiver
    from stagetrace.backend.alerts.silences import Silence
    from stagetrace.backend.counters import Counters
    from stagetrace.backend.options import Alerting
    from stagetrace.policy.policy import Policy
    from stagetrace.store.local import LocalStore
    from stagetrace.store.local.reader import LocalReader

INTERVAL_S: Final = 30.0
_OF_SHORTEST: Final = 5  # looks in the shortest window
_LEAST_S: Final = 1.0
_IDLE: Final = 9  # times as long as a look takes nothing is done after it: looks take a tenth of one CPU
_SAVE_S: Final = 60.0  # at most so much of how long a condition has held is lost in a crash
_MOST_RESOLVED: Final = 200
_MOST_SERIES: Final = 1_000  # of objective and severity
UNKNOWN: Final = "unknown"  # besides its state: the last look could not tell whether its condition holds
STATES: Final = (PENDING, FIRING, UNKNOWN)
_ORDER: Final = (FIRING, PENDING, RESOLVED)
_STOP_S: Final = 2.0
_ELAPSED: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps


@dataclass(frozen=True)
class Plan:
    """A policy and what is looked at for it."""

    policy: Policy
    rules: list[alert_seen.Watched] = field(default_factory=list)
    windows: tuple[float, ...] = ()

    @classmethod
    def of(cls, policy: Policy, page: str = "") -> Plan:
        """Return the plan for a policy, with links to the `page`. Raise RulesError where an alert could never fire."""
        rules = alert_seen.watched(policy, page)
        return cls(policy, rules, alert_seen.windows(rules))

    @property
    def interval_s(self) -> float:
        """Return the time from one look to the next."""
        return max(_LEAST_S, min([INTERVAL_S, *(one / _OF_SHORTEST for one in self.windows)]))


class Watcher:
    """The alerts of one back end. `_lock` guards `_alerts`, and writing the file."""

    def __init__(
        self,
        folder: Path,
        open_reader: Callable[[], LocalReader],
        policy: Callable[[], Policy],
        receivers: Sequence[Receiver],
        counters: Counters,
        page: str = "",
    ) -> None:
        """`policy` returns the policy in force: the same object as long as it has not changed."""
        self._folder = folder
        self._page = page
        self._open_reader = open_reader
        self._policy = policy
        self._counters = counters
        self._log = ThrottledLog(_SAVE_S)
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        before = saved.load(folder)
        self._alerts: dict[Labels, Alert] = dict(before.alerts)
        self._outboxes = [Outbox(one, before.told.get(one.key, {}), counters, self.save) for one in receivers]
        self._asked = policy()  # the newest policy, in force or not
        self._plan = Plan.of(self._asked, page)
        saved.keep(folder, self._asked)
        self._replayed = Replayed(self._asked, self._plan.windows)
        self._looked_ns: int | None = None  # of the clock that nobody can set
        self._saved_at = time.monotonic()
        self._reader: LocalReader | None = None
        self._thread = threading.Thread(target=self._work, name="stagetrace-alerts", daemon=True)

    def start(self) -> None:
        """Look in a thread of its own."""
        for one in self._outboxes:
            one.start()
        self._thread.start()

    def stop(self) -> None:
        """End, and save how things are."""
        self._stopping.set()
        for one in self._outboxes:
            one.stop(_STOP_S)
        self._thread.join(_STOP_S)
        self.save()

    @property
    def policy(self) -> Policy:
        """Return the policy whose alerts are evaluated."""
        return self._plan.policy

    def alerts(self) -> list[Alert]:
        """Return the alerts, those that fire first, then the newest first."""
        with self._lock:
            found = list(self._alerts.values())
        return sorted(found, key=lambda one: (_ORDER.index(one.state), -one.started_unix_nano, one.labels))

    def counts(self) -> dict[tuple[str, str, str], int]:
        """Return how many alerts there are, by objective, severity and state."""
        severities = {(one.objective.name, one.texts["labels"].get("severity", "")) for one in self._plan.rules}
        found = {(*of, state): 0 for of in sorted(severities)[:_MOST_SERIES] for state in STATES}
        for one in self.alerts():
            labels = dict(one.labels)
            for state in [one.state] if one.is_known else [one.state, UNKNOWN]:
                of = labels.get("sla_objective", ""), labels.get("severity", ""), state
                if of in found:
                    found[of] += 1
        return found

    def _work(self) -> None:
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 -- the next look may find the store as it should be
                self._counters.add("alert_looks", "failed")
                self._log.error("look", f"alerts could not be evaluated: {type(error).__name__}: {error}")
            took_s = time.monotonic() - began
            self._stopping.wait(max(self._plan.interval_s - took_s, _IDLE * took_s))
        if self._reader is not None:
            self._reader.close()

    def look(self) -> None:
        """Count, decide, save what has changed, and offer it to the receivers."""
        self._renew()
        now, plan = time.time_ns(), self._plan
        elapsed_s = self._elapsed_s()
        found = self._count(now)
        seen = [] if found is None else alert_seen.seen(plan.rules, found.counts)
        is_partial = found is None or found.left > 0
        unknown = {one.rule for one in plan.rules} if is_partial else set()
        with self._lock:
            before = self._alerts
            self._alerts = after = _bound(advance(before, seen, unknown, elapsed_s, now))
        if _states(before) != _states(after) or time.monotonic() > self._saved_at + _SAVE_S:
            self.save()
        self._offer(elapsed_s)

    def _offer(self, elapsed_s: float) -> None:
        with self._lock:
            alerts, found = self._alerts, self.silences()
        silent = {labels for labels in alerts if silences.of(labels, found)}
        for one in self._outboxes:
            one.offer(alerts, elapsed_s, silent)

    def silence(self, objective: str, service: str, seconds: float) -> Silence:
        """Let no receiver hear of alerts of an objective, of one service or of all, for so long. Raise StoreError."""
        if objective not in {one.objective.name for one in self._plan.rules}:
            raise StoreError(f"no alerts of an objective {objective[:80]!r} are evaluated\nreload the board")
        return silences.put(self._folder, objective, service, seconds, time.time_ns())

    def silences(self) -> list[Silence]:
        """Return the silences that are not over."""
        return silences.read(self._folder, time.time_ns())

    def _elapsed_s(self) -> float:
        """Return the time since the last look; two intervals count at most, since nobody looked meanwhile."""
        before, self._looked_ns = self._looked_ns, time.clock_gettime_ns(_ELAPSED)
        return 0 if before is None else min((self._looked_ns - before) / 1e9, 2 * self._plan.interval_s)

    def _renew(self) -> None:
        """Take the policy in force; one whose alerts cannot be evaluated leaves the one before in force."""
        policy = self._policy()
        if policy is self._asked:
            return
        self._asked = policy
        try:
            self._plan = Plan.of(policy, self._page)
            saved.keep(self._folder, policy)
            self._replayed = Replayed(policy, self._plan.windows)
        except RulesError as error:
            log.warning(f"the alerts of the policy before stay in force: {error}")

    def _count(self, now: int) -> Found | None:
        """Return the counts; None where the store cannot be read."""
        try:
            if self._reader is None:
                self._reader = self._open_reader()
            found = count(self._reader, self._plan.policy, self._plan.windows, now)
            if found.has_others:
                found = found._replace(counts=add_counts(found.counts, self._replay(self._reader, now)))
        except Exception as error:  # noqa: BLE001 -- of the database, too: nothing is known then
            self._counters.add("alert_looks", "failed")
            what = str(error) if isinstance(error, StagetraceError) else f"{type(error).__name__}: {error}"
            self._log.warning("store", f"alerts stay as they are, since the store cannot be read: {what}")
            return None
        self._counters.add("alert_looks", "done")
        return found

    def _replay(self, reader: LocalReader, now: int) -> alert_seen.Counted:
        """Return the counts of requests that have no verdict of the policy."""
        one = self._replayed
        judged, skipped = one.judged, one.skipped
        found = one.counts(reader, now)
        self._counters.add("alert_replayed_requests", "judged", one.judged - judged)
        self._counters.add("alert_replayed_requests", "skipped", one.skipped - skipped)
        if one.skipped > skipped:
            self._log.warning("skipped", "more requests have no verdict of the policy than can be judged here")
        return found

    def save(self) -> None:
        """Write the file. A disk that is full costs messages that are sent twice, after a crash, and nothing else."""
        told = {one.receiver.key: one.last_posted() for one in self._outboxes}
        with self._lock:
            self._saved_at = time.monotonic()
            try:
                saved.save(self._folder, saved.Saved(self._alerts, told))
            except OSError as error:
                self._log.warning("save", f"{self._folder / saved.ALERTS_FILE} cannot be written: {error.strerror}")


def _states(alerts: Mapping[Labels, Alert]) -> set[tuple[Labels, str, int]]:
    return {(labels, one.state, one.started_unix_nano) for labels, one in alerts.items()}


def _bound(alerts: dict[Labels, Alert]) -> dict[Labels, Alert]:
    """Return the alerts without the resolved ones beyond the newest few, which are only shown."""
    over = sorted((one for one in alerts.values() if one.state == RESOLVED), key=lambda one: one.ended_unix_nano)
    for one in over[: max(0, len(over) - _MOST_RESOLVED)]:
        del alerts[one.labels]
    return alerts


# --- Starts the alerts of a back end: the receivers that its options name, the watcher, its figures in /metrics.

_HELP: Final = (
    "# HELP stagetrace_alerts Alerts of objectives, by state; unknown: those whose condition is not known right now.",
    "# TYPE stagetrace_alerts gauge",
)
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 -- addresses that no client can use
_ESCAPED: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def watch(alerting: Alerting, page: str, store: LocalStore, counters: Counters, stack: ExitStack) -> Watcher:
    """Start to watch the objectives over an open store, until the stack ends; `page` is the URL of the page."""
    receivers = list(_receivers(alerting, page))
    page = "" if urlsplit(page).hostname in _EVERYWHERE else page
    watcher = Watcher(store.folder, store.reader, alerting.renewed, receivers, counters, page)
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
    if alerting.notify:
        from stagetrace.backend.alerts.notifications import Notifications

        yield from map(Notifications, alerting.notify)


def _lines(watcher: Watcher) -> Iterator[str]:
    """Yield the alerts in Prometheus' text format."""
    yield from _HELP
    for (objective, severity, state), number in watcher.counts().items():
        labels = {"objective": objective, "severity": severity, "state": state}
        yield f"stagetrace_alerts{{{', '.join(f'{name}={_quote(text)}' for name, text in labels.items())}}} {number}"


def _quote(text: str) -> str:
    return '"' + re.sub(r'[\\"\n]', lambda match: _ESCAPED[match[0]], text) + '"'
