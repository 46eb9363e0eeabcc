"""The objectives as Sloth reads them (`prometheus/v1`), and the windows of the alerts as a catalog for Sloth.

A Sloth file knows no windows and no factors: they come from the catalog that `sloth generate` is given, one for the
period of all objectives of a run. The factors of the alerts are those of the policy, whatever the period is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.rules import burn, dns_names
from stagetrace.rules.base import Format, RulesError, RulesOptions
from stagetrace.rules.links import breaches_url
from stagetrace.rules.prometheus import comment
from stagetrace.rules.prometheus_alerts import BURN
from stagetrace.rules.promql import YOUNG_S, counted, duration, labels, service_of, template
from stagetrace.rules.yaml_text import yaml_of
from stagetrace.sla.alert_options import PAGE, TICKET, BurnAlert

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.sla.objective import Objective
    from stagetrace.sla.policy import Policy

ANY_SERVICE: Final = "any-service"
_WINDOW: Final = "{{.window}}"
_MOST_PAIRS: Final = 2  # quick and slow


class _Pairs(NamedTuple):
    """The two pairs of windows that Sloth has for a severity."""

    quick: BurnAlert
    slow: BurnAlert


def render(policy: Policy, options: RulesOptions) -> str:
    """Return one document for all services: of the rules that Sloth makes of several, Prometheus reads the first."""
    objectives = burn.judged(policy)
    for one in objectives:
        burn.alerts(one, policy.alerts_of(one))  # raises where one could never fire
    _pairs(policy)
    names = dns_names.labels((one.name for one in objectives), "objective")
    services = {service_of(one, options.service) for one in objectives}
    service = services.pop() if len(services) == 1 else ""
    document = {
        "version": "prometheus/v1",
        "service": dns_names.label(service, "service") if service else ANY_SERVICE,
        "slos": [_slo(one, names[one.name], policy, options) for one in objectives],
    }
    return yaml_of(document, _comment(policy, options))


def _comment(policy: Policy, options: RulesOptions) -> str:
    """Return how the file was made and is used, and what Sloth cannot express of the policy."""
    period = duration(_period_s(policy) * options.scale)
    lines = [
        comment(policy),
        "stagetrace sla rules --format sloth-windows --output windows/policy.yaml",
        f"sloth generate --slo-period-windows-path windows --default-slo-period {period} --input FILE",
        *(f"Not expressed: {line}" for line in _omitted(policy, period, options)),
    ]
    return "\n".join(lines)


def _omitted(policy: Policy, period: str, options: RulesOptions) -> Iterator[str]:
    """Yield what Sloth has nothing for; what a request is judged by lies in the counter already."""
    for one in burn.judged(policy):
        if one.calendar is not None or duration(one.window_s * options.scale) != period:
            window = one.target_text.partition(" over ")[2]
            yield f"the window of {one.name}, {window}: Sloth counts all over the rolling {period}"
        if one.segment_by:
            yield f"the segments of {one.name}: Sloth alerts on all requests together"
    all_ = [policy.alerts_of(one) for one in burn.judged(policy)]
    for count in sorted({one.min_requests for one in all_ if one.min_requests > 1}):
        yield f"alerts.min_requests: {count}"
    for length_s in sorted({one.no_data_s for one in all_ if one.no_data_s}):
        yield f"alerts.no_data: {duration(length_s)}"


def _slo(objective: Objective, name: str, policy: Policy, options: RulesOptions) -> dict[str, Any]:
    own, service = labels(objective, options.service), service_of(objective, options.service)
    total = _query(f'{options.requests}{{{own}, sla_verdict=~"good|breach"}}', options)
    breaches = _query(f'{options.requests}{{{own}, sla_verdict="breach"}}', options)
    return {
        "name": name,
        "objective": float(f"{100 * objective.target:.12g}"),
        **({"description": objective.description} if objective.description else {}),
        "labels": {"sla_objective": objective.name, **({"service": service} if service else {})},
        "sli": {"events": {"error_query": f"{breaches}\nor\n0 * {total}", "total_query": f"{total} > 0"}},
        "alerting": _alerting(objective, policy),
    }


def _query(series: str, options: RulesOptions) -> str:
    young = duration(YOUNG_S * options.scale)
    return f"sum by (job) (\n{counted(template(series), _WINDOW, young)}\n)"


def _alerting(objective: Objective, policy: Policy) -> dict[str, Any]:
    alerts = policy.alerts_of(objective)
    pairs = _pairs(policy) if alerts.burns else {}
    annotations = {"runbook_url": template(alerts.runbook)} if alerts.runbook else {}
    if alerts.traces and pairs:
        longest = max(pair.slow.long_s for pair in pairs.values())
        annotations["traces"] = breaches_url(policy, objective, "{{ $labels.job }}", longest)
    # The objective stands on the recorded series, too; promtool's linter takes alerts without it for one another.
    own = {"sla_objective": template(objective.name)}
    found: dict[str, Any] = {"name": BURN, "labels": {**{key: template(value) for key, value in alerts.labels}, **own}}
    if annotations:
        found["annotations"] = annotations
    for severity in (PAGE, TICKET):
        found[f"{severity}_alert"] = {"labels": {"severity": severity}} if severity in pairs else {"disable": True}
    return found


def render_windows(policy: Policy, options: RulesOptions) -> str:
    """Return the catalog of windows: two pairs for each severity, equal ones where the policy has one."""
    pairs = _pairs(policy)
    if not pairs:
        raise RulesError(
            "the policy has no burn alert, and Sloth needs windows\nwrite alerts.burn, or use --disable-alerts"
        )
    period_s = _period_s(policy)
    of_any = next(iter(pairs.values()))
    spec: dict[str, Any] = {"sloPeriod": duration(period_s * options.scale)}
    for severity in (PAGE, TICKET):
        pair = pairs.get(severity, of_any)  # of a severity without alerts Sloth demands windows, too
        spec[severity] = {name: _window(one, period_s, options) for name, one in pair._asdict().items()}
    document = {"apiVersion": "sloth.slok.dev/v1", "kind": "AlertWindows", "spec": spec}
    return yaml_of(document, comment(policy))


def _window(burn_alert: BurnAlert, period_s: float, options: RulesOptions) -> dict[str, Any]:
    """Return a pair of windows; a burn rate is the share of the period's budget that is spent in the long one."""
    return {
        "errorBudgetPercent": float(f"{100 * burn_alert.factor * burn_alert.long_s / period_s:.15g}"),
        "shortWindow": duration(burn_alert.short_s * options.scale),
        "longWindow": duration(burn_alert.long_s * options.scale),
    }


def _pairs(policy: Policy) -> dict[str, _Pairs]:
    """Return the windows of each severity that has any. Raise RulesError where there are more than Sloth has."""
    found: dict[str, list[BurnAlert]] = {}
    for one in _burns(policy):
        found.setdefault(one.severity, []).append(one)
    for severity, burns in found.items():
        if len(burns) > _MOST_PAIRS:
            raise RulesError(
                f"the policy has {len(burns)} alerts of severity {severity}, and Sloth has two for each\n"
                "remove some of alerts.burn, or write --format prometheus"
            )
    return {severity: _Pairs(burns[0], burns[-1]) for severity, burns in found.items()}


def _burns(policy: Policy) -> tuple[BurnAlert, ...]:
    """Return the burn alerts of all objectives that have any. Raise RulesError where they are not the same."""
    first: dict[tuple[BurnAlert, ...], str] = {}
    for one in burn.judged(policy):
        first.setdefault(policy.alerts_of(one).burns, one.name)
    first.pop((), None)
    if len(first) > 1:
        names = list(first.values())
        raise RulesError(
            f"the objectives {names[0]!r} and {names[1]!r} have different alerts, and Sloth has one catalog for all\n"
            "give both the same alerts.burn, or write --format prometheus"
        )
    return next(iter(first), ())


def _period_s(policy: Policy) -> float:
    """Return the period of a run: the window that most objectives have, but longer than those of all alerts."""
    windows = [one.window_s for one in burn.judged(policy)] or [30 * 86_400.0]
    longest = max((one.long_s for one in _burns(policy)), default=0)
    common = max(windows, key=windows.count)
    return common if common > longest else 2.0 * longest


FORMAT = Format("sloth", "a file for Sloth (prometheus/v1)", ".yaml", render)
WINDOWS_FORMAT = Format(
    "sloth-windows", "the windows of the alerts, for Sloth's --slo-period-windows-path", ".yaml", render_windows
)
