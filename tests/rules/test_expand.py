"""Labels and annotations of rules with the values of one alert: all templates that the rules have are known."""

from __future__ import annotations

from dataclasses import replace

from rules.policies import OTHERS, PREDICT, policy
from stagetrace.rules import burn
from stagetrace.rules.alerts import expanded
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.prometheus import alert_rules

SERIES = {"job": "eu/shop & co", "sla_objective": "a {{ name }}", "sla_segment": "gold"}
ODD = replace(PREDICT, name="a {{ name }}", segment_by=("tier",), description='{{ "not" }} a template', target=1.0)


def test_no_template_of_any_rule_is_left() -> None:
    more = {"no_data_s": 600, "runbook": "https://r/{{x}}", "labels": (("team", "{{ ml }}"),)}
    texts = set()
    for traces in ("http://jaeger:16686", "http://127.0.0.1:16686/board", ""):
        whole = policy(replace(ODD, target=0.99), OTHERS, ODD, traces=traces, **more)
        for one in whole.objectives:
            for rule in alert_rules(one, burn.alerts(one, whole.alerts), whole, RulesOptions()):
                for template in (*rule["labels"].values(), *rule["annotations"].values()):
                    texts.add(expanded(template, SERIES, 0.0512345))
    said = {"a {{ name }}", '{{ "not" }} a template', "https://r/{{x}}", "{{ ml }}", "{{ name }}", "{{x}}"}
    for text in texts:
        rest = text
        for part in said:
            rest = rest.replace(part, "")
        assert "{{" not in rest, text
        assert "$" not in rest, text
    assert "5.123%" in "".join(texts)
    assert "service=shop+%26+co" in "".join(texts)
    assert " of gold" in "".join(texts)


def test_a_label_that_an_alert_does_not_have_is_empty() -> None:
    assert expanded("{{ with $labels.sla_segment }} of {{ . }}{{ end }}", {}, 0) == ""
    assert expanded("[{{ $labels.job }}]", {}, 0) == "[]"
