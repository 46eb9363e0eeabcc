"""Pyrra: objects that its CustomResourceDefinition allows, and what Pyrra does otherwise."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import jsonschema
import yaml
from hypothesis import given, settings

from rules.openslo_rules import LABEL
from rules.policies import OTHERS, PREDICT, policies, policy
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.pyrra import render
from stagetrace.sla.objective import Calendar

if TYPE_CHECKING:
    from stagetrace.sla.policy import Policy

SCHEMA: Final = Path(__file__).parent / "vectors" / "pyrra" / "schema.json"


def closed(schema: Any) -> Any:
    """Return a schema that allows no unknown field of a spec, as Pyrra, which reads files strictly, does."""
    if isinstance(schema, list):
        return list(map(closed, schema))
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    return {**found, "additionalProperties": False} if isinstance(found.get("properties"), dict) else found


@settings(max_examples=25)
@given(policies())
def test_the_objects_of_any_policy_keep_to_pyrras_schema(given: Policy) -> None:
    schema = closed(json.loads(SCHEMA.read_text("utf-8")))
    objects = list(yaml.safe_load_all(render(given, RulesOptions())))
    assert len(objects) == len([one for one in given.objectives if not one.excludes]) or objects == []
    for one in objects:
        jsonschema.validate(one, schema)
        assert (one["apiVersion"], one["kind"]) == ("pyrra.dev/v1alpha1", "ServiceLevelObjective")
        assert LABEL.fullmatch(one["metadata"]["name"])
        assert 0 < float(one["spec"]["target"]) <= 100
    assert len({one["metadata"]["name"] for one in objects}) == len(objects)


def test_an_object_counts_by_the_judged_requests_of_its_objective() -> None:
    month = replace(OTHERS, calendar=Calendar("month"), window_s=31 * 86_400, segment_by=("tenant.tier",))
    labels = (("team", "ml"), ("note", "two words"))
    text = render(policy(PREDICT, month, labels=labels, no_data_s=600, runbook="https://x/"), RulesOptions())
    predict, others = yaml.safe_load_all(text)
    own = 'sla_requests_total{sla_objective="predict", job=~"(.*/)?churn-api", sla_verdict'
    assert predict["metadata"] == {"name": "predict", "labels": {"pyrra.dev/team": "ml"}}
    assert predict["spec"] == {
        "target": "99",
        "window": "30d",
        "description": "predict",
        "indicator": {
            "ratio": {
                "errors": {"metric": f'{own}="breach"}}'},
                "total": {"metric": f'{own}=~"good|breach"}}'},
                "grouping": ["job"],
            }
        },
        "alerting": {"name": "SlaErrorBudgetBurn", "burnrates": True, "absent": True, "absentName": "SlaNoData"},
    }
    assert others["spec"]["indicator"]["ratio"]["grouping"] == ["job", "sla_segment"]
    quiet = replace(month, alerts=replace(policy().alerts, burns=(), labels=(("tier", "2"),)))
    _, silent = yaml.safe_load_all(render(policy(PREDICT, quiet, labels=labels, no_data_s=600), RulesOptions()))
    assert silent["metadata"]["labels"] == {"pyrra.dev/tier": "2"}
    assert (silent["spec"]["alerting"]["burnrates"], silent["spec"]["alerting"]["absent"]) == (False, False)
    named = [line.removeprefix("# Not expressed: ") for line in text.splitlines() if "Not expressed" in line]
    assert [line.partition(":")[0] for line in named] == [
        "the window of every request, month@UTC",
        "alerts.burn",
        "alerts.labels.note",
        "alerts.min_requests",
        "alerts.runbook, alerts.traces",
    ]
