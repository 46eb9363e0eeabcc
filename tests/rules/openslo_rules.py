"""The rules of OpenSLO v1 for the documents that stagetrace writes, as OpenSLO's Go SDK has them."""

from __future__ import annotations

import re
from typing import Any, Final

LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SHORTHAND: Final = re.compile(r"[1-9]\d*[mhdwMQY]")
ANNOTATION: Final = re.compile(
    r"([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[\w]([-._\w]{0,61}\w)?", re.ASCII
)
SPEC: Final = {
    "Service": {"description"},
    "DataSource": {"description", "type", "connectionDetails"},
    "SLO": {
        *("description", "service", "indicator", "indicatorRef", "timeWindow", "budgetingMethod", "objectives"),
        "alertPolicies",
    },
    "AlertPolicy": {
        *("description", "alertWhenNoData", "alertWhenResolved", "alertWhenBreaching", "conditions"),
        "notificationTargets",
    },
    "AlertCondition": {"description", "severity", "condition"},
    "AlertNotificationTarget": {"description", "target"},
}


def check(documents: list[dict[str, Any]]) -> None:
    """Assert that documents keep to the rules, and that all they refer to is among them."""
    names = {(one["kind"], one["metadata"]["name"]) for one in documents}
    assert len(names) == len(documents)
    for one in documents:
        assert set(one) == {"apiVersion", "kind", "metadata", "spec"}
        assert one["apiVersion"] == "openslo/v1"
        assert set(one["spec"]) <= SPEC[one["kind"]]
        assert len(one["spec"].get("description", "")) <= 1_050
        _metadata(one["metadata"])
        if one["kind"] in CHECKS:
            CHECKS[one["kind"]](one["spec"], names)


def _metadata(metadata: dict[str, Any]) -> None:
    assert set(metadata) <= {"name", "displayName", "annotations"}
    assert LABEL.fullmatch(metadata["name"])
    assert len(metadata.get("displayName", "")) <= 63
    for key, value in metadata.get("annotations", {}).items():
        assert ANNOTATION.fullmatch(key)
        assert isinstance(value, str)


def _slo(spec: dict[str, Any], names: set[tuple[str, str]]) -> None:
    assert ("indicator" in spec) != ("indicatorRef" in spec)
    assert spec["budgetingMethod"] == "Occurrences"
    assert ("Service", spec["service"]) in names
    _indicator(spec["indicator"], names)
    (window,) = spec["timeWindow"]
    assert SHORTHAND.fullmatch(window["duration"])
    assert window["isRolling"] != ("calendar" in window)
    for objective in spec["objectives"]:
        assert 0 <= objective["target"] < 1
        assert not {"op", "value", "targetPercent"} & set(objective)
    for one in spec.get("alertPolicies", ()):
        assert ("AlertPolicy", one["alertPolicyRef"]) in names


def _indicator(indicator: dict[str, Any], names: set[tuple[str, str]]) -> None:
    _metadata(indicator["metadata"])
    (kind, ratio), *others = indicator["spec"].items()
    assert (kind, others, set(ratio)) == ("ratioMetric", [], {"counter", "good", "total"})
    for key in ("good", "total"):
        source = ratio[key]["metricSource"]
        assert ("DataSource", source["metricSourceRef"]) in names
        assert source["spec"]["query"]


def _policy(spec: dict[str, Any], names: set[tuple[str, str]]) -> None:
    assert len(spec["conditions"]) == 1
    assert ("AlertCondition", spec["conditions"][0]["conditionRef"]) in names
    assert spec["notificationTargets"]
    for target in spec["notificationTargets"]:
        assert ("AlertNotificationTarget", target["targetRef"]) in names


def _condition(spec: dict[str, Any], names: set[tuple[str, str]]) -> None:
    del names
    assert spec["severity"]
    assert set(spec["condition"]) <= {"kind", "op", "threshold", "lookbackWindow", "alertAfter"}
    assert (spec["condition"]["kind"], spec["condition"]["op"]) == ("burnrate", "gt")
    assert spec["condition"]["threshold"] > 0
    assert SHORTHAND.fullmatch(spec["condition"]["lookbackWindow"])


CHECKS: Final = {"SLO": _slo, "AlertPolicy": _policy, "AlertCondition": _condition}
