"""The alerts of one objective as rules of Prometheus."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.rules import recorded
from stagetrace.rules.base import RulesError
from stagetrace.rules.links import breaches_url
from stagetrace.rules.promql import YOUNG_S, counted, duration, labels, number, quoted, template
from stagetrace.sla.alert_options import TICKET

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stagetrace.rules.base import RulesOptions
    from stagetrace.rules.burn import Alert
    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

Rule = dict[str, Any]
BURN: Final = "SlaErrorBudgetBurn"
BREACH: Final = "SlaBreach"  # of an objective that allows none
SEGMENT_BURN: Final = "SlaSegmentErrorBudgetBurn"
SEGMENT_BREACH: Final = "SlaSegmentBreach"
NO_DATA: Final = "SlaNoData"
_HOUR_S: Final = 3_600
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
    levels = (False, True) if objective.segment_by else (False,)
    for alert in alerts:
        for segmented in levels:
            yield _burn_rule(alert, policy, options, segmented=segmented)
    if policy.alerts_of(objective).no_data_s:
        yield _no_data_rule(objective, policy, options)


def _burn_rule(alert: Alert, policy: Policy, options: RulesOptions, *, segmented: bool) -> Rule:
    names = (BREACH, SEGMENT_BREACH) if alert.factor is None else (BURN, SEGMENT_BURN)
    name = names[segmented]
    own = {"severity": alert.severity, **_windows(alert)}
    return {
        "alert": name,
        "expr": _burn_expr(alert, name, own, options, segmented=segmented),
        "labels": _labels(alert.objective, policy, own),
        "annotations": _annotations(alert.objective, policy, _text(alert), alert.long_s),
    }


def _windows(alert: Alert) -> dict[str, str]:
    windows = {"long_window": duration(alert.long_s), "short_window": duration(alert.short_s)}
    return windows if alert.factor is None else {"burn_rate": number(alert.factor), **windows}


def _burn_expr(alert: Alert, name: str, own: dict[str, str], options: RulesOptions, *, segmented: bool) -> str:
    """Return what `burn.is_burning` computes: both windows exceed, or nothing shows that an alert is over."""
    matchers = labels(alert.objective, options.service)
    long, short = (f"{recorded.ratio(one, segmented=segmented)}{{{matchers}}}" for one in (alert.long_s, alert.short_s))
    count = f"sum without (sla_verdict) ({recorded.counts(alert.long_s, segmented=segmented)}{{{matchers}}})"
    above = f"> {number(alert.threshold)}"
    lines = [f"{long} {above}"]
    lines += [f"and {short} {above}"] if short != long else []
    lines += [f"and {count} >= {alert.min_requests}"] if alert.min_requests > 1 else []
    if short == long:
        return "\n".join(lines)
    matched = [f"{key}={quoted(value)}" for key, value in own.items()]
    fires = ", ".join([f"alertname={quoted(name)}", 'alertstate="firing"', matchers, *matched])
    on = recorded.by(segmented=segmented)
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
    by, whole = recorded.by(), duration(length_s)
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


def _annotations(objective: Objective, policy: Policy, text: dict[str, str], window_s: float | None) -> dict[str, str]:
    alerts = policy.alerts_of(objective)
    about = {"objective_description": template(objective.description)} if objective.description else {}
    runbook = {"runbook_url": template(alerts.runbook)} if alerts.runbook else {}
    traces = {}
    if alerts.traces and window_s is not None:
        traces["traces"] = breaches_url(policy, objective, _SERVICE_IN_URL, window_s)
    return {**text, **about, **runbook, **traces}
