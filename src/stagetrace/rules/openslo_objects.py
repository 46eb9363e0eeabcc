"""The objects of an OpenSLO file by kind and name, and what of them was read: the rest is reported, never dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.policy import quantities
from stagetrace.policy.policy_kinds import nearest
from stagetrace.policy.yaml_nodes import At, Mapping, Node, Problem, Problems, Scalar, Sequence, mapping_of, scalar_of
from stagetrace.rules.openslo import (
    API,
    BURN,
    LONG_WINDOW,
    SHORT_WINDOW,
    TARGETS,
    URL,
    nearest_text,
    seconds_of,
    shorthand,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Mapping as AnyMapping

KINDS: Final = ("DataSource", "SLO", "SLI", "AlertPolicy", "AlertCondition", "AlertNotificationTarget", "Service")


class Object:
    """One object, in a document of its own or within another one. What is not taken of it is `left`."""

    def __init__(self, kind: str, node: Mapping, problems: Problems, notes: list[Problem]) -> None:
        self.kind = kind
        self.node = node
        self._problems = problems
        self._notes = notes
        self._taken: set[int] = set()
        name = self.take("metadata", "name")
        self.name = name.text if isinstance(name, Scalar) else ""
        if not self.name:
            self.wrong("metadata.name", node.at, "is missing", "write the name of the object")

    @property
    def at(self) -> At:
        """Return where it begins."""
        return self.node.at

    def take(self, *path: str) -> Node | None:
        """Return what stands under a path of keys, all of it: it counts as read."""
        found = self.look(*path)
        if found is not None:
            self.took(found)
        return found

    def look(self, *path: str) -> Node | None:
        """Return what stands under a path of keys; what is needed of it is to be taken."""
        node: Node | None = self.node
        for key in path:
            node = entries_of(node).get(key)
        return node

    def took(self, node: Node) -> None:
        """Count a node as read."""
        self._taken.add(id(node))

    def text(self, *path: str) -> Scalar | None:
        """Return the text or number under a path; None where there is none, which is a problem if it is a list."""
        found = self.take(*path)
        if found is None or (isinstance(found, Scalar) and found.value is None):
            return None
        if not isinstance(found, Scalar):
            self.wrong(".".join(path), found.at, f"is {found.kind}", "write a text")
            return None
        return found

    def wrong(self, field: str, at: At, what: str, fix: str = "") -> None:
        """Add a problem with a field."""
        self._problems.add(Problem(at, f"{self}: {field} {what}", fix))

    def leaves(self, field: str, at: At, why: str) -> None:
        """Add a note on a field that a policy cannot express, and that changes no verdict."""
        self._notes.append(Problem(at, f"{self}: {field} is not expressed", why))

    def __str__(self) -> str:
        return f"{self.kind} {self.name[:80]}".rstrip()

    def leave_rest(self) -> None:
        """Add a note on each field that was not read."""
        for key, node in self.node.entries.items():
            if key not in ("apiVersion", "kind"):
                for path, at in self._left(key, node):
                    self.leaves(path, at, "stagetrace has nothing that it would change")

    def _left(self, path: str, node: Node) -> Iterator[tuple[str, At]]:
        inside = _inside(node)
        if id(node) in self._taken or (not isinstance(node, Scalar) and not inside):
            return
        if not self._touched(node):
            yield path, node.at
            return
        for ending, value in inside.items():
            yield from self._left(f"{path}{ending}", value)

    def _touched(self, node: Node) -> bool:
        """Return whether anything within a node was read."""
        return id(node) in self._taken or any(map(self._touched, _inside(node).values()))


def entries_of(node: Node | None) -> dict[str, Node]:
    """Return the entries of a mapping; of anything else none."""
    return dict(node.entries) if isinstance(node, Mapping) else {}


def _inside(node: Node) -> dict[str, Node]:
    """Return what a node holds, by the end of its path."""
    if isinstance(node, Mapping):
        return {f".{key}": value for key, value in node.entries.items()}
    return {f"[{place}]": value for place, value in enumerate(node.items)} if isinstance(node, Sequence) else {}


class Objects:
    """The objects of a file; `notes` are on what a policy cannot express of them."""

    def __init__(self, documents: list[Node], problems: Problems) -> None:
        self.notes: list[Problem] = []
        self._problems = problems
        self.all: list[Object] = []
        self._named: dict[tuple[str, str], Object] = {}
        for node in documents:
            self._add(node)

    def _add(self, node: Node) -> None:
        if not isinstance(node, Mapping):
            if not isinstance(node, Scalar) or node.value is not None:  # an empty document
                self._problems.add(Problem(node.at, f"a document is {node.kind}", f"write apiVersion: {API}"))
            return
        version, kind = node.entries.get("apiVersion"), node.entries.get("kind")
        if not isinstance(version, Scalar) or version.text != API:
            at = node.at if version is None else version.at
            shown = repr(version.text[:80]) if isinstance(version, Scalar) else "missing"
            self._problems.add(Problem(at, f"apiVersion is {shown}, which is not read", f"write {API}"))
        elif not isinstance(kind, Scalar) or kind.text not in KINDS:
            at = node.at if kind is None else kind.at
            shown = kind.text if isinstance(kind, Scalar) else ""
            self._problems.add(Problem(at, f"kind is {shown[:80]!r}", nearest(shown, KINDS)))
        else:
            self.include(kind.text, node)

    def include(self, kind: str, node: Mapping) -> Object:
        """Add an object, which may stand within another one, and return it."""
        found = Object(kind, node, self._problems, self.notes)
        first = self._named.setdefault((kind, found.name), found)
        if first is not found and found.name:
            found.wrong("metadata.name", found.at, f"is that of the one in line {first.at.line}, too", "rename one")
        self.all.append(found)
        return found

    def of(self, kind: str) -> list[Object]:
        """Return all of a kind, in order."""
        return [one for one in self.all if one.kind == kind]

    def get(self, kind: str, name: str) -> Object | None:
        """Return one by its name."""
        return self._named.get((kind, name))

    def referred(self, kind: str, holder: Object, node: Node, reference: str) -> Object | None:
        """Return the object that a node names by `reference`, or holds itself; None, with a problem, for neither."""
        if not isinstance(node, Mapping):
            holder.wrong(kind, node.at, f"is {node.kind}", f"write {reference}: and a name")
            return None
        name = node.entries.get(reference)
        if name is None:
            return self.include(kind, node)
        for key, value in node.entries.items():
            if key != reference:
                holder.wrong(key, value.at, f"stands beside {reference}", "remove one of the two")
        found = self.get(kind, name.text) if isinstance(name, Scalar) else None
        if found is None:
            shown = name.text[:80] if isinstance(name, Scalar) else name.kind
            holder.wrong(reference, name.at, f"is {shown!r}, and no {kind} of the file has that name", "add it")
        return found


# --- The alerts of an OpenSLO file, as a policy file has them: one AlertPolicy for each burn rate of some SLOs.

_NO_TIME: Final = ("0m", "0h", "0s")


class Alerts(NamedTuple):
    """The alerts of a policy file, None for the default ones; of each SLO the `burn` of its own, if it has any."""

    of_all: Mapping | None
    of_each: list[Sequence | None]


def alerts(objects: Objects, slos: list[Object], shared: Node | None, *, own_no_data: bool) -> Alerts:
    """Return the alerts of SLOs; `shared`: what our DataSource says of them; whether SLOs say `no_data` themselves.

    If all SLOs have the same AlertPolicies, these are for all, unless the DataSource says which ones are.
    """
    policies_of = [_policies_of(objects, slo) for slo in slos]
    policies = list(dict.fromkeys(one for found in policies_of for one in found))
    for policy in objects.of("AlertPolicy"):
        if slos and policy not in policies:
            policy.wrong("spec", policy.at, "is of no SLO of the file", "name it in spec.alertPolicies, or remove it")
    policies = policies if slos else objects.of("AlertPolicy")
    entries = entries_of(shared)
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
        if nearest_text(exact.text) != shorthand(seconds).text:
            one.wrong(LONG_WINDOW, exact.at, f"is not the lookbackWindow, {lookback.text}", "remove the annotation")
        long = exact
    short = one.text("metadata", "annotations", SHORT_WINDOW)
    return {"long": long, "short": long if short is None else short}


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
