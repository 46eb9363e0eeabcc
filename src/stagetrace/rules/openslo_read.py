"""Read OpenSLO v1: documents that `openslo` has written, and others as far as a policy can express them.

The documents are turned into the nodes of a policy file, which keep their places; `policy.policy_file` reads these.
So both forms have the same rules and messages. What cannot be expressed and would change a verdict is a problem, with
which the file is refused; what else of it is not expressed is a note.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.policy import quantities
from stagetrace.policy.objective import SERVICE_KEY
from stagetrace.policy.policy import Policy
from stagetrace.policy.policy_file import Document, PolicyFileError, document_of
from stagetrace.policy.policy_kinds import nearest
from stagetrace.policy.yaml_nodes import (
    At,
    Mapping,
    Node,
    Problem,
    Problems,
    Scalar,
    Sequence,
    WrongError,
    mapping_of,
    parse_all,
    scalar_of,
)
from stagetrace.rules import openslo_objects
from stagetrace.rules.openslo import ANY_SERVICE, NEARLY_ALL, OURS, calendar_of, nearest_text, seconds_of, service_name
from stagetrace.rules.openslo_indicator import indicator, is_ours
from stagetrace.rules.openslo_objects import Object, Objects, entries_of

if TYPE_CHECKING:
    from stagetrace.rules.openslo_indicator import Indicator

_OVERRIDE_OF: Final = "override_of"
_BEFORE: Final = "before"
_DETAILS: Final = ("version", "excluded", "alerts")
_OF_WINDOW: Final = ("duration", "isRolling", "calendar")
_OF_CALENDAR: Final = ("startTime", "timeZone")


class Found(NamedTuple):
    """The policy of an OpenSLO file; `notes` say in a line each what of the documents it does not express."""

    policy: Policy
    notes: tuple[str, ...]


class Documents(NamedTuple):
    """The same with places in the file; a note's `fix` is its reason."""

    policy: Document
    notes: tuple[Problem, ...]


class _Rule(NamedTuple):
    """An objective, override or exclusion, as an entry of a policy file; `name`: of its SLO."""

    name: str
    node: Mapping
    base: Scalar | None
    service: str = ""


def read(text: str, where: str) -> Found:
    """Read the text of an OpenSLO file; `where` is its name.

    Raises:
        PolicyFileError: with all that is wrong in it, or that a policy cannot express.
    """
    found = documents(text, where)
    policy = Policy(found.policy.objectives, alerts=found.policy.alerts, source=where)
    return Found(policy, tuple(one.text(where) for one in found.notes))


def documents(text: str, where: str) -> Documents:
    """Read it with the place of each thing. Raise PolicyFileError as `read` does."""
    problems = Problems()
    found, notes = None, []
    try:
        objects = Objects(parse_all(text, problems), problems)
        node = _policy_node(objects, problems)
        notes = objects.notes
        if not problems.count:
            found = document_of(node, problems)
    except WrongError as error:
        problems.add(error.problem)
    if found is None or problems.count:
        raise PolicyFileError(where, problems)
    return Documents(found, tuple(sorted(notes)))


def _policy_node(objects: Objects, problems: Problems) -> Mapping:
    """Return the policy as nodes of a policy file."""
    slos = objects.of("SLO")
    ours = _details(objects)
    of_each = [_rules_of(slo, objects) for slo in slos]
    if not slos and not entries_of(ours).get("excluded") and not problems.count:
        problems.add(Problem(At(1, 1), "there is no SLO in the file", "add a document of kind: SLO"))
    own_no_data = any("no_data" in entries_of(rule.node.entries.get("alerts")) for rules in of_each for rule in rules)
    alerts = openslo_objects.alerts(objects, slos, entries_of(ours).get("alerts"), own_no_data=own_no_data)
    rules = [_with_burn(rule, burn) for found, burn in zip(of_each, alerts.of_each, strict=True) for rule in found]
    rules = _with_excluded(rules, ours, problems)
    for one in objects.all:
        if one.kind not in ("Service", "DataSource") or one.name == OURS:
            one.leave_rest()
        elif one.kind == "DataSource":
            one.leaves("spec", one.at, "stagetrace records what it judges, and reads no source")
    at = rules[0].node.at if rules else At(1, 1)
    entries: dict[str, Node] = {"objectives": Sequence(at, _nested(rules, problems))}
    return mapping_of(at, {**entries, **({"alerts": alerts.of_all} if alerts.of_all is not None else {})})


def _with_burn(rule: _Rule, burn: Sequence | None) -> _Rule:
    if burn is None:
        return rule
    alerts = mapping_of(burn.at, {**entries_of(rule.node.entries.get("alerts")), "burn": burn})
    return rule._replace(node=mapping_of(rule.node.at, {**rule.node.entries, "alerts": alerts}))


def _details(objects: Objects) -> Mapping | None:
    """Return the connectionDetails of our DataSource."""
    source = objects.get("DataSource", OURS)
    kind = source.text("spec", "type") if source is not None else None
    if source is None or kind is None or not is_ours(kind):
        return None
    found = source.take("spec", "connectionDetails")
    if not isinstance(found, Mapping):
        return None
    for key, node in found.entries.items():
        if key not in _DETAILS:
            source.wrong(f"spec.connectionDetails.{key}", node.at, "is not known", nearest(key, _DETAILS))
    return found


def _rules_of(slo: Object, objects: Objects) -> list[_Rule]:
    """Return the rules of an SLO: one for each of its objectives."""
    said = indicator(slo, objects)
    method = slo.text("spec", "budgetingMethod")
    if method is not None and method.text != "Occurrences":
        what = f"is {method.text[:80]!r}: stagetrace counts requests, not slices of time"
        slo.wrong("spec.budgetingMethod", method.at, what, "write Occurrences")
    elif method is None:
        slo.leaves("spec.budgetingMethod", slo.at, "it is missing: read as Occurrences")
    about = slo.text("spec", "description")
    common = {**({} if about is None else {"description": about}), **_window(slo, said)}
    listed = slo.take("spec", "objectives")
    if not isinstance(listed, Sequence) or not listed.items:
        slo.wrong("spec.objectives", slo.at if listed is None else listed.at, "is no list", "write - target: 0.99")
        return []
    rules = []
    for place, node in enumerate(listed.items):
        _check_objective(slo, node, place)
        if said is None:
            continue
        entries = _objective(slo, said, node, place)
        is_last = place == len(listed.items) - 1
        name = _name(slo, said, node, place if len(listed.items) > 1 else None)
        rules.append(_rule(slo, name, {**_match(slo, said), **common, **entries}, is_last=is_last, said=said))
    return rules


def _rule(slo: Object, name: Scalar, entries: dict[str, Node], *, said: Indicator, is_last: bool) -> _Rule:
    base = entries.pop(_OVERRIDE_OF, None)
    entries.pop("name", None)
    if name.text:
        entries["name"] = name
    if not said.is_ours or not is_last:
        # SLOs are independent: each counts all of its requests, whatever others do.
        entries["continue"] = scalar_of(name.at, "true")
    if isinstance(base, Scalar):
        entries.pop("match", None)
    service = slo.look("spec", "service")
    own = service.text if isinstance(service, Scalar) else ""
    return _Rule(slo.name, mapping_of(slo.at, entries), base if isinstance(base, Scalar) else None, own)


def _name(slo: Object, said: Indicator, node: Node, place: int | None) -> Scalar:
    """Return the name of an objective: of several, with their `displayName` or number behind it."""
    given = said.entries.get("name")
    metadata = slo.look("metadata", "name")
    own = given if isinstance(given, Scalar) else metadata
    shown = slo.look("metadata", "displayName")
    if isinstance(own, Scalar) and isinstance(shown, Scalar) and said.is_ours and own.text in (shown.text, ""):
        slo.took(shown)
    name = own if isinstance(own, Scalar) else scalar_of(slo.at, slo.name)
    display = entries_of(node).get("displayName")
    if place is None:
        if display is not None:
            slo.leaves("spec.objectives[0].displayName", display.at, "the objective has the name of its SLO")
        return name
    name = name if name.text else scalar_of(slo.at, slo.name)
    ending = display.text if isinstance(display, Scalar) else str(place + 1)
    return scalar_of(name.at, f"{name.text} {ending}")


def _match(slo: Object, said: Indicator) -> dict[str, Node]:
    """Return what an indicator says, its match with the SLO's service."""
    service = slo.text("spec", "service")
    entries = dict(said.entries)
    match = entries.get("match")
    if service is None:
        slo.wrong("spec.service", slo.at, "is missing", f"write the name of the service, or {ANY_SERVICE}")
    elif _OVERRIDE_OF not in entries:
        named = _service_of(match)
        if named is not None:
            if service.text != service_name(named.text):
                what = f"is {service.text[:80]!r}, and the match of its indicator names {named.text[:80]!r}"
                slo.wrong("spec.service", service.at, what, "remove the service from the match")
        elif service.text != ANY_SERVICE:
            entries["match"] = mapping_of(service.at, {**entries_of(match), "service": service})
    return entries


def _service_of(match: Node | None) -> Scalar | None:
    """Return the service that a match names."""
    entries = entries_of(match)
    found = entries.get("service", entries_of(entries.get("attributes")).get(SERVICE_KEY))
    return found if isinstance(found, Scalar) else None


def _objective(slo: Object, said: Indicator, node: Node, place: int) -> dict[str, Node]:
    """Return the target of an objective, and its bound where the indicator is a threshold."""
    if not isinstance(node, Mapping):
        return {}
    field = f"spec.objectives[{place}]"
    found = {**_target(slo, said, node, field)}
    value, operator = node.entries.get("value"), node.entries.get("op")
    if not said.is_threshold:
        for key, one in (("value", value), ("op", operator)):
            if one is not None:
                slo.leaves(f"{field}.{key}", one.at, "a ratio is compared with its target alone")
        return found
    if not isinstance(operator, Scalar) or operator.text != "lte":
        at = node.at if operator is None else operator.at
        slo.wrong(f"{field}.op", at, "is not lte: a request is good within its bound", "write op: lte")
    if not isinstance(value, Scalar) or not isinstance(value.value, (int, float)):
        slo.wrong(f"{field}.value", node.at, "is missing", "write the milliseconds that a request may take")
        return found
    return {**found, "within": scalar_of(value.at, f"{value.text}ms")}


def _check_objective(slo: Object, node: Node, place: int) -> None:
    """Add what a policy cannot express of an objective."""
    if not isinstance(node, Mapping):
        slo.wrong(f"spec.objectives[{place}]", node.at, f"is {node.kind}", "write target: 0.99")
        return
    why = {
        "timeSliceTarget": "stagetrace counts requests, not slices of time",
        "timeSliceWindow": "stagetrace counts requests, not slices of time",
        "indicator": "a composite SLO cannot be expressed",
        "indicatorRef": "a composite SLO cannot be expressed",
        "compositeWeight": "a composite SLO cannot be expressed",
    }
    known = ("displayName", "op", "value", "target", "targetPercent")
    for key, one in node.entries.items():
        if key not in known:
            what = why.get(key, "no such field is known")
            slo.wrong(f"spec.objectives[{place}].{key}", node.places.get(key, one.at), f"cannot be read: {what}")


def _target(slo: Object, said: Indicator, node: Mapping, field: str) -> dict[str, Node]:
    """Return the target as a percentage."""
    target, percent = node.entries.get("target"), node.entries.get("targetPercent")
    given = target if percent is None else percent
    if (target is None) == (percent is None):
        at = node.at if target is None else target.at
        slo.wrong(field, at, f"has {'neither' if target is None else 'both'} target and targetPercent", "write one")
        return {}
    if not isinstance(given, Scalar) or isinstance(given.value, (bool, str)) or given.value is None:
        slo.wrong(field, node.at, "has a target that is no number", "write target: 0.99")
        return {}
    share = given.value / 100 if target is None else given.value
    if not 0 < share < 1:
        slo.wrong(
            field, given.at, f"has the target {given.text[:80]}", "write one between 0 and 1, or percent up to 100"
        )
        return {}
    exact = said.entries.get("target")
    if exact is not None:
        if share != NEARLY_ALL:
            what = f"has the target {given.text[:80]}, and its indicator another one"
            slo.wrong(field, given.at, what, "remove target from spec.objective of the indicator")
        return {}
    text = f"{given.text}%" if target is None else quantities.share_text(share)
    return {"target": scalar_of(given.at, text)}


def _window(slo: Object, said: Indicator | None) -> dict[str, Node]:
    """Return the time window; without one an objective has the default window."""
    listed = slo.take("spec", "timeWindow")
    if listed is None:
        slo.leaves("spec.timeWindow", slo.at, "it is missing: read as 28d")
        return {}
    one = listed.items[0] if isinstance(listed, Sequence) and len(listed.items) == 1 else None
    length = one.entries.get("duration") if isinstance(one, Mapping) else None
    if not isinstance(one, Mapping) or not isinstance(length, Scalar):
        slo.wrong("spec.timeWindow", listed.at, "is no list of one window", "write - duration: 28d")
        return {}
    calendar = one.entries.get("calendar")
    for node, known in ((one, _OF_WINDOW), (calendar, _OF_CALENDAR)):
        for key, value in entries_of(node).items():
            if key not in known:
                slo.wrong(f"spec.timeWindow.{key}", value.at, "is not known", nearest(key, known))
    try:
        text = _window_text(one, length)
    except ValueError as error:
        what, _, fix = str(error).partition(": ")
        slo.wrong("spec.timeWindow", length.at, what, fix)
        return {}
    exact = None if said is None else said.entries.get("window")
    if isinstance(exact, Scalar):
        if nearest_text(exact.text) != length.text:
            slo.wrong("spec.timeWindow", length.at, "is not the window of the indicator", "remove one of the two")
        return {}
    return {"window": scalar_of(length.at, text)}


def _window_text(one: Mapping, length: Scalar) -> str:
    rolling, calendar = one.entries.get("isRolling"), one.entries.get("calendar")
    if calendar is None:
        if isinstance(rolling, Scalar) and rolling.value is False:
            raise ValueError("a window that is not rolling has no calendar: write isRolling: true, or a calendar")
        return quantities.window_text(seconds_of(length.text))
    if isinstance(rolling, Scalar) and rolling.value is True:
        raise ValueError("a rolling window has a calendar: remove one of the two")
    start, zone = (entries_of(calendar).get(key) for key in _OF_CALENDAR)
    if isinstance(start, Scalar) and isinstance(zone, Scalar):
        return calendar_of(length.text, start.text, zone.text)
    raise ValueError("the calendar has no startTime or timeZone: write both")


def _with_excluded(rules: list[_Rule], ours: Mapping | None, problems: Problems) -> list[_Rule]:
    """Return all rules in order: what our DataSource excludes stands before the objectives that it names."""
    listed = entries_of(ours).get("excluded")
    found = list(rules)
    for node in listed.items if isinstance(listed, Sequence) else ():
        if not isinstance(node, Mapping):
            problems.add(Problem(node.at, f"what is excluded is {node.kind}", "write match: and a route"))
            continue
        entries = dict(node.entries)
        before, base = entries.pop(_BEFORE, None), entries.pop(_OVERRIDE_OF, None)
        entries["excluded"] = scalar_of(node.at, "true")
        rule = _Rule("", mapping_of(node.at, entries), base if isinstance(base, Scalar) else None)
        places = [place for place, one in enumerate(found) if isinstance(before, Scalar) and one.name == before.text]
        if before is not None and not places:
            problems.add(Problem(before.at, "no SLO has this name", "write that of an SLO, or remove before:"))
        found.insert(places[0] if places else len(found), rule)
    return found


def _nested(rules: list[_Rule], problems: Problems) -> list[Node]:
    """Return the objectives of a policy file, with the overrides that stand in front of each."""
    found: list[Node] = []
    waiting: list[_Rule] = []
    for rule in rules:
        if rule.base is not None:
            waiting.append(rule)
            continue
        own = [one for one in waiting if one.base is not None and one.base.text == rule.name]
        for one in own:
            if one.service and one.service != rule.service:
                what = f"the SLO {one.name} overrides {rule.name}, and is about another service"
                problems.add(Problem(one.node.at, what, f"write service: {rule.service}"))
        waiting = [one for one in waiting if one not in own]
        entries = dict(rule.node.entries)
        if own:
            entries["overrides"] = Sequence(own[0].node.at, [one.node for one in own])
        found.append(mapping_of(rule.node.at, entries))
    for one in waiting:
        at = one.node.at if one.base is None else one.base.at
        problems.add(Problem(at, "no later SLO has the name that this one overrides", "put that SLO behind it"))
    return found
