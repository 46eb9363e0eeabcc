"""Policies as files: objectives and alerts are read by the keys that `policy_keys` declares, and written likewise."""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from stagetrace.errors import PolicyError
from stagetrace.policy import yaml_nodes
from stagetrace.policy.alert_options import AlertOptions, changed
from stagetrace.policy.objective import BOUNDS, EXCLUDED, IN_NAME, NEVER_NS, SERVICE_KEY, Condition, Objective
from stagetrace.policy.policy_keys import ALERTS, OBJECTIVE, OF_EXCLUDED, OVERRIDE, PERCENTILES, POLICY, SHORT_KEYS
from stagetrace.policy.policy_kinds import CONDITIONS, Keys, changes, fields, nearest, place
from stagetrace.policy.quantities import duration_ns
from stagetrace.policy.yaml_nodes import At, Mapping, Node, Problem, Problems, Scalar, Sequence, WrongError

if TYPE_CHECKING:
    from collections.abc import Mapping as AnyMapping

MOST_BYTES: Final = 4 << 20
MOST_OBJECTIVES: Final = 10_000
_OPENSLO: Final = re.compile(r"""^(?:\{\s*)?["']?apiVersion["']?\s*:\s*["']?openslo""", re.MULTILINE)
_IN_NAMES: Final = {**{key: key for key in IN_NAME}, **dict.fromkeys(PERCENTILES, "within")}
_NONE: Final = Objective("", None, "*", 0)
_OTHERS: Final = ("target", "window", "disconnect", "errors", "description", "stages", "segments", "deadline", "warmup")


class PolicyFileError(PolicyError):
    """Say what is wrong in a policy file: the first problem, and how many more there are."""

    def __init__(self, where: str, problems: Problems) -> None:
        first, *others = sorted(problems.found)
        lines = [f"cannot read the policy {first._replace(fix='').text(where)}", first.fix]
        count = len(others) + problems.more
        if count:
            lines.append(f"{count} more {'is' if count == 1 else 'are'} wrong: stagetrace sla check {where}")
        super().__init__("\n".join(filter(None, lines)), problem=first.text(where))
        self.where = where
        self.problems = (first, *others)
        self.more = problems.more


class Document(NamedTuple):
    """What a policy file says. `places[i]` has the places of the keys of objective i, and its own under ""."""

    objectives: tuple[Objective, ...]
    alerts: AlertOptions
    places: tuple[AnyMapping[str, At], ...]
    alert_places: AnyMapping[str, At]


class _Content(Protocol):
    """What can be written as a file: a Policy, for one."""

    @property
    def objectives(self) -> tuple[Objective, ...]: ...
    @property
    def alerts(self) -> AlertOptions: ...


def content(path: str) -> bytes:
    """Return the bytes of a policy file, which may be a link. Raise PolicyError where it cannot be read."""
    try:
        # A pipe without a writer would hang the service.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
        with os.fdopen(descriptor, "rb") as file:
            found = file.read(MOST_BYTES + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        fix = "name a file that this process can read"
        raise PolicyError(f"cannot read the policy {path}: {why}\n{fix}", problem=f"{path}: {why}") from None
    if found is None or len(found) > MOST_BYTES:
        why = "it is no file" if found is None else f"the file is larger than {MOST_BYTES >> 20} MiB"
        raise PolicyError(f"cannot read the policy {path}: {why}\nname a policy file", problem=f"{path}: {why}")
    return found


def decoded(data: bytes, where: str) -> str:
    """Return the text of a policy file. Raise PolicyFileError where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = yaml_nodes.place_of(data[: error.start].decode("utf-8", "replace"), error.start)
        problems = Problems()
        problems.add(Problem(at, f"the byte 0x{data[error.start]:02x} is not UTF-8", "store the file as UTF-8"))
        raise PolicyFileError(where, problems) from None


def is_openslo(text: str) -> bool:
    """Return whether a text looks like documents of OpenSLO."""
    return _OPENSLO.search(text) is not None


def document(text: str, where: str) -> Document:
    """Read a policy; `where` is the name of its file in messages.

    Raises:
        PolicyFileError: with all that is wrong in it.
    """
    if is_openslo(text):
        what = "it is an OpenSLO file, which commands read, and a service does not"
        fix = f"stagetrace sla rules --policy {where} --format policy --output sla.yaml"
        raise PolicyError(f"cannot read the policy {where}: {what}\nconvert it: {fix}", problem=f"{where}: {what}")
    problems = Problems()
    found = None
    try:
        found = document_of(yaml_nodes.parse(text, problems), problems)
    except WrongError as error:
        problems.add(error.problem)
    if found is None or problems.found:
        raise PolicyFileError(where, problems)
    return found


def document_of(node: Node | None, problems: Problems) -> Document:
    """Read a policy out of nodes; what is wrong is added to `problems`, or raised as WrongError."""
    fix = "write objectives: and below it - within: 250ms"
    if node is None:
        raise WrongError(At(1, 1), "the file is empty", fix)
    found = fields(node, "a policy", POLICY, problems)
    listed = found.get("objectives")
    if not isinstance(listed, Sequence) or not listed.items:
        raise WrongError(node.at if listed is None else listed.at, "a policy without a list of objectives", fix)
    of_all = (Condition(SERVICE_KEY, found["service"]),) if "service" in found else ()
    read = _Objectives(of_all, found.get("alerts", AlertOptions()), problems)
    for one in listed.items:
        read.add(one)
    alerts = node.entries.get("alerts") if isinstance(node, Mapping) else None
    places = alerts.places if isinstance(alerts, Mapping) else {}
    return Document(tuple(read.objectives), read.alerts, tuple(read.places), places)


class _Objectives:
    """Collects the objectives of a file."""

    def __init__(self, of_all: tuple[Condition, ...], alerts: AlertOptions, problems: Problems) -> None:
        self.objectives: list[Objective] = []
        self.places: list[AnyMapping[str, At]] = []
        self.alerts = alerts  # of all
        self._names: dict[str, At] = {}
        self._of_all = of_all
        self._problems = problems

    def add(self, node: Node) -> None:
        """Add an objective, behind its overrides."""
        before = self._problems.count
        try:
            found = fields(node, "an objective", OBJECTIVE, self._problems)
            _check(node, found, self._problems, is_override=False)
            base = self._objective(node, found) if self._problems.count == before else None
        except WrongError as error:
            self._problems.add(error.problem)
            return
        for one in found.get("overrides", ()):
            try:
                self._add_override(base, one)
            except WrongError as error:  # noqa: PERF203 -- the next one is read all the same
                self._problems.add(error.problem)
        if base is not None:
            self._append(base, node)

    def _add_override(self, base: Objective | None, node: Node) -> None:
        """Add an override of an objective; without one, since it is wrong, only look for what is wrong in it."""
        before = self._problems.count
        found = fields(node, "an override", OVERRIDE, self._problems)
        _check(node, found, self._problems, is_override=True)
        if base is None or self._problems.count > before:
            return
        bare = Objective("", base.method, base.route, NEVER_NS, excludes=True, continues=base.continues)
        made = replace(
            bare if found.get("excluded") else base,
            name=found.get("name", f"{base.name}{_conditions_text(found['when'])}"),
            conditions=(*base.conditions, *found["when"]),
            base=base.name,
            **{"description": "", **self._changes(OVERRIDE, found, base.alerts)},
        )
        self._append(made, node)

    def _objective(self, node: Node, found: dict[str, Any]) -> Objective:
        method, route, conditions = found.get("match", (None, "*", ()))
        if self._of_all and any(one.key == SERVICE_KEY for one in conditions):
            raise WrongError(place(node, "match"), "service stands at the top of the file too", "remove one of the two")
        said = {"within_ns": NEVER_NS, **self._changes(OBJECTIVE, found, None)}
        said.update(excludes=found.get("excluded", False), continues=found.get("continue", False))
        name = found.get("name") or default_name(method, route, conditions, {**found, **_texts(node)})
        return Objective(name, method, route, conditions=(*self._of_all, *conditions), **said)

    def _changes(self, keys: Keys, found: dict[str, Any], alerts: AlertOptions | None) -> dict[str, Any]:
        """Return the fields of an objective that the keys of a file set; `alerts` are its own before."""
        made = changes(keys, found)
        if "alerts" in found:
            alerts = changed(alerts or self.alerts, found["alerts"])
            made["alerts"] = alerts if alerts != self.alerts else None
        return made

    def _append(self, objective: Objective, node: Node) -> None:
        if len(self.objectives) >= MOST_OBJECTIVES:
            what = f"there are more than {MOST_OBJECTIVES} objectives and overrides"
            raise WrongError(node.at, what, "write fewer, use globs")
        if objective.name in self._names:
            first = self._names[objective.name].line
            what = f"the name {objective.name[:200]!r} is taken by the objective in line {first}"
            self._problems.add(Problem(place(node, "name"), what, "give it a name of its own"))
        elif ";" in objective.name:
            self._problems.add(Problem(node.at, "its name, made of its match, has a semicolon", "give it a name"))
        self._names.setdefault(objective.name, node.at)
        self.objectives.append(objective)
        self.places.append({"": node.at, **node.places} if isinstance(node, Mapping) else {"": node.at})


def _means_within(key: str) -> bool:
    """Return whether an unknown key is `within` misspelt, which is a problem already."""
    return key not in OBJECTIVE and nearest(key, OBJECTIVE) == "write within"


def _check(node: Node, found: dict[str, Any], problems: Problems, *, is_override: bool) -> None:
    """Add to the problems what is missing of an objective or an override, or cannot stand together."""
    entries = node.entries if isinstance(node, Mapping) else {}
    bounds = [key for key in ("within", *PERCENTILES) if key in entries]

    def wrong(key: str, what: str, fix: str) -> None:
        problems.add(Problem(place(node, key), what, fix))

    if is_override and "when" not in entries:
        wrong("", "an override without when", "write when: {tenant.tier: gold}")
    if found.get("excluded"):
        for key in entries:
            if key not in OF_EXCLUDED:
                wrong(key, f"{key} says nothing of what is excluded", "remove one of the two")
    elif not bounds and not is_override and (problems.is_full or not any(map(_means_within, entries))):
        wrong("", "an objective without within", "write within: 250ms, or excluded: true")
    elif len(bounds) > 1:
        fix = "write two objectives, of which the first has continue: true"
        wrong(bounds[1], f"{bounds[1]} stands beside {bounds[0]}", fix)
    elif "target" in entries and bounds and bounds[0] != "within":
        wrong("target", f"target stands beside {bounds[0]}, which is one", "remove it")


def default_name(method: str | None, route: str, conditions: tuple[Condition, ...], said: dict[str, Any]) -> str:
    """Return the name of an objective that is given none, by the texts of its keys: what it is inline, if it can be."""
    match = f"{method} {route}" if method else route
    bounds = [EXCLUDED] if said.get("excluded") else [f"{key} {said[key]}" for key in IN_NAME if key in said]
    return " ".join([match + _conditions_text(conditions), *bounds])


def _texts(node: Node) -> dict[str, str]:
    """Return the values in a name as they are written, without spaces; a percentile is a `within`."""
    entries = node.entries if isinstance(node, Mapping) else {}
    texts = {key: one.text for key, one in entries.items() if key in _IN_NAMES and isinstance(one, Scalar)}
    return {_IN_NAMES[key]: text.replace(" ", "") for key, text in texts.items()}


def _conditions_text(conditions: tuple[Condition, ...]) -> str:
    return f"[{', '.join(f'{key}={glob}' for key, glob in conditions)}]" if conditions else ""


def write(policy: _Content) -> str:
    """Return a policy as YAML that reads back as the same policy.

    Raises:
        PolicyError: where it has what no file can say.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes what a reader of YAML 1.2 would take for something else than a text."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = None if isinstance(yaml_nodes.resolved(value), str) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    width = 1 << 20  # lines are not folded
    written = yaml.dump(content_of(policy), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=width)
    if len(written.encode()) <= MOST_BYTES:
        read = document(written, "the policy")
        if (read.objectives, read.alerts) == (policy.objectives, policy.alerts):
            return str(written)
    raise PolicyError("the policy cannot be written as a file: read back, it would not be the same")


def content_of(policy: _Content) -> dict[str, Any]:
    """Return what a file says, as mappings, lists and texts. Raise PolicyError where no file can say it."""
    found = []
    overrides: list[Objective] = []
    for one in policy.objectives:
        if one.base is not None:
            overrides.append(one)
            continue
        made = _content(one, policy.alerts)
        if overrides:
            made["overrides"] = [_override_content(override, one, policy.alerts) for override in overrides]
            overrides = []
        found.append({**made, **({"continue": True} if one.continues else {})})
    if overrides:
        raise PolicyError(f"the policy cannot be written: the override {overrides[0].name!r} stands behind its base")
    alerts = _alerts(policy.alerts, AlertOptions())
    return {"version": 1, "objectives": found, **({"alerts": alerts} if alerts else {})}


def _content(one: Objective, alerts: AlertOptions) -> dict[str, Any]:
    if one.problem is not None:
        raise PolicyError(f"the policy cannot be written: {one.problem}")
    match: dict[str, Any] = {"route": f"{one.method} {one.route}" if one.method else one.route}
    conditions = list(one.conditions)
    for short, key in SHORT_KEYS.items():
        if conditions and conditions[0].key == key:
            match[short] = conditions.pop(0).glob
    if conditions:
        match["attributes"] = _mapping(conditions)
    made = {"match": match, **_changes(one, _NONE, alerts), **({"excluded": True} if one.excludes else {})}
    # A name that follows from the rest may have characters that a given one may not.
    name = default_name(one.method, one.route, one.conditions, made)
    return made if one.name == name else {"name": one.name, **made}


def _override_content(one: Objective, base: Objective, alerts: AlertOptions) -> dict[str, Any]:
    count = len(base.conditions)
    of_base = (base.name, base.conditions, base.method, base.route)
    if (one.base, one.conditions[:count], one.method, one.route) != of_base:
        raise PolicyError(f"the policy cannot be written: {one.name!r} is no override of {base.name!r}, behind it")
    made: dict[str, Any] = {"when": _mapping(one.conditions[count:]), "name": one.name}
    return {**made, "excluded": True} if one.excludes else {**made, **_changes(one, base, alerts)}


def _changes(one: Objective, base: Objective, of_all: AlertOptions) -> dict[str, Any]:
    """Return what an objective says otherwise than another one. A description is no override's by default."""
    made = {}
    for name in (*BOUNDS, *_OTHERS):
        key = OBJECTIVE[name]
        values, others = ([getattr(each, field) for field in key.sets] for each in (one, base))
        if name == "description":
            others = [""]
        if values != others and values[0] is not None and not (one.excludes and name in BOUNDS):
            made[name] = _spelt(one.name, name, values[0]) if name in BOUNDS else key.kind.write(*values)
    alerts = {} if one.excludes else _alerts(one.alerts or of_all, base.alerts or of_all)
    return {**made, **({"alerts": alerts} if alerts else {})}


def _spelt(name: str, key: str, nanoseconds: int) -> str:
    """Return a duration as it is in the name that follows from it, if it is."""
    found = re.search(rf" {key} (\S+)", name)
    with suppress(ValueError):
        if found is not None and duration_ns(found[1]) == nanoseconds:
            return found[1]
    return str(OBJECTIVE[key].kind.write(nanoseconds))


def _mapping(conditions: list[Condition] | tuple[Condition, ...]) -> dict[str, str]:
    made: dict[str, str] = CONDITIONS.write(conditions)
    if len(made) < len(conditions):
        raise PolicyError("the policy cannot be written: two conditions of one objective have the same key")
    return made


def _alerts(options: AlertOptions, base: AlertOptions) -> dict[str, Any]:
    """Return what alerts have otherwise than others; a file can add to labels and URLs, and take none away."""
    made = {}
    for name, key in ALERTS.items():
        value, other = (getattr(each, key.sets[0]) for each in (options, base))
        if name == "labels":
            value, other = tuple(one for one in value if one not in other), ()
        if value not in (other, ""):
            made[name] = key.kind.write(value)
    return made
