"""The alerts of an OpenSLO file, as a policy file has them: one AlertPolicy for each burn rate of some SLOs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.rules.openslo import BURN, LONG_WINDOW, SHORT_WINDOW, TARGETS, URL
from stagetrace.rules.openslo_windows import seconds_of, shorthand
from stagetrace.sla import quantities
from stagetrace.sla.yaml_nodes import Mapping, Node, Scalar, Sequence, mapping_of, scalar_of

if TYPE_CHECKING:
    from collections.abc import Mapping as AnyMapping

    from stagetrace.rules.openslo_objects import Object, Objects

_NO_TIME: Final = ("0m", "0h", "0s")


class Alerts(NamedTuple):
    """The alerts of a policy file, None for the default ones; of each SLO the `burn` of its own, if it has any."""

    of_all: Mapping | None
    of_each: list[Sequence | None]


def alerts(objects: Objects, slos: list[Object], shared: Mapping | None, *, own_no_data: bool) -> Alerts:
    """Return the alerts of SLOs; `shared`: what our DataSource says of them; whether SLOs say `no_data` themselves.

    If all SLOs have the same AlertPolicies, these are for all, unless the DataSource says which ones are.
    """
    policies_of = [_policies_of(objects, slo) for slo in slos]
    policies = list(dict.fromkeys(one for found in policies_of for one in found))
    for policy in objects.of("AlertPolicy"):
        if slos and policy not in policies:
            policy.wrong("spec", policy.at, "is of no SLO of the file", "name it in spec.alertPolicies, or remove it")
    policies = policies if slos else objects.of("AlertPolicy")
    entries: dict[str, Node] = dict(shared.entries) if shared is not None else {}
    for key in TARGETS:
        if key in entries and policies:
            policies[0].wrong(key, entries[key].at, "stands in the DataSource, too", "remove it there")
    has_no_data = None if own_no_data else "no_data" in entries
    burns: dict[Object, Node] = {}
    for policy in policies:
        burn = _burn(objects, policy)
        if burn is not None:
            burns[policy] = burn
        entries.update(_targets(objects, policy))
        _flags(policy, has_no_data)
    own: list[Sequence | None] = [None] * len(slos)
    if BURN in entries or any(found != policies_of[0] for found in policies_of):
        own = [_burns(slo, found, burns) for slo, found in zip(slos, policies_of, strict=True)]
    elif burns:
        entries[BURN] = Sequence(next(iter(burns.values())).at, list(burns.values()))
    return Alerts(mapping_of(next(iter(entries.values())).at, entries) if entries else None, own)


def _burns(slo: Object, policies: list[Object], burns: AnyMapping[Object, Node]) -> Sequence:
    listed = slo.look("spec", "alertPolicies")
    return Sequence(slo.at if listed is None else listed.at, [burns[one] for one in policies if one in burns])


def _policies_of(objects: Objects, slo: Object) -> list[Object]:
    listed = slo.take("spec", "alertPolicies")
    if listed is None:
        return []
    if not isinstance(listed, Sequence):
        slo.wrong("spec.alertPolicies", listed.at, f"is {listed.kind}", "write a list")
        return []
    found = (objects.referred("AlertPolicy", slo, node, "alertPolicyRef") for node in listed.items)
    return [one for one in found if one is not None]


def _burn(objects: Objects, policy: Object) -> Mapping | None:
    """Return an item of `alerts.burn`; None, with a problem, where it cannot be one."""
    listed = policy.take("spec", "conditions")
    if not isinstance(listed, Sequence) or len(listed.items) != 1:
        at = policy.at if listed is None else listed.at
        policy.wrong("spec.conditions", at, "is no list of one condition", "write - conditionRef: and a name")
        return None
    condition = objects.referred("AlertCondition", policy, listed.items[0], "conditionRef")
    return None if condition is None else _condition(condition)


def _condition(one: Object) -> Mapping | None:
    kind, operator = one.text("spec", "condition", "kind"), one.text("spec", "condition", "op")
    if kind is not None and kind.text != "burnrate":
        one.wrong("spec.condition.kind", kind.at, f"is {kind.text[:80]!r}", "write burnrate")
    if operator is None or operator.text not in ("gt", "gte"):
        at = one.at if operator is None else operator.at
        shown = "is missing" if operator is None else f"is {operator.text[:80]!r}, and only a high burn rate alerts"
        one.wrong("spec.condition.op", at, shown, "write gt")
    elif operator.text == "gte":
        one.leaves("spec.condition.op", operator.at, "gte: an alert fires above its threshold, not at it")
    after = one.text("spec", "condition", "alertAfter")
    if after is not None and after.text not in _NO_TIME:
        one.leaves("spec.condition.alertAfter", after.at, "an alert fires at once; its short window ends it")
    threshold, severity = one.text("spec", "condition", "threshold"), one.text("spec", "severity")
    windows = _windows(one)
    if threshold is None or severity is None or windows is None:
        for field, found in (("spec.condition.threshold", threshold), ("spec.severity", severity)):
            if found is None:
                one.wrong(field, one.at, "is missing", "write it")
        return None
    return mapping_of(one.at, {"factor": threshold, **windows, "severity": severity})


def _windows(one: Object) -> dict[str, Node] | None:
    """Return the long and the short window; a condition of others has one, which is both."""
    lookback = one.text("spec", "condition", "lookbackWindow")
    if lookback is None:
        one.wrong("spec.condition.lookbackWindow", one.at, "is missing", "write it like 1h")
        return None
    try:
        seconds = seconds_of(lookback.text)
    except ValueError as error:
        what, _, fix = str(error).partition(": ")
        one.wrong("spec.condition.lookbackWindow", lookback.at, what, fix)
        return None
    long: Node = scalar_of(lookback.at, quantities.window_text(seconds))
    exact = one.text("metadata", "annotations", LONG_WINDOW)
    if exact is not None:
        if _shorthand(exact.text) != shorthand(seconds).text:
            one.wrong(LONG_WINDOW, exact.at, f"is not the lookbackWindow, {lookback.text}", "remove the annotation")
        long = exact
    short = one.text("metadata", "annotations", SHORT_WINDOW)
    return {"long": long, "short": long if short is None else short}


def _shorthand(window: str) -> str:
    try:
        return shorthand(quantities.window(window).length_s).text
    except ValueError:
        return ""


def _targets(objects: Objects, policy: Object) -> dict[str, Node]:
    """Return where an AlertPolicy sends its alerts, as far as stagetrace sends them there."""
    listed = policy.take("spec", "notificationTargets")
    if not isinstance(listed, Sequence):
        return {}
    found: dict[str, Node] = {}
    for node in listed.items:
        target = objects.referred("AlertNotificationTarget", policy, node, "targetRef")
        kind = None if target is None else target.text("spec", "target")
        if target is None or kind is None:
            continue
        target.take("spec", "description")
        url = target.text("metadata", "annotations", URL)
        if kind.text in TARGETS and url is not None:
            found[kind.text] = url
        elif kind.text != "alertmanager":
            why = f"{kind.text[:80]}: stagetrace posts to a webhook or an Alertmanager, which can notify others"
            target.leaves("spec.target", kind.at, why)
    return found


def _flags(policy: Object, has_no_data: bool | None) -> None:
    """Take when an AlertPolicy alerts; what stagetrace does otherwise is left. None: objectives say it themselves."""
    policy.take("spec", "description")
    does = {"alertWhenBreaching": True, "alertWhenResolved": True, "alertWhenNoData": has_no_data}
    for field, value in does.items():
        found = policy.text("spec", field)
        if value is not None and isinstance(found, Scalar) and found.value is not value:
            fix = ": write alerts.no_data" if field == "alertWhenNoData" and not has_no_data else ""
            policy.leaves(f"spec.{field}", found.at, f"it is {str(value).lower()} here{fix}")
