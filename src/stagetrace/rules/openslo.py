"""The policy as OpenSLO v1: each objective an SLO, each burn alert an AlertPolicy with its AlertCondition.

An SLO's `ratioMetric` counts by the counter of judged requests, in PromQL: `spec.query` of `good` and `total`. What the
standard has no field for stands beside the query of `good`, as `spec.objective`, in the words of a policy file; what
concerns all objectives in the `connectionDetails` of the DataSource `stagetrace`. Each thing is said once, so that an
editor of the standard's fields changes the policy that `openslo_read` reads. Only where objectives have burn alerts of
their own, the DataSource has those of all others too: an objective without its own is one whose SLO has these.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.policy import policy_file, quantities
from stagetrace.policy.policy_keys import burns
from stagetrace.rules import base, burn
from stagetrace.rules.base import Format, RulesError, RulesOptions, yaml_of
from stagetrace.rules.prometheus import comment
from stagetrace.rules.promql import labels, service_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.policy.alert_options import AlertOptions, BurnAlert
    from stagetrace.policy.objective import Calendar, Objective
    from stagetrace.policy.policy import Policy

Document = dict[str, Any]
API: Final = "openslo/v1"
OURS: Final = "stagetrace"  # the type of our metric source, and the name of its DataSource
ANY_SERVICE: Final = "any-service"  # of an objective that is about all services
NEARLY_ALL: Final = 0.999999999  # stands for 100 %, which OpenSLO does not allow
SHORT_WINDOW: Final = "stagetrace.dev/short-window"
LONG_WINDOW: Final = "stagetrace.dev/long-window"  # where it is no whole number of minutes
URL: Final = "stagetrace.dev/url"
TARGETS: Final = ("webhook", "alertmanager")  # of notifications, where stagetrace posts
_LONGEST_SHOWN: Final = 63  # characters of a displayName
_SAID_ELSEWHERE: Final = ("name", "description", "target", "window")  # in fields of the standard
BURN: Final = "burn"  # of a policy's alerts; as TARGETS, they are in objects of the standard


def render(policy: Policy, options: RulesOptions) -> str:
    """Return the documents: DataSource, services, SLOs, alerts."""
    if options.scale != 1:
        raise RulesError("OpenSLO has no windows below a minute\nremove --scale")
    for one in burn.judged(policy):
        burn.alerts(one, policy.alerts_of(one))  # raises where one could never fire
    return yaml_of(*_documents(policy, options), comment=comment(policy))


def _documents(policy: Policy, options: RulesOptions) -> Iterator[Document]:
    content = policy_file.content_of(policy)
    entries = list(_flat(content["objectives"]))
    names = base.labels((one.name for one in policy.objectives if not one.excludes), "objective")
    alerts = _Alerts(policy)
    rules = list(zip(entries, policy.objectives, strict=True))
    slos = [
        _slo(one, _said(entry, one, names, options), names[one.name], options)
        for entry, one in rules
        if not one.excludes
    ]
    yield _data_source(_excluded(rules, names), _shared(policy, content.get("alerts", {}), alerts))
    for name in dict.fromkeys(slo["spec"]["service"] for slo in slos):
        yield _document("Service", name, {"description": "Any service" if name == ANY_SERVICE else f"Service {name}"})
    for slo, one in zip(slos, (one for one in policy.objectives if not one.excludes), strict=True):
        references = [{"alertPolicyRef": name} for name in alerts.names_of(one)]
        slo["spec"].update({"alertPolicies": references} if references else {})
        yield slo
    yield from alerts.documents


def _document(kind: str, name: str, spec: Document, **metadata: Any) -> Document:
    return {"apiVersion": API, "kind": kind, "metadata": {"name": name, **metadata}, "spec": spec}


def _flat(entries: list[Document]) -> Iterator[Document]:
    """Yield the entries of all rules in order: overrides in front of what they override."""
    for entry in entries:
        yield from entry.get("overrides", ())
        yield {key: value for key, value in entry.items() if key != "overrides"}


def _excluded(rules: list[tuple[Document, Objective]], names: dict[str, str]) -> Iterator[Document]:
    """Yield what is excluded, each with the name of the SLO in front of which it stands."""
    for place, (entry, one) in enumerate(rules):
        if one.excludes:
            following = (other for _, other in rules[place + 1 :] if not other.excludes)
            before = next(({"before": names[other.name]} for other in following), {})
            yield {**before, **_base(one, names), **{key: entry[key] for key in entry if key != "excluded"}}


def _base(one: Objective, names: dict[str, str]) -> Document:
    return {} if one.base is None else {"override_of": names.get(one.base, one.base)}


def _data_source(excluded: Iterator[Document], alerts: Document) -> Document:
    """Return the DataSource: what is excluded, and what all alerts share."""
    details: Document = {"version": 1}
    if rules := list(excluded):
        details["excluded"] = rules
    if alerts:
        details["alerts"] = alerts
    return _document("DataSource", OURS, {"type": OURS, "connectionDetails": details})


def _said(entry: Document, one: Objective, names: dict[str, str], options: RulesOptions) -> Document:
    """Return what the fields of the standard leave unsaid of an objective."""
    # A name that follows from the rest is not given; an empty one stands for it.
    name = {} if names[one.name] == one.name else {"name": entry.get("name", "")}
    said = {key: value for key, value in entry.items() if key not in _SAID_ELSEWHERE}
    if alerts := {key: value for key, value in said.pop("alerts", {}).items() if key != BURN}:
        said["alerts"] = alerts
    if "match" in said:
        said["match"] = dict(said["match"])
        if options.service:
            said["match"].setdefault("service", options.service)
        if said["match"].get("service", ANY_SERVICE) == _service(one, options) != ANY_SERVICE:
            del said["match"]["service"]
    if one.target > NEARLY_ALL:
        said["target"] = quantities.share_text(one.target)
    if one.calendar is None and not shorthand(one.window_s).is_exact:
        said["window"] = quantities.window_text(one.window_s)
    return {**_base(one, names), **name, **said}


def _slo(one: Objective, said: Document, name: str, options: RulesOptions) -> Document:
    own = labels(one, options.service)
    counted = {
        "good": {"query": f'sum({options.requests}{{{own}, sla_verdict="good"}})', "objective": said},
        "total": {"query": f'sum({options.requests}{{{own}, sla_verdict=~"good|breach"}})'},
    }
    ratio = {
        key: {"metricSource": {"metricSourceRef": OURS, "type": OURS, "spec": spec}} for key, spec in counted.items()
    }
    shown = {"displayName": one.name} if one.name != name and len(one.name) <= _LONGEST_SHOWN else {}
    spec: Document = {
        **({"description": one.description} if one.description else {}),
        "service": _service(one, options),
        "indicator": {"metadata": {"name": name}, "spec": {"ratioMetric": {"counter": True, **ratio}}},
        "timeWindow": [time_window(one.window_s, one.calendar)],
        "budgetingMethod": "Occurrences",
        "objectives": [{"target": min(one.target, NEARLY_ALL)}],
    }
    return _document("SLO", name, spec, **shown)


def _service(one: Objective, options: RulesOptions) -> str:
    """Return the service of an SLO: the one that the objective names, as OpenSLO allows its name."""
    return service_name(service_of(one, options.service))


def service_name(service: str) -> str:
    """Return how an SLO names a service; one that is a glob is any."""
    if "*" in service or not service:
        return ANY_SERVICE
    return service if base.is_label(service) else base.label(service, ANY_SERVICE)


def _shared(policy: Policy, said: Document, alerts: _Alerts) -> Document:
    """Return what of the alerts of all objectives no object of the standard says."""
    own = any(one.alerts is not None for one in policy.objectives)
    elsewhere = (*TARGETS, BURN) if alerts.documents else ()
    shared = {key: value for key, value in said.items() if key not in elsewhere}
    return {**shared, **({BURN: burns(policy.alerts.burns)} if own else {})}


class _Alerts:
    """The alert policies of a policy: those of all objectives, and further ones of objectives that have others."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        judging = [one for one in policy.objectives if not one.excludes]
        used = [policy.alerts_of(one) for one in judging] or [policy.alerts]
        self._names: dict[tuple[object, ...], list[str]] = {}
        self.documents: list[Document] = []
        targets = list(_targets(policy.alerts))
        for options in used:
            if _key(options) not in self._names:
                made = list(_alerts(options, targets, len(self._names)))
                self._names[_key(options)] = [one["metadata"]["name"] for one in made if one["kind"] == "AlertPolicy"]
                self.documents += made
        self.documents += targets if self.documents else ()

    def names_of(self, objective: Objective) -> list[str]:
        """Return the names of the alert policies of an objective."""
        return self._names[_key(self._policy.alerts_of(objective))]


def _key(options: AlertOptions) -> tuple[object, ...]:
    """Return what AlertPolicies say of some alerts."""
    return options.burns, options.no_data_s > 0


def _alerts(options: AlertOptions, targets: list[Document], number: int) -> Iterator[Document]:
    for place, one in enumerate(options.burns, 1):
        name = f"burn-{place}-{one.severity}{f'-{number + 1}' if number else ''}"
        policy = {
            "description": f"The error budget burns more than {one.factor:g} times too fast.",
            "alertWhenBreaching": True,
            "alertWhenResolved": True,
            "alertWhenNoData": options.no_data_s > 0,
            "conditions": [{"conditionRef": name}],
            "notificationTargets": [{"targetRef": target["metadata"]["name"]} for target in targets],
        }
        yield _document("AlertPolicy", name, policy)
        yield _condition(name, one)


def _condition(name: str, one: BurnAlert) -> Document:
    long = shorthand(one.long_s)
    annotations = {SHORT_WINDOW: quantities.window_text(one.short_s)}
    if not long.is_exact:
        annotations[LONG_WINDOW] = quantities.window_text(one.long_s)
    condition = {"kind": "burnrate", "op": "gt", "threshold": one.factor, "lookbackWindow": long.text}
    spec = {"severity": one.severity, "condition": condition}
    return _document("AlertCondition", name, spec, annotations=annotations)


def _targets(options: AlertOptions) -> Iterator[Document]:
    """Yield where alerts go; without anything else the Alertmanager that Prometheus is configured with."""
    urls = {"webhook": options.webhook, "alertmanager": options.alertmanager}
    for target, url in urls.items():
        if url:
            yield _document("AlertNotificationTarget", target, {"target": target}, annotations={URL: url})
    if not any(urls.values()):
        description = "The Alertmanager that Prometheus is configured with"
        yield _document(
            "AlertNotificationTarget", "alertmanager", {"description": description, "target": "alertmanager"}
        )


FORMAT = Format("openslo", "OpenSLO v1: SLOs and alert policies, read back without loss", ".yaml", render)


# --- Durations and windows as OpenSLO v1 writes them: `28d`, `1M`; the shortest unit is a minute.

_SHORTHAND: Final = re.compile(r"([1-9]\d*)([mhdwMQY])", re.ASCII)
# A rolling month, quarter and year are as long as OpenSLO's Go SDK has them; the standard leaves it open.
_SECONDS: Final = {
    "m": 60,
    "h": 3_600,
    "d": 86_400,
    "w": 7 * 86_400,
    "M": 30 * 86_400,
    "Q": 90 * 86_400,
    "Y": 365 * 86_400,
}
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60))  # that are written
_CALENDAR: Final = {"1d": "day", "1w": "week", "1M": "month", "1Q": "quarter", "1Y": "year"}
_BEGAN: Final = "2024-01-01 00:00:00"  # a Monday: day, week, month, quarter and year begin
_QUARTERS: Final = (1, 4, 7, 10)


class Shorthand(NamedTuple):
    """A duration as OpenSLO can say it; `is_exact`: it is the one that was meant."""

    text: str
    is_exact: bool


def shorthand(seconds: float) -> Shorthand:
    """Return the nearest duration of whole minutes, one at least."""
    minutes = max(60, round(seconds / 60) * 60)
    unit, size = next((unit, size) for unit, size in _UNITS if minutes % size == 0)
    return Shorthand(f"{minutes // size}{unit}", minutes == seconds)


def nearest_text(window: str) -> str:
    """Return the same for a window as a policy file has it; nothing where it is none."""
    try:
        return shorthand(quantities.window(window).length_s).text
    except ValueError:
        return ""


def seconds_of(text: str) -> int:
    """Return a duration in seconds. Raise ValueError where it is none."""
    found = _SHORTHAND.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:80]!r} is no duration of OpenSLO: write a number and one of {', '.join(_SECONDS)}")
    return int(found.group(1)) * _SECONDS[found.group(2)]


def time_window(window_s: float, calendar: Calendar | None) -> dict[str, Any]:
    """Return an item of `timeWindow`."""
    if calendar is None:
        return {"duration": shorthand(window_s).text, "isRolling": True}
    text = next(text for text, unit in _CALENDAR.items() if unit == calendar.unit)
    began = {"startTime": _BEGAN, "timeZone": calendar.timezone}
    return {"duration": text, "calendar": began, "isRolling": False}


def calendar_of(duration: str, start: str, timezone: str) -> str:
    """Return a window as a policy has it: `month@Europe/Berlin`. Raise ValueError where a policy has no such window."""
    unit = _CALENDAR.get(duration)
    if unit is None:
        has = ", ".join(_CALENDAR)
        raise ValueError(f"a calendar window of {duration[:80]!r} cannot be expressed: write one of {has}")
    try:
        began = datetime.strptime(start, "%Y-%m-%d %H:%M:%S")  # noqa: DTZ007 -- by definition without a time zone
    except ValueError:
        raise ValueError(f"{start[:80]!r} is no time: write it like {_BEGAN}") from None
    if not _begins(unit, began):
        raise ValueError(f"{start!r} is not the beginning of a {unit}: write it like {_BEGAN}")
    return f"{unit}@{timezone}"


def _begins(unit: str, time: datetime) -> bool:
    begins = {
        "day": True,
        "week": time.weekday() == 0,
        "month": time.day == 1,
        "quarter": time.day == 1 and time.month in _QUARTERS,
        "year": time.day == 1 and time.month == 1,
    }
    return begins[unit] and (time.hour, time.minute, time.second) == (0, 0, 0)
