"""Read the objectives and alerts of a policy file, with the place of each; docs/objectives.md describes the format.

`policy.schema.json` describes it to editors; a test compares the two.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace.errors import PolicyError
from stagetrace.sla import policy_alerts
from stagetrace.sla import policy_values as values
from stagetrace.sla.alert_options import AlertOptions
from stagetrace.sla.objective import (
    BREACH,
    DEADLINES,
    DEFAULT_MAX_SEGMENTS,
    ERRORS,
    EXCLUDED,
    MODEL_KEY,
    NEVER_NS,
    REPLACE,
    SERVICE_KEY,
    TIGHTEN,
    Condition,
    Deadline,
    Objective,
    is_route,
)
from stagetrace.sla.policy_problem import At, PolicyFileError, Problem, Problems, WrongError
from stagetrace.sla.quantities import share
from stagetrace.sla.yaml_nodes import Mapping, Node, Sequence, parse, place_of

if TYPE_CHECKING:
    from collections.abc import Mapping as AnyMapping

MOST_BYTES: Final = 4 << 20
MOST_OBJECTIVES: Final = 10_000
MOST_SEGMENTS: Final = 1_000
PERCENTILES: Final = ("p50", "p75", "p90", "p95", "p99", "p99.5", "p99.9", "p99.99")  # a bound and its target in one
BOUNDS: Final = ("within", "first_chunk", "per_chunk", "first_token", "per_token")
_IN_NAME: Final = (*BOUNDS, "disconnect")
_OPENSLO: Final = re.compile(r"""^(?:\{\s*)?["']?apiVersion["']?\s*:\s*["']?openslo""", re.MULTILINE)
_OF_EXCLUDED: Final = ("name", "description", "match", "excluded", "when")


class Document(NamedTuple):
    """What a policy file says. `places[i]` has the places of the keys of objective i, and its own under ""."""

    objectives: tuple[Objective, ...]
    alerts: AlertOptions
    places: tuple[AnyMapping[str, At], ...]
    alert_places: AnyMapping[str, At]


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
        node = parse(text, problems)
        found = document_of(node, problems)
    except WrongError as error:
        problems.add(error.problem)
    except ImportError as error:
        raise PolicyError(f"cannot read the policy {where}: PyYAML is missing ({error})\npip install pyyaml") from None
    if found is None or problems.found:
        raise PolicyFileError(where, problems)
    return found


def is_openslo(text: str) -> bool:
    """Return whether a text looks like documents of OpenSLO."""
    return _OPENSLO.search(text) is not None


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
        at = place_of(data[: error.start].decode("utf-8", "replace"), error.start)
        problems = Problems()
        problems.add(Problem(at, f"the byte 0x{data[error.start]:02x} is not UTF-8", "store the file as UTF-8"))
        raise PolicyFileError(where, problems) from None


def document_of(node: Node | None, problems: Problems) -> Document:
    """Read a policy out of nodes; what is wrong is added to `problems`, or raised as WrongError."""
    if node is None:
        raise WrongError(At(1, 1), "the file is empty", "write objectives: and below it - within: 250ms")
    table = {
        "objectives": lambda one, _: one,
        "version": values.whole(1, 1),
        "service": values.text,
        "alerts": policy_alerts.of_all,
    }
    found = values.fields(node, "a policy", table, problems)
    of_all = (Condition(SERVICE_KEY, found["service"]),) if "service" in found else ()
    listed = found.get("objectives")
    if not isinstance(listed, Sequence) or not listed.items:
        at = node.at if listed is None else listed.at
        raise WrongError(at, "a policy without a list of objectives", "write objectives: and below it - within: 250ms")
    alerts = found.get("alerts", AlertOptions())
    read = _Objectives(of_all, alerts, problems)
    for one in listed.items:
        read.add(one)
    places = node.entries["alerts"] if isinstance(node, Mapping) and "alerts" in node.entries else None
    return Document(
        tuple(read.objectives),
        alerts,
        tuple(read.places),
        places.places if isinstance(places, Mapping) else {},
    )


def default_name(one: Objective, texts: AnyMapping[str, Any]) -> str:
    """Return the name of an objective that is given none, by the texts of its keys: what it is inline, if it can be."""
    place = " ".join(filter(None, (one.method, one.route))) + _shown(one.conditions)
    bounds = (f"{key} {texts[key]}" for key in _IN_NAME if key in texts)
    return " ".join([place, EXCLUDED] if texts.get("excluded") else [place, *bounds])


class _Objectives:
    """Collects the objectives of a file."""

    def __init__(self, of_all: tuple[Condition, ...], alerts: AlertOptions, problems: Problems) -> None:
        self.objectives: list[Objective] = []
        self.places: list[AnyMapping[str, At]] = []
        self._names: dict[str, At] = {}
        self._of_all = of_all
        self._alerts = alerts  # of all
        self._problems = problems

    def add(self, node: Node) -> None:
        """Add an objective, behind its overrides."""
        before = self._problems.count
        try:
            found = values.fields(node, "an objective", _OBJECTIVE, self._problems)
            _check(node, found, self._problems, is_override=False)
            base = self._base(node, found) if self._problems.count == before else None
        except WrongError as error:
            self._problems.add(error.problem)
            return
        self._read_overrides(base, found)
        if base is not None:
            self._append(base, node)

    def _base(self, node: Node, found: dict[str, Any]) -> Objective:
        method, route, conditions = found.get("match", (None, "*", ()))
        if self._of_all and any(one.key == SERVICE_KEY for one in conditions):
            at = _place(node, "match")
            raise WrongError(at, "service stands at the top of the file too", "remove one of the two")
        texts = {key: text for key in _IN_NAME if (text := _text(node, key))}
        default = default_name(Objective("", method, route, 0, conditions=conditions), {**found, **texts})
        name = found.get("name", default)
        made = Objective(name, method, route, NEVER_NS, conditions=(*self._of_all, *conditions))
        if found.get("excluded"):
            return replace(made, excludes=True, description=found.get("description", ""))
        return replace(made, **self._changes(made, found), continues=found.get("continue", False))

    def _read_overrides(self, base: Objective | None, found: dict[str, Any]) -> None:
        """Add the overrides of an objective; without one, since it is wrong, only look for what is wrong in them."""
        for one in found.get("overrides", ()):
            before = self._problems.count
            try:
                changed = values.fields(one, "an override", _OVERRIDE, self._problems)
                _check(one, changed, self._problems, is_override=True)
                if base is not None and self._problems.count == before:
                    self._append(self._override(base, changed), one)
            except WrongError as error:
                self._problems.add(error.problem)

    def _override(self, base: Objective, found: dict[str, Any]) -> Objective:
        made = replace(
            base,
            conditions=(*base.conditions, *found["when"]),
            base=base.name,
            description=found.get("description", ""),
        )
        made = replace(made, name=found.get("name", f"{base.name}{_shown(found['when'])}"))
        if found.get("excluded"):
            bare = Objective(made.name, base.method, base.route, NEVER_NS, conditions=made.conditions, base=base.name)
            return replace(bare, excludes=True, description=made.description, continues=base.continues)
        return replace(made, **self._changes(made, found))

    def _changes(self, base: Objective, found: dict[str, Any]) -> dict[str, Any]:
        """Return the fields that the keys of a file give an objective, which has those of `base` before."""
        changes = _changes(found)
        if "alerts" in found:
            alerts = policy_alerts.changed(base.alerts or self._alerts, found["alerts"])
            changes["alerts"] = alerts if alerts != self._alerts else None
        return changes

    def _append(self, objective: Objective, node: Node) -> None:
        at = node.at
        if len(self.objectives) >= MOST_OBJECTIVES:
            raise WrongError(
                at, f"there are more than {MOST_OBJECTIVES} objectives and overrides", "write fewer, use globs"
            )
        if objective.name in self._names:
            first = self._names[objective.name].line
            what = f"the name {objective.name[:200]!r} is taken by the objective in line {first}"
            self._problems.add(Problem(_place(node, "name"), what, "give it a name of its own"))
        elif ";" in objective.name:
            self._problems.add(Problem(at, "its name, made of its match, has a semicolon", "give it a name"))
        self._names.setdefault(objective.name, at)
        self.objectives.append(objective)
        self.places.append({"": at, **node.places} if isinstance(node, Mapping) else {"": at})


def _check(node: Node, found: dict[str, Any], problems: Problems, *, is_override: bool) -> None:
    """Add to the problems what is missing of an objective or an override, or cannot stand together."""
    entries = node.entries if isinstance(node, Mapping) else {}
    bounds = [key for key in ("within", *PERCENTILES) if key in entries]
    if is_override and "when" not in entries:
        problems.add(Problem(node.at, "an override without when", "write when: {tenant.tier: gold}"))
    if found.get("excluded"):
        for key in entries:
            if key not in _OF_EXCLUDED:
                fix = "remove one of the two"
                problems.add(Problem(_place(node, key), f"{key} says nothing of what is excluded", fix))
    elif not bounds and not is_override:
        problems.add(Problem(node.at, "an objective without within", "write within: 250ms, or excluded: true"))
    elif len(bounds) > 1:
        fix = "write two objectives, of which the first has continue: true"
        problems.add(Problem(_place(node, bounds[1]), f"{bounds[1]} stands beside {bounds[0]}", fix))
    elif "target" in entries and bounds and bounds[0] != "within":
        problems.add(Problem(_place(node, "target"), f"target stands beside {bounds[0]}, which is one", "remove it"))


def _place(node: Node, key: str) -> At:
    return node.places.get(key, node.at) if isinstance(node, Mapping) else node.at


def _text(node: Node, key: str) -> str:
    """Return a value as it is written, without spaces; empty where there is none."""
    keys = (key, *PERCENTILES) if key == "within" else (key,)
    entries = node.entries if isinstance(node, Mapping) else {}
    return "".join(str(getattr(entries[one], "text", "")).replace(" ", "") for one in keys if one in entries)


def _shown(conditions: tuple[Condition, ...]) -> str:
    return f"[{', '.join(f'{key}={glob}' for key, glob in conditions)}]" if conditions else ""


def _changes(found: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an objective that the keys of a file give it."""
    changes = {field: found[key] for key, field in _FIELDS.items() if key in found}
    for key in PERCENTILES:
        if key in found:
            changes["within_ns"], changes["target"] = found[key], share(f"{key.removeprefix('p')}%")
    if "window" in found:
        changes["window_s"], changes["calendar"] = found["window"]
    if "segments" in found:
        changes["segment_by"], changes["max_segments"] = found["segments"]
    return changes


def _match(node: Node, problems: Problems) -> tuple[str | None, str, tuple[Condition, ...]]:
    """Return method, route and conditions."""
    table = {
        "route": values.text,
        "rpc": values.rpc,
        "method": values.method,
        "service": values.glob,
        "model": values.glob,
        "attributes": _conditions,
    }
    found = values.fields(node, "a match", table, problems)
    conditions = [Condition(key, found[short]) for short, key in SHORT_KEYS.items() if short in found]
    known = {one.key: short for short, one in zip((one for one in SHORT_KEYS if one in found), conditions, strict=True)}
    for one in found.get("attributes", ()):
        if one.key in known:
            raise WrongError(_place(node, "attributes"), f"{one.key} stands beside {known[one.key]}", "remove one")
        conditions.append(one)
    if "rpc" in found:
        beside = next((key for key in ("route", "method") if key in found), None)
        if beside is not None:
            raise WrongError(_place(node, beside), f"{beside} stands beside rpc", "remove one of the two")
        return None, found["rpc"], tuple(conditions)
    method, route = _route(node, found.get("route", "*"))
    if method is not None and "method" in found:
        raise WrongError(_place(node, "method"), "the route has a method, too", "remove one of the two")
    return found.get("method", method), route, tuple(conditions)


def _route(node: Node, text: str) -> tuple[str | None, str]:
    words = text.split()
    if len(words) == 1 and is_route(words[0]):
        return None, words[0]
    if len(words) == 2 and words[0].isalpha() and is_route(words[1]):  # noqa: PLR2004
        return words[0].upper(), words[1]
    fix = "write [METHOD] ROUTE, such as POST /predict; a route begins with / or *, or is pkg.Service/Method"
    raise WrongError(_value_place(node, "route"), f"{text[:80]!r} is no route", fix)


def _value_place(node: Node, key: str) -> At:
    return node.entries[key].at if isinstance(node, Mapping) else node.at


def _conditions(node: Node, problems: Problems) -> tuple[Condition, ...]:
    def condition(key: str, at: At, one: Node) -> Condition:
        return Condition(values.key_of(key, at), values.glob(one))

    return values.mapping(node, condition, problems, "{tenant.tier: gold}")


def _stages(node: Node, problems: Problems) -> tuple[tuple[str, int], ...]:
    return values.mapping(node, values.stage, problems, "{inference: 150ms}")


def _segments(node: Node, problems: Problems) -> tuple[tuple[str, ...], int]:
    def by(one: Node, problems: Problems) -> tuple[str, ...]:
        keys = values.one_or_several(one, values.key, problems, "[tenant.tier]")
        if len(set(keys)) < len(keys) or len(keys) > values.MOST_KEYS:
            raise WrongError(
                one.at, "the list repeats a key or is long", f"write up to {values.MOST_KEYS} keys, each once"
            )
        return keys

    found = values.fields(node, "segments", {"by": by, "max": values.whole(1, MOST_SEGMENTS)}, problems)
    if isinstance(node, Mapping) and "by" not in node.entries:
        raise WrongError(node.at, "by is missing", "write by: [tenant.tier]")
    return found.get("by", ()), found.get("max", DEFAULT_MAX_SEGMENTS)


def _deadline(node: Node, problems: Problems) -> Deadline:
    def sources(one: Node, problems: Problems) -> tuple[str, ...]:
        found = values.one_or_several(one, values.one_of(*DEADLINES), problems, f"[{DEADLINES[0]}]")
        if len(set(found)) < len(found):
            raise WrongError(one.at, "a source stands twice", "remove one")
        return found

    found = values.fields(node, "a deadline", {"from": sources, "mode": values.one_of(TIGHTEN, REPLACE)}, problems)
    if isinstance(node, Mapping) and "from" not in node.entries:
        raise WrongError(node.at, "from is missing", f"write from: [{', '.join(DEADLINES[:2])}]")
    return Deadline(found.get("from", ()), found.get("mode", TIGHTEN))


def _overrides(node: Node, problems: Problems) -> tuple[Node, ...]:
    return values.several(node, lambda one: one, problems, "- when: {tenant.tier: gold}")


SHORT_KEYS: Final = {"service": SERVICE_KEY, "model": MODEL_KEY}
_FIELDS: Final = {  # of an objective, by their keys in a file
    **{key: f"{key}_ns" for key in BOUNDS},
    **{key: key for key in ("description", "target", "errors", "disconnect", "stages", "deadline")},
    "warmup": "warmup_s",
}
_OF_BOTH: Final[dict[str, Any]] = {
    "name": values.name,
    "description": values.text,
    **dict.fromkeys((*BOUNDS, *PERCENTILES), values.duration),
    "target": values.share,
    "window": values.window,
    "errors": values.one_of(*ERRORS),
    "disconnect": values.one_of(EXCLUDED, BREACH),
    "stages": _stages,
    "segments": _segments,
    "deadline": _deadline,
    "warmup": values.seconds,
    "excluded": values.boolean,
    "alerts": policy_alerts.of_one,
}
_OBJECTIVE: Final = {**_OF_BOTH, "match": _match, "overrides": _overrides, "continue": values.boolean}
_OVERRIDE: Final = {"when": _conditions, **_OF_BOTH}
