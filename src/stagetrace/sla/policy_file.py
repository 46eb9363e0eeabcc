"""Policies as files: read one, and write one that reads back as the same policy."""

from __future__ import annotations

import re
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from stagetrace.errors import PolicyError
from stagetrace.sla.alert_options import AlertOptions
from stagetrace.sla.objective import Objective
from stagetrace.sla.policy import Policy
from stagetrace.sla.policy_alerts import NEVER, URLS
from stagetrace.sla.policy_document import BOUNDS, MOST_BYTES, SHORT_KEYS, content, decoded, default_name
from stagetrace.sla.quantities import duration_ns
from stagetrace.sla.yaml_nodes import resolved

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stagetrace.sla.objective import Condition

_WIDTH: Final = 1 << 20  # lines are not folded
_UNITS: Final = (("s", 10**9), ("ms", 10**6), ("us", 10**3))
_WINDOWS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_NONE: Final = Objective("", None, "*", 0)
# Fields that are written as they are.
_PLAIN: Final = ("disconnect", "errors", "description")


def read(text: str, where: str) -> Policy:
    """Read the text of a policy file; `where` is its name. Raise PolicyFileError with all that is wrong in it."""
    return Policy.read(text, where)


def load(path: str) -> Policy:
    """Read a policy file. Raise PolicyError where it cannot be read."""
    return read(decoded(content(path), path), path)


def write(policy: Policy) -> str:
    """Return a policy as YAML that reads back as the same policy.

    Raises:
        PolicyError: where it has what no file can say.
    """
    import yaml

    class Dumper(yaml.SafeDumper):
        """Quotes what a reader of YAML 1.2 would take for something else than a text."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = None if isinstance(resolved(value), str) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    written = yaml.dump(content_of(policy), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
    if len(written.encode()) > MOST_BYTES or not _is_same(read(written, "the policy"), policy):
        raise PolicyError("the policy cannot be written as a file: read back, it would not be the same")
    return str(written)


def content_of(policy: Policy) -> dict[str, Any]:
    """Return what a file says, as mappings, lists and texts. Raise PolicyError where no file can say it."""
    alerts = _alerts(policy.alerts, AlertOptions())
    return {"version": 1, "objectives": _objectives(policy), **({"alerts": alerts} if alerts else {})}


def _is_same(one: Policy, other: Policy) -> bool:
    return (one.objectives, one.alerts) == (other.objectives, other.alerts)


def _objectives(policy: Policy) -> list[dict[str, Any]]:
    """Return the objectives as a file has them, each with the overrides that stand in front of it."""
    found = []
    overrides: list[Objective] = []
    for one in policy.objectives:
        if one.base is not None:
            overrides.append(one)
            continue
        made = _objective(one, policy)
        if overrides:
            made["overrides"] = [_override(override, one, policy) for override in overrides]
            overrides = []
        found.append({**made, **({"continue": True} if one.continues else {})})
    if overrides:
        raise PolicyError(f"the policy cannot be written: the override {overrides[0].name!r} stands behind its base")
    return found


def _objective(one: Objective, policy: Policy) -> dict[str, Any]:
    if one.problem is not None:
        raise PolicyError(f"the policy cannot be written: {one.problem}")
    match: dict[str, Any] = {"route": f"{one.method} {one.route}" if one.method else one.route}
    conditions = list(one.conditions)
    for short, key in SHORT_KEYS.items():
        if conditions and conditions[0].key == key:
            match[short] = conditions.pop(0).glob
    if conditions:
        match["attributes"] = _mapping(conditions)
    made = {"match": match, **_changed(one, _NONE, policy), **({"excluded": True} if one.excludes else {})}
    # A name that follows from the rest may have characters that a given one may not.
    return made if one.name == default_name(one, made) else {"name": one.name, **made}


def _override(one: Objective, base: Objective, policy: Policy) -> dict[str, Any]:
    count = len(base.conditions)
    if (one.base, one.conditions[:count], one.method, one.route) != (
        *(base.name, base.conditions, base.method, base.route),
    ):
        raise PolicyError(f"the policy cannot be written: {one.name!r} is no override of {base.name!r}, behind it")
    made: dict[str, Any] = {"when": _mapping(one.conditions[count:]), "name": one.name}
    return {**made, "excluded": True} if one.excludes else {**made, **_changed(one, base, policy)}


def _changed(one: Objective, base: Objective, policy: Policy) -> dict[str, Any]:
    """Return what an objective says otherwise than another one. A description is no override's by default."""
    made = {} if one.excludes else _bounds(one, base)
    if one.target != base.target:
        made["target"] = share(one.target)
    if (one.window_s, one.calendar) != (base.window_s, base.calendar):
        made["window"] = one.calendar.text if one.calendar is not None else window(one.window_s)
    for key in _PLAIN:
        value = getattr(one, key)
        if value is not None and value != (getattr(base, key) if key != "description" else ""):
            made[key] = value
    if one.stages != base.stages:
        made["stages"] = {stage: duration(budget) for stage, budget in one.stages}
    if (one.segment_by, one.max_segments) != (base.segment_by, base.max_segments):
        made["segments"] = {"by": list(one.segment_by), "max": one.max_segments}
    if one.deadline is not None and one.deadline != base.deadline:
        made["deadline"] = {"from": list(one.deadline.sources), "mode": one.deadline.mode}
    if one.warmup_s != base.warmup_s:
        made["warmup"] = duration(round(one.warmup_s * 1e9))
    alerts = {} if one.excludes else _alerts(policy.alerts_of(one), policy.alerts_of(base))
    return {**made, **({"alerts": alerts} if alerts else {})}


def _bounds(one: Objective, base: Objective) -> dict[str, Any]:
    values = ((key, getattr(one, f"{key}_ns"), getattr(base, f"{key}_ns")) for key in BOUNDS)
    return {key: _spelt(one.name, key, value) for key, value, other in values if value is not None and value != other}


def _spelt(name: str, key: str, nanoseconds: int) -> str:
    """Return a duration as it is in the name that follows from it, if it is."""
    found = re.search(rf" {key} (\S+)", name)
    with suppress(ValueError):
        if found is not None and duration_ns(found[1]) == nanoseconds:
            return found[1]
    return duration(nanoseconds)


def _mapping(conditions: Sequence[Condition]) -> dict[str, str]:
    made = {one.key: one.glob for one in conditions}
    if len(made) < len(conditions):
        raise PolicyError("the policy cannot be written: two conditions of one objective have the same key")
    return made


def _alerts(options: AlertOptions, base: AlertOptions) -> dict[str, Any]:
    """Return what alerts have otherwise than others; a file can add to labels and URLs, and take none away."""
    made: dict[str, Any] = {}
    if options.burns != base.burns:
        made["burn"] = burns(options)
    if options.min_requests != base.min_requests:
        made["min_requests"] = options.min_requests
    if options.no_data_s != base.no_data_s:
        made["no_data"] = window(options.no_data_s) if options.no_data_s else NEVER
    labels = {key: value for key, value in options.labels if (key, value) not in base.labels}
    if labels:
        made["labels"] = labels
    urls = {key: getattr(options, key) for key in URLS}
    return {**made, **{key: url for key, url in urls.items() if url and url != getattr(base, key)}}


def burns(options: AlertOptions) -> list[dict[str, Any]]:
    """Return the burn alerts as a file has them."""
    return [
        {"factor": one.factor, "long": window(one.long_s), "short": window(one.short_s), "severity": one.severity}
        for one in options.burns
    ]


def duration(nanoseconds: int) -> str:
    """Return a duration as a policy has it."""
    unit, size = next(((unit, size) for unit, size in _UNITS if nanoseconds % size == 0), _UNITS[-1])
    return f"{_plain(Decimal(nanoseconds) / size)}{unit}"


def window(seconds: float) -> str:
    """Return a window as a policy has it."""
    unit, size = next(((unit, size) for unit, size in _WINDOWS if seconds % size == 0), _WINDOWS[-1])
    return f"{_plain(Decimal(repr(float(seconds))) / size)}{unit}"


def share(target: float) -> str:
    """Return a share as a policy has it."""
    return f"{_plain(Decimal(repr(target)) * 100)}%"


def _plain(number: Decimal) -> str:
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
