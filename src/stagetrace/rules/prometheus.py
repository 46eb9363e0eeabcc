"""Recording rules and alerts for Prometheus: as a file, as a PrometheusRule, with unit tests for promtool."""

from __future__ import annotations

import json
import re
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from stagetrace.policy.alert_options import TICKET
from stagetrace.policy.objective import SERVICE_KEY
from stagetrace.rules import burn, promql
from stagetrace.rules.base import Format, RulesError, RulesOptions, yaml_of
from stagetrace.rules.promql import SEGMENTS, WHOLE, YOUNG_S, Level, counted, duration, labels, number, quoted, template
from stagetrace.semconv import SLA_BREACHED, SLA_OBJECTIVE
from stagetrace.system.access import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from stagetrace.policy.objective import Calendar, Objective
    from stagetrace.policy.policy import Policy
    from stagetrace.rules.burn import Alert

# --- Links from an alert to the breaches that it is about: in stagetrace's page, or in Jaeger's search.

_JAEGER_PORT: Final = 16_686
_HOUR_S: Final = 3_600


def breaches_url(policy: Policy, objective: Objective, service: str, window_s: float, page: str = "") -> str:
    """Return a URL of an objective's breaches of the last time; `service` goes into it as it is.

    Jaeger finds the objective that an entry span shows. Where that may be another one, which was missed too, the URL is
    of all breaches.

    The address, `traces` of the alerts, is one of Jaeger where its path ends with `/search`, its port is 16686 or its
    host has `jaeger` in it, and one of stagetrace's page otherwise: of `page`, where the policy names none.
    """
    base = (policy.alerts_of(objective).traces or page).rstrip("/")
    if is_jaeger(base) and not _is_same(base, page):
        wanted = {SLA_BREACHED: "true", **({SLA_OBJECTIVE: objective.name} if _is_shown(policy, objective) else {})}
        tags = quote(json.dumps(wanted, separators=(",", ":")), safe="")
        lookback = f"{max(1, -(-window_s // _HOUR_S)):.0f}h"  # that Jaeger's page offers
        return f"{base.removesuffix('/search')}/search?service={service}&tags={tags}&lookback={lookback}"
    since = duration(max(60, window_s))
    missed = quote(objective.name, safe="")
    return f"{base.removesuffix('/breaches')}/breaches?service={service}&judged-by={missed}&since={since}"


def _is_same(base: str, page: str) -> bool:
    """Return whether an address is that of our own page, which by default has Jaeger's port."""
    one, other = urlsplit(base), urlsplit(page)
    hosts = [parts.hostname or "" for parts in (one, other)]
    return one.port == other.port and (hosts[0] == hosts[1] or all(map(is_loopback, hosts))) if page else False


def _is_shown(policy: Policy, objective: Objective) -> bool:
    """Return whether the entry span of each breach of an objective shows it: no earlier one judges along with it."""
    earlier = takewhile(lambda one: one.name != objective.name, policy.objectives)
    return not any(one.continues and (one.base or one.name) != (objective.base or objective.name) for one in earlier)


def is_jaeger(base: str) -> bool:
    """Return whether an address is one of Jaeger's page."""
    parts = urlsplit(base)
    return parts.path.endswith("/search") or f":{_JAEGER_PORT}" in parts.netloc or "jaeger" in parts.netloc


# --- What is recorded of an objective: requests by verdict in each window, the share of breaches, the rest of the
# budget.
#
# Without a judged request the share is absent: neither NaN nor 0. Counts are differences and not `increase()`, which
# loses the first value of each series (docs/decisions/079).

Rule = dict[str, Any]
STEP_S: Final = burn.STANDARD_WINDOWS[0]  # of calendar windows


def window_rules(objective: Objective, options: RulesOptions, window_s: float, level: Level = WHOLE) -> Iterator[Rule]:
    """Yield the rules of one window: requests by verdict, then the share of breaches, which stands on them."""
    series = f'{options.requests}{{{labels(objective, options.service)}, sla_verdict=~"good|breach"}}'
    each = counted(series, duration(window_s), duration(YOUNG_S * options.scale))
    counts = level.counts(window_s)
    yield _rule(objective, counts, f"sum by ({level.by}, sla_verdict) (\n{each}\n)")
    yield _ratio(objective, options, counts, level.ratio(window_s))


def budget_rules(
    objective: Objective, options: RulesOptions, windows: AbstractSet[float], level: Level = WHOLE
) -> list[Rule]:
    """Return the rules of the objective's own window, and of its error budget; `windows` are recorded already."""
    if objective.calendar is not None and options.scale == 1:
        ratio = level.ratio_since(objective.calendar.unit)
        rules = list(_calendar_rules(objective, objective.calendar, options, level))
    else:
        window_s = objective.window_s * options.scale
        ratio = level.ratio(window_s)
        is_recorded = window_s in windows
        rules = [] if is_recorded else list(window_rules(objective, options, window_s, level))
    allowed = burn.budget(objective)
    if allowed > 0:
        left = f"1 - {ratio}{{{labels(objective, options.service)}}} / {number(allowed)}"
        rules.append(_rule(objective, level.budget_left, left))
    return rules


def step_rules(objective: Objective, options: RulesOptions, level: Level = WHOLE) -> Iterator[Rule]:
    """Yield the rule of what a calendar window is the sum of: `STEP_S` each, to be recorded once in that time."""
    if objective.calendar is not None and options.scale == 1:
        counts = f"{level.counts(STEP_S)}{{{labels(objective, options.service)}}}"
        period = f"* on () group_left ({promql.PERIOD}) {promql.current(objective.calendar)}"
        yield _rule(objective, level.step, f"{counts} {period}")


def _calendar_rules(objective: Objective, calendar: Calendar, options: RulesOptions, level: Level) -> Iterator[Rule]:
    by, step = level.by, level.step
    steps = f"sum_over_time({step}{{{labels(objective, options.service)}}}[{duration(objective.window_s)}])"
    in_period = f"and on ({promql.PERIOD}) {promql.current(calendar)}"
    whole = level.counts_since(calendar.unit)
    yield _rule(objective, whole, f"sum by ({by}, sla_verdict) (\n  {steps}\n  {in_period}\n)")
    yield _ratio(objective, options, whole, level.ratio_since(calendar.unit))


def _ratio(objective: Objective, options: RulesOptions, counts: str, name: str) -> Rule:
    own = labels(objective, options.service)
    breaches, judged = (
        f"sum without (sla_verdict) ({counts}{{{own}{verdict}}})" for verdict in (', sla_verdict="breach"', "")
    )
    return _rule(objective, name, f"(\n  {breaches}\n  or 0 * {judged}\n)\n/ ({judged} > 0)")


def _rule(objective: Objective, name: str, expr: str) -> Rule:
    # The label is in the result already; promtool takes rules with the same name and labels for duplicates.
    return {"record": name, "expr": expr, "labels": {"sla_objective": objective.name}}


# --- The alerts of one objective as rules of Prometheus.

BURN: Final = "SlaErrorBudgetBurn"
BREACH: Final = "SlaBreach"  # of an objective that allows none
SEGMENT_BURN: Final = "SlaSegmentErrorBudgetBurn"
SEGMENT_BREACH: Final = "SlaSegmentBreach"
NO_DATA: Final = "SlaNoData"
SILENT_S: Final = 86_400  # a service that has been silent for longer is no longer named by an alert
_OWN_LABELS: Final = (
    *("alertname", "alertstate", "job", "sla_objective", "sla_segment", "service", "severity"),
    *("burn_rate", "long_window", "short_window"),
)
_OBJECTIVE: Final = "{{ $labels.sla_objective }}"
_SEGMENT: Final = "{{ with $labels.sla_segment }} of {{ . }}{{ end }}"
# The service, as traces have it: `job` without the namespace.
_SERVICE_IN_URL: Final = '{{ reReplaceAll "^.*/" "" $labels.job | urlquery }}'


def alert_rules(objective: Objective, alerts: Iterable[Alert], policy: Policy, options: RulesOptions) -> Iterator[Rule]:
    """Yield the rules of an objective's alerts, those of its segments, and the one for no data."""
    for alert in alerts:
        for level in promql.levels(objective):
            yield _burn_rule(alert, policy, options, level)
    if policy.alerts_of(objective).no_data_s:
        yield _no_data_rule(objective, policy, options)


def _burn_rule(alert: Alert, policy: Policy, options: RulesOptions, level: Level) -> Rule:
    names = (BREACH, SEGMENT_BREACH) if alert.factor is None else (BURN, SEGMENT_BURN)
    name = names[level is SEGMENTS]
    own = {"severity": alert.severity, **_windows(alert)}
    return {
        "alert": name,
        "expr": _burn_expr(alert, name, own, options, level),
        "labels": _labels(alert.objective, policy, own),
        "annotations": _annotations(alert.objective, policy, _text(alert), alert.long_s, options.page),
    }


def _windows(alert: Alert) -> dict[str, str]:
    windows = {"long_window": duration(alert.long_s), "short_window": duration(alert.short_s)}
    return windows if alert.factor is None else {"burn_rate": number(alert.factor), **windows}


def _burn_expr(alert: Alert, name: str, own: dict[str, str], options: RulesOptions, level: Level) -> str:
    """Return what `burn.is_burning` computes: both windows exceed, or nothing shows that an alert is over."""
    matchers = labels(alert.objective, options.service)
    long, short = (f"{level.ratio(one)}{{{matchers}}}" for one in (alert.long_s, alert.short_s))
    count = f"sum without (sla_verdict) ({level.counts(alert.long_s)}{{{matchers}}})"
    above = f"> {number(alert.threshold)}"
    lines = [f"{long} {above}"]
    lines += [f"and {short} {above}"] if short != long else []
    lines += [f"and {count} >= {alert.min_requests}"] if alert.min_requests > 1 else []
    if short == long:
        return "\n".join(lines)
    matched = [f"{key}={quoted(value)}" for key, value in own.items()]
    fires = ", ".join([f"alertname={quoted(name)}", 'alertstate="firing"', matchers, *matched])
    on = level.by
    return "\n".join([*lines, "or", long, f"and on ({on}) ALERTS{{{fires}}}", f"unless {short}"])


def _text(alert: Alert) -> dict[str, str]:
    share, target = "{{ $value | humanizePercentage }}", alert.objective.target_text
    long, short = duration(alert.long_s), duration(alert.short_s)
    missed = f"{{{{ $labels.job }}}}: {share} of the requests in {long} missed {_OBJECTIVE}{_SEGMENT}"
    if alert.factor is None:
        return {"summary": f"{missed}, which allows none ({target})"}
    spent_s = alert.objective.window_s / alert.factor
    spent = duration(round(spent_s / 60) * 60 if spent_s > _HOUR_S else spent_s)
    return {
        "summary": f"{missed}; {number(100 * (1 - alert.objective.target))}% may ({target})",
        "description": (
            f"Over {long} and over {short} more than {number(100 * alert.threshold)}% of the requests missed the"
            f" objective. At that rate, {number(alert.factor)} times what the objective allows, its whole error budget"
            f" is spent within {spent}."
        ),
    }


def _no_data_rule(objective: Objective, policy: Policy, options: RulesOptions) -> Rule:
    """Return the alert that no request was judged: half of the time as a window, the other half as `for`."""
    length_s = policy.alerts_of(objective).no_data_s * options.scale
    half, silent = duration(length_s / 2), duration(SILENT_S * options.scale)
    matchers = labels(objective, options.service)
    series = f'{options.requests}{{{matchers}, sla_verdict=~"good|breach"}}'
    by, whole = WHOLE.by, duration(length_s)
    recent = counted(series, half, duration(YOUNG_S * options.scale))
    expr = (
        f"group by ({by}) (present_over_time({series}[{silent}]))\nunless sum by ({by}) (\n{recent}\n) > 0\n"
        f"or absent_over_time({series}[{silent}])"
    )
    text = (
        f"{{{{ with $labels.job }}}}{{{{ . }}}}: {{{{ end }}}}no request was judged by {_OBJECTIVE} for {whole}:"
        " whether it is met is unknown"
    )
    return {
        "alert": NO_DATA,
        "expr": expr,
        "for": half,
        "labels": _labels(objective, policy, {"severity": TICKET}),
        "annotations": _annotations(objective, policy, {"summary": text}, None),
    }


def _labels(objective: Objective, policy: Policy, own: dict[str, str]) -> dict[str, str]:
    """Return the labels of an alert: those that the policy names, and its own. Raise RulesError for one of these."""
    given = policy.alerts_of(objective).labels
    for name, _ in given:
        if name in _OWN_LABELS:
            raise RulesError(f"the label {name!r} of alerts.labels is one that the rules set\nname it otherwise")
    named = {name: template(value) for name, value in given}
    return {**named, "sla_objective": template(objective.name), "service": "{{ $labels.job }}", **own}


def _annotations(
    objective: Objective, policy: Policy, text: dict[str, str], window_s: float | None, page: str = ""
) -> dict[str, str]:
    alerts = policy.alerts_of(objective)
    about = {"objective_description": template(objective.description)} if objective.description else {}
    runbook = {"runbook_url": template(alerts.runbook)} if alerts.runbook else {}
    traces = {}
    if (alerts.traces or page) and window_s is not None:
        traces["traces"] = breaches_url(policy, objective, _SERVICE_IN_URL, window_s, page)
    return {**text, **about, **runbook, **traces}


# --- Recording rules and alerts for Prometheus, out of the counter of judged requests.

Group = dict[str, Any]
# The objective's whole window is read anew at this interval. After 5 minutes, Prometheus takes a series for ended.
BUDGET_INTERVAL_S: Final = 240


def render(policy: Policy, options: RulesOptions) -> str:
    """Return a rule file."""
    return yaml_of({"groups": groups(policy, options)}, comment=comment(policy))


def comment(policy: Policy) -> str:
    """Return how the file was made."""
    source = f" out of {policy.source}" if policy.source else ""
    return f"Made by `stagetrace sla rules`{source}: change the policy, not this file."


def groups(policy: Policy, options: RulesOptions) -> list[Group]:
    """Return for each objective a group with its windows and alerts, and one with its error budget."""
    objectives = burn.judged(policy)
    used = {one.calendar for one in objectives if one.calendar is not None} if options.scale == 1 else set()
    rules = promql.rules(used)
    first = [{"name": "sla calendars", "rules": rules}] if rules else []
    return first + [group for one in objectives for group in _of(one, policy, options)]


def _of(objective: Objective, policy: Policy, options: RulesOptions) -> Iterator[Group]:
    alerts = burn.alerts(objective, policy.alerts_of(objective), options.scale)
    needed = {window for alert in alerts for window in alert.windows}
    windows = needed | {one * options.scale for one in burn.STANDARD_WINDOWS}
    rules = [rule for one in sorted(windows) for rule in window_rules(objective, options, one)]
    if objective.segment_by:
        rules += [rule for one in sorted(needed) for rule in window_rules(objective, options, one, SEGMENTS)]
    rules += alert_rules(objective, alerts, policy, options)
    yield {"name": f"sla windows and alerts: {objective.name}", "rules": rules}
    steps = [rule for level in promql.levels(objective) for rule in step_rules(objective, options, level)]
    if steps:
        yield {"name": f"sla steps: {objective.name}", "interval": duration(STEP_S), "rules": steps}
    rules = budget_rules(objective, options, windows)
    if objective.segment_by:
        rules += budget_rules(objective, options, needed, SEGMENTS)
    interval = duration(max(1, BUDGET_INTERVAL_S * options.scale))
    yield {"name": f"sla error budget: {objective.name}", "interval": interval, "rules": rules}


FORMAT = Format("prometheus", "a rule file for Prometheus: recording rules and alerts", ".yaml", render)


_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9]+")
_MOST: Final = 253  # characters of a name of a resource


def render_prometheusrule(policy: Policy, options: RulesOptions) -> str:
    """Return the resource; its name has that of the service, where the policy or the options name one."""
    services = {one.glob for rule in policy.objectives for one in rule.conditions if one.key == SERVICE_KEY}
    about = options.service or (services.pop() if len(services) == 1 else "")
    name = "-".join(["stagetrace-sla", *filter(None, _NOT_IN_NAMES.split(about.lower()))])
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name[:_MOST].rstrip("-"), "labels": {"app.kubernetes.io/managed-by": "stagetrace"}},
        "spec": {"groups": groups(policy, options)},
    }
    return yaml_of(resource, comment=comment(policy))


PROMETHEUSRULE = Format("prometheusrule", "the same as a PrometheusRule of Kubernetes", ".yaml", render_prometheusrule)


# --- Unit tests of these rules, which promtool runs: each alert fires when it has to, and only then.

Test = dict[str, Any]
RULES: Final = "rules.yaml"
_STEPS: Final = 10  # values of each series
_LESS: Final = 0.99  # of the lowest threshold
_DEFAULT_S: Final = 60


def render_promtool(policy: Policy, options: RulesOptions) -> str:
    """Return the file; it names that of the rules, beside it."""
    objectives = burn.judged(policy)
    groups = [found for one in objectives if (found := burn.alerts(one, policy.alerts_of(one), options.scale))]
    alerts = [one for group in groups for one in group]
    length_s = min((one.short_s for one in alerts), default=_DEFAULT_S)
    step = duration(length_s / _STEPS)
    a_step = max(1, *(policy.alerts_of(one).min_requests for one in objectives))
    tests = []
    for name, fires in (("all requests are breaches", True), ("fewer breaches than any alert takes", False)):
        series = [
            {"series": _selector(options.requests, group[0].objective, options, sla_verdict=verdict), "values": values}
            for group in groups
            for share in (1.0 if fires else _LESS * min(one.threshold for one in group),)
            for verdict, values in (
                ("good", f"0+{number(a_step * (1 - share))}x{_STEPS}"),
                ("breach", f"0+{number(a_step * share)}x{_STEPS}"),
            )
        ]
        tests.append(_test(name, step, series, length_s, (_firing(one, options) for one in alerts), fires=fires))
    watched = [one for one in objectives if policy.alerts_of(one).no_data_s]
    if watched:
        length_s = max(policy.alerts_of(one).no_data_s for one in watched) * options.scale
        silent = (f'ALERTS{{alertname="{NO_DATA}", sla_objective={quoted(one.name)}}}' for one in watched)
        tests.append(_test("no request at all", step, [], length_s, silent, fires=True))
    how = f"{comment(policy)}\nThe rules are in {RULES}, beside this file: promtool test rules FILE"
    return yaml_of({"rule_files": [RULES], "evaluation_interval": step, "tests": tests}, comment=how)


def _firing(alert: Alert, options: RulesOptions) -> str:
    """Return the expression of an alert that fires."""
    own = {"alertname": BREACH} if alert.factor is None else {"alertname": BURN, "burn_rate": number(alert.factor)}
    windows = {"long_window": duration(alert.long_s), "short_window": duration(alert.short_s)}
    return _selector("ALERTS", alert.objective, options, alertstate="firing", **own, **windows)


def _selector(name: str, objective: Objective, options: RulesOptions, **more: str) -> str:
    """Return a series of a service that the objective is about."""
    services = (one.glob.replace("*", "x") for one in objective.conditions if one.key == SERVICE_KEY)
    own = {"job": next(services, options.service) or "any", "sla_objective": objective.name, **more}
    return f"{name}{{{', '.join(f'{key}={quoted(value)}' for key, value in own.items())}}}"


def _test(name: str, step: str, series: list[Test], at_s: float, firing: Iterable[str], *, fires: bool) -> Test:
    samples = [{"labels": "{}", "value": 1}] if fires else []
    return {
        "name": name,
        "interval": step,
        "input_series": series,
        "promql_expr_test": [
            {"expr": f"count({expr})", "eval_time": duration(at_s), "exp_samples": samples} for expr in firing
        ],
    }


PROMTOOL = Format(
    "promtool", f"unit tests of these rules, which promtool runs beside {RULES}", ".yaml", render_promtool
)
