"""Read `alerts` of a policy file: those of all objectives, and what one objective has otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stagetrace.sla import policy_values as values
from stagetrace.sla.alert_options import PAGE, TICKET, AlertOptions, BurnAlert
from stagetrace.sla.policy_problem import WrongError
from stagetrace.sla.yaml_nodes import Mapping, Scalar, Sequence

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Mapping as AnyMapping

    from stagetrace.sla.policy_problem import Problems
    from stagetrace.sla.yaml_nodes import Node

NEVER: Final = "never"
_FIELDS: Final = {"burn": "burns", "no_data": "no_data_s"}  # of AlertOptions, where a key has another name
_PAIR: Final = "{factor: 14.4, long: 1h, short: 5m}"


def of_all(node: Node, problems: Problems) -> AlertOptions:
    """Return the alerts of a policy."""
    return changed(AlertOptions(), _read(node, problems, {**_OF_ONE, **_OF_ALL}))


def of_one(node: Node, problems: Problems) -> dict[str, Any]:
    """Return what an objective, or an override, has otherwise, as `changed` takes it."""
    for key in _OF_ALL:
        if isinstance(node, Mapping) and key in node.entries:
            fix = "write it into alerts: at the top of the file"
            raise WrongError(node.places[key], f"{key} is one for all objectives", fix)
    return _read(node, problems, _OF_ONE)


def _read(node: Node, problems: Problems, table: AnyMapping[str, Any]) -> dict[str, Any]:
    found = values.fields(node, "alerts", table, problems)
    return {_FIELDS.get(key, key): value for key, value in found.items()}


def changed(options: AlertOptions, own: AnyMapping[str, Any]) -> AlertOptions:
    """Return alerts with what is said otherwise; labels are added to those that are there."""
    labels = {**dict(options.labels), **dict(own.get("labels", ()))}
    return replace(options, **{**own, "labels": tuple(labels.items())})


def _labels(node: Node, problems: Problems) -> tuple[tuple[str, str], ...]:
    return values.mapping(node, values.label, problems, "{team: ml}")


def _no_data(node: Node, problems: Problems) -> int:
    if isinstance(node, Scalar) and node.value == NEVER:
        return 0
    try:
        return values.span(node, problems)
    except WrongError as error:
        one = error.problem
        raise WrongError(one.at, one.what, f"{one.fix}, or {NEVER}") from None


def _burns(node: Node, problems: Problems) -> tuple[BurnAlert, ...]:
    if isinstance(node, Sequence) and not node.items:
        return ()
    found = values.several(node, lambda item: _burn(item, problems), problems, f"[{_PAIR}]")
    return tuple(burn for burn in found if burn is not None)


def _burn(node: Node, problems: Problems) -> BurnAlert | None:
    table = {
        "factor": values.factor,
        "long": values.span,
        "short": values.span,
        "severity": values.one_of(PAGE, TICKET),
    }
    found = values.fields(node, "a burn alert", table, problems)
    missing = [key for key in ("factor", "long", "short") if isinstance(node, Mapping) and key not in node.entries]
    if missing:
        raise WrongError(node.at, f"{missing[0]} is missing", f"write {_PAIR}")
    if not {"factor", "long", "short"} <= found.keys():
        return None
    if found["short"] > found["long"]:  # equal ones are one window
        at = node.places["short"] if isinstance(node, Mapping) else node.at
        raise WrongError(at, "the short window is longer than the long one", "swap the two")
    return BurnAlert(found["factor"], found["long"], found["short"], found.get("severity", PAGE))


_OF_ONE: Final[AnyMapping[str, Callable[..., Any]]] = {
    "burn": _burns,
    "min_requests": values.whole(0, 10**9),
    "no_data": _no_data,
    "labels": _labels,
    "runbook": values.url,
}
_OF_ALL: Final[AnyMapping[str, Callable[..., Any]]] = dict.fromkeys(("webhook", "alertmanager", "traces"), values.url)
URLS: Final = ("runbook", *_OF_ALL)
