"""OpenSLO files of others: what a policy can express is read, and all else is named with its line and field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rules import openslo_rules
from rules.policies import OTHERS, PREDICT, policies, policy
from stagetrace.policy import policy_file
from stagetrace.policy.alert_options import SRE_WORKBOOK, AlertOptions, BurnAlert
from stagetrace.policy.objective import NEVER_NS, SERVICE_KEY, Calendar, Condition, Objective
from stagetrace.policy.policy import Policy
from stagetrace.policy.policy_file import PolicyFileError
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.openslo import render
from stagetrace.rules.openslo_read import read

VECTORS: Final = Path(__file__).parent / "vectors" / "openslo"
NAMES: Final = sorted(file.name for file in VECTORS.glob("*.yaml"))
MS: Final = 1_000_000


def said(text: str) -> list[str]:
    """Return all that is wrong in a file."""
    with pytest.raises(PolicyFileError) as caught:
        read(text, "slo.yaml")
    assert not caught.value.more
    return [one.text("") for one in caught.value.problems]


def vector(name: str) -> str:
    """Return one of the examples of the specification."""
    return (VECTORS / name).read_text("utf-8")


def corrected(text: str) -> str:
    """Return an example as OpenSLO has corrected it, with the fields that are required and names in lower case."""
    text = text.replace("op: lte", "op: gt").replace("OnCallDevops", "on-call-devops-").replace("MailN", "mail-n")
    text = text.replace("SlackN", "slack-n").replace("name: AlertPolicy", "name: alert-policy")
    window = "  timeWindow:\n    - duration: 28d\n      isRolling: true\n  budgetingMethod: Occurrences\n  objectives:"
    return text.replace("  objectives:", window)


# Why each example of the specification cannot be a policy by itself: they hold other queries, or parts of an SLO.
NO_SLO: Final = ":1:1: there is no SLO in the file: add a document of kind: SLO"
REFUSALS: Final = {
    "condition.yaml": [NO_SLO],
    "policy-by-reference.yaml": [
        NO_SLO,
        ":11:21: AlertPolicy AlertPolicy: conditionRef is 'cpu-usage-breach', and no AlertCondition of the file",
        ":13:18: AlertPolicy AlertPolicy: targetRef is 'OnCallDevopsMailNotification', and no",
    ],
    "policy-inline.yaml": [
        NO_SLO,
        ":20:15: AlertCondition cpu-usage-breach: spec.condition.op is 'lte', and only a high burn rate alerts: write",
        ":25:18: AlertPolicy AlertPolicy: targetRef is 'OnCallDevopsMailNotification', and no",
    ],
    "slo.yaml": [
        ":18:19: SLO foo-slo: spec.indicator.spec.ratioMetric.good.metricSource is a query to Datadog, which stagetrace"
    ],
    "target-email.yaml": [NO_SLO],
    "target-slack.yaml": [NO_SLO],
}


@pytest.mark.parametrize("name", NAMES)
def test_each_example_of_the_specification_is_refused_with_its_reason(name: str) -> None:
    found = said(vector(name))
    assert [one[: len(wanted)] for one, wanted in zip(found, REFUSALS[name], strict=True)] == REFUSALS[name]


# Of the histogram that OpenTelemetry's instrumentations record.
SERIES: Final = 'http_route="/predict", http_request_method="POST"'
GOOD: Final = f'sum(rate(http_server_request_duration_seconds_bucket{{{SERIES}, le="0.25"}}[5m]))'
TOTAL: Final = f"sum(rate(http_server_request_duration_seconds_count{{{SERIES}}}[5m]))"


def of_prometheus(text: str, good: str = GOOD, total: str = TOTAL) -> str:
    """Return the example of an SLO with queries to Prometheus."""
    first, _, rest = text.replace("type: Datadog", "type: Prometheus").partition("query: sum:trace")
    _, _, rest = rest.partition("\n")
    second, _, rest = rest.partition("query: sum:trace")
    return f"{first}query: {good}\n{second}query: {total}\n{rest.partition(chr(10))[2]}"


ALL: Final = "---\n".join(
    [
        of_prometheus(corrected(vector("slo.yaml"))) + "  alertPolicies:\n    - alertPolicyRef: alert-policy\n",
        corrected(vector("policy-by-reference.yaml")),
        corrected(vector("condition.yaml")),
        corrected(vector("target-email.yaml")),
    ]
)


UNUSED: Final = "stagetrace has nothing that it would change"
AT_ONCE: Final = "an alert fires at once; its short window ends it"
POSTS: Final = "email: stagetrace posts to a webhook or an Alertmanager, which can notify others"
MAIL: Final = "AlertNotificationTarget on-call-devops-mail-notification"


def test_the_examples_together_are_a_policy_where_the_slo_asks_prometheus_for_fast_requests() -> None:
    found = read(ALL, "slo.yaml")
    service = Condition(SERVICE_KEY, "foo")
    assert found.policy.objectives == (
        Objective("foo-slo", "POST", "/predict", 250 * MS, 0.98, conditions=(service,), continues=True),
    )
    assert found.policy.alerts == AlertOptions((BurnAlert(2, 3_600, 3_600),))
    assert [note.removeprefix("slo.yaml:").partition(" is not expressed: ")[::2] for note in found.notes] == [
        ("5:16: SLO foo-slo: metadata.displayName", UNUSED),
        ("11:20: SLO foo-slo: spec.indicator.metadata.displayName", UNUSED),
        ("32:20: SLO foo-slo: spec.objectives[0].displayName", "the objective has the name of its SLO"),
        ("41:16: AlertPolicy alert-policy: metadata.displayName", UNUSED),
        ("45:22: AlertPolicy alert-policy: spec.alertWhenResolved", "it is true here"),
        ("55:16: AlertCondition cpu-usage-breach: metadata.displayName", UNUSED),
        ("57:16: AlertCondition cpu-usage-breach: spec.description", UNUSED),
        (
            "64:17: AlertCondition cpu-usage-breach: spec.condition.alertAfter",
            "an alert fires at once; its short window ends it",
        ),
        (f"72:11: {MAIL}: spec.target", POSTS),
    ]
    again = read(render(found.policy, RulesOptions()), "again.yaml")
    assert (again.policy, again.notes) == (found.policy, ())


def test_an_alert_policy_may_hold_its_condition_and_an_indicator_may_be_an_object() -> None:
    inline = corrected(vector("policy-inline.yaml"))
    text = "---\n".join([*ALL.split("---\n")[:1], inline, ALL.split("---\n")[3]])
    assert read(text, "slo.yaml").policy == read(ALL, "slo.yaml").policy
    before, _, rest = text.partition("  indicator:\n")
    indicator, _, after = rest.partition("  timeWindow:")
    sli = "apiVersion: openslo/v1\nkind: SLI\n" + "".join(f"{line[4:]}\n" for line in indicator.splitlines())
    apart = f"{before}  indicatorRef: foo-error\n  timeWindow:{after}---\n{sli}"
    assert read(apart, "slo.yaml").policy == read(ALL, "slo.yaml").policy


HAND: Final = """\
apiVersion: openslo/v1
kind: SLO
metadata:
  name: predict
spec:
  service: any-service
  indicator:
    metadata: {name: latency}
    spec:
      thresholdMetric:
        metricSource:
          type: stagetrace
          spec: {objective: {match: {route: POST /predict}}}
  timeWindow:
    - duration: 1M
      calendar: {startTime: 2024-02-01 00:00:00, timeZone: Europe/Berlin}
  budgetingMethod: Occurrences
  objectives:
    - {displayName: most, op: lte, value: 250, targetPercent: 99}
    - {op: lte, value: 1000, target: 0.999}
"""


def test_values_of_a_threshold_are_bounds_in_milliseconds_and_each_objective_judges() -> None:
    found = read(HAND, "slo.yaml")
    common: dict[str, Any] = {
        "window_s": 31 * 86_400,
        "calendar": Calendar("month", "Europe/Berlin"),
        "continues": True,
    }
    assert found.policy.objectives == (
        Objective("predict most", "POST", "/predict", 250 * MS, 0.99, **common),
        Objective("predict 2", "POST", "/predict", 1_000 * MS, 0.999, **common),
    )
    assert found.notes == ()
    again = read(render(found.policy, RulesOptions()), "again.yaml")
    assert again.policy == found.policy


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        (
            "Occurrences",
            "Timeslices",
            17,
            "spec.budgetingMethod is 'Timeslices': stagetrace counts requests, not slices",
        ),
        ("op: lte, value: 250", "op: lt, value: 250", 19, "spec.objectives[0].op is not lte"),
        ("value: 250", "timeSliceTarget: 0.9, value: 250", 19, "spec.objectives[0].timeSliceTarget cannot be read"),
        ("value: 250", "timeSliceWindow: 5m, value: 250", 19, "spec.objectives[0].timeSliceWindow cannot be read"),
        ("value: 250", "compositeWeight: 2, value: 250", 19, "compositeWeight cannot be read: a composite SLO"),
        ("value: 250", "indicatorRef: x, value: 250", 19, "indicatorRef cannot be read: a composite SLO"),
        ("value: 250, ", "", 19, "spec.objectives[0].value is missing: write the milliseconds"),
        ("targetPercent: 99", "targetPercent: 100", 19, "has the target 100: write one between 0 and 1"),
        ("targetPercent: 99", "target: 99", 19, "has the target 99: write one between 0 and 1"),
        ("targetPercent: 99", "target: 0.9, targetPercent: 90", 19, "has both target and targetPercent: write one"),
        (", targetPercent: 99", "", 19, "has neither target and targetPercent: write one"),
        ("2024-02-01", "2024-02-02", 15, "'2024-02-02 00:00:00' is not the beginning of a month"),
        ("duration: 1M", "duration: 2M", 15, "a calendar window of '2M' cannot be expressed: write one of 1d, 1w, 1M"),
        ("duration: 1M", "duration: 90s", 15, "a calendar window of '90s' cannot be expressed"),
        ("Europe/Berlin", "Europe/Bärlin", 15, "'Europe/Bärlin' is no time zone"),
        ("type: stagetrace", "type: Prometheus", None, ""),
        ("type: stagetrace", "type: Redshift", 12, "reads values from Redshift, of which it is unknown"),
        ("openslo/v1", "openslo/v1alpha", 1, "apiVersion is 'openslo/v1alpha', which is not read: write openslo/v1"),
        ("kind: SLO", "kind: slo", 2, "kind is 'slo': write one of DataSource, SLO"),
        ("route: POST /predict", "path: /predict", 13, "'path' is no key of a match: write route"),
        ("  service: any-service\n", "", 1, "spec.service is missing: write the name of the service, or any-service"),
        ("  indicator:\n", "  indicatorRef: other\n  indicator:\n", 7, "has both indicator and indicatorRef"),
        ("name: predict", "label: predict", 1, "metadata.name is missing: write the name of the object"),
    ],
)
def test_what_cannot_be_expressed_is_named_with_its_line_and_field(
    old: str, new: str, line: int | None, message: str
) -> None:
    assert old in HAND
    text = HAND.replace(old, new, 1)
    if line is None:
        assert read(text, "slo.yaml").policy == read(HAND, "slo.yaml").policy
        return
    (problem, *_) = said(text)
    assert message in problem
    assert problem.startswith(f":{line}:")


@pytest.mark.parametrize(
    ("good", "total", "message"),
    [
        ("histogram_quantile(0.99, rate(x_seconds_bucket[5m]))", "vector(1)", "is no sum of one series or its rate"),
        (GOOD.replace("/predict", "/other"), TOTAL, "good and total select different series"),
        (GOOD.replace('route="', 'route=~"'), TOTAL, "the label http_route is compared by =~, and only ="),
        (GOOD.replace("http_route", "pod"), TOTAL.replace("http_route", "pod"), "the label pod is no part of a match"),
        (GOOD.replace("_seconds_", "_"), TOTAL.replace("_seconds_", "_"), "the unit of http_server_request_duration"),
        (GOOD.replace('"0.25"', '"+Inf"'), TOTAL, "the bucket of le='+Inf' holds all requests"),
        (GOOD.replace(', le="0.25"', ""), TOTAL, "the bucket has no bound"),
        ('sla_requests_total{sla_verdict="good"}', "sla_requests_total", "is no bucket of a histogram over its count"),
    ],
)
def test_a_query_that_is_no_share_of_fast_requests_is_named(good: str, total: str, message: str) -> None:
    (problem,) = said(of_prometheus(corrected(vector("slo.yaml")), good, total))
    assert message in problem
    assert problem.startswith(":20:22: SLO foo-slo: spec.indicator.spec.ratioMetric.good.metricSource.spec ")


def test_an_edited_field_of_the_standard_changes_the_policy_and_one_that_is_said_twice_is_refused() -> None:
    text = render(policy(PREDICT, min_requests=3), RulesOptions())
    edited = text.replace("target: 0.99\n", "target: 0.95\n").replace("duration: 30d", "duration: 2w")
    edited = edited.replace("threshold: 14.4", "threshold: 9").replace("lookbackWindow: 1h", "lookbackWindow: 2h")
    found = read(edited.replace("service: churn-api", "service: other"), "slo.yaml").policy
    (one,) = found.objectives
    assert (one.target, one.window_s, one.conditions) == (0.95, 14 * 86_400, (Condition(SERVICE_KEY, "other"),))
    assert found.alerts.burns[0] == BurnAlert(9, 7_200, 300)
    assert found.alerts.min_requests == 3
    whole = render(policy(Objective("predict", None, "*", MS, 1.0, window_s=90)), RulesOptions())
    assert said(whole.replace("target: 0.999999999", "target: 0.9"))[0].endswith(
        "has the target 0.9, and its indicator another one: remove target from spec.objective of the indicator"
    )
    assert said(whole.replace("duration: 2m", "duration: 28d"))[0].endswith(
        "spec.timeWindow is not the window of the indicator: remove one of the two"
    )


def test_slos_with_different_alert_policies_have_alerts_of_their_own() -> None:
    """Those that all SLOs have are those of the policy."""
    text = render(policy(), RulesOptions())
    assert read(text, "slo.yaml").policy == policy()
    before, _, after = text.rpartition("  - alertPolicyRef: burn-3-ticket\n")
    found = read(before + after, "slo.yaml")
    assert found.policy == policy(PREDICT, replace(OTHERS, alerts=AlertOptions(SRE_WORKBOOK[:2])))
    assert found.notes == ()
    before, _, after = text.rpartition("  alertPolicies:\n")
    without = f"{before}{after[after.index('---') :]}"
    assert read(without, "slo.yaml").policy == policy(PREDICT, replace(OTHERS, alerts=AlertOptions(())))


@pytest.mark.parametrize("webhook", ["", "http://hook/"])
def test_the_alerts_of_all_stay_those_of_all_beside_objectives_with_their_own(webhook: str) -> None:
    """Whatever the order is, and where no objective has them."""
    own = AlertOptions(webhook=webhook)
    median = replace(PREDICT, name="median", target=0.5, alerts=own._replace(burns=(BurnAlert(1.8, 3_600, 300),)))
    silent = replace(OTHERS, alerts=own._replace(burns=(), no_data_s=60, labels=(("team", "ml"),)))
    for objectives in ((median, PREDICT), (PREDICT, median, silent), (median,), (silent,)):
        one = policy(*objectives, webhook=webhook)
        found = read(render(one, RulesOptions()), "slo.yaml")
        assert (found.policy, found.notes) == (one, ())


OURS: Final = render(
    policy(
        replace(PREDICT, conditions=(Condition(SERVICE_KEY, "Churn API"),)),
        Objective("health excluded", None, "/health", NEVER_NS, excludes=True),
        replace(PREDICT, name="gold", base="rest", conditions=(Condition("tenant.tier", "gold"),)),
        Objective("rest", "POST", "/predict", 9 * MS, conditions=()),
        no_data_s=600,
        webhook="http://hook/",
    ),
    RulesOptions(),
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("service: churn-api\n", "service: shop\n", "is 'shop', and the match of its indicator names 'Churn API'"),
        ("service: any-service\n", "service: shop\n", "the SLO gold overrides rest, and is about another service"),
        ("override_of: rest", "override_of: other", "no later SLO has the name that this one overrides"),
        ("    version: 1\n", "    version: 1\n    exclude: []\n", "connectionDetails.exclude is not known"),
        ("      no_data: 10m", "      webhook: http://x/\n      no_data: 10m", "webhook stands in the DataSource, too"),
        ("    isRolling: true", "    isrolling: true", "spec.timeWindow.isrolling is not known: write isRolling"),
        ("- targetRef: webhook", "- targetRef: webhook\n    name: x", "name stands beside targetRef"),
        ("kind: AlertCondition", "kind: SLI", "no AlertCondition of the file has that name"),
        ("name: rest\n", "name: predict\n", "metadata.name is that of the one in line"),
        ("before: ", "before: no-", "no SLO has this name"),
    ],
)
def test_what_contradicts_itself_in_a_file_of_ours_is_refused(old: str, new: str, message: str) -> None:
    assert old in OURS
    assert any(message in problem for problem in said(OURS.replace(old, new, 1)))


@pytest.mark.parametrize("key", ["bad", "raw"])
def test_an_indicator_of_bad_requests_or_of_ratios_is_refused(key: str) -> None:
    (problem, *_) = said(ALL.replace("        good:\n", f"        {key}:\n"))
    assert f"ratioMetric.{key} cannot be expressed: an objective says which requests are good" in problem


def test_an_edited_query_is_noted_since_the_objective_beside_it_decides() -> None:
    (note,) = read(OURS.replace("sum(sla_requests_total{sla_objective", "sum(mine{own", 1), "slo.yaml").notes
    assert "SLO predict: spec.indicator.spec.ratioMetric.good.metricSource.spec.query is not expressed" in note


@pytest.mark.thorough
@given(st.sampled_from([OURS, HAND, ALL]), st.data())
def test_any_broken_file_is_refused_by_line_and_column(text: str, data: st.DataObject) -> None:
    """A value of another kind, a missing or an unknown key, anywhere: a policy, or a refusal, and no other error."""
    documents = list(yaml.safe_load_all(text.replace("2024-02-01 00:00:00", "'2024-02-01 00:00:00'")))
    node: Any = documents
    while True:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
        if not isinstance(node[key], (dict, list)) or not node[key] or data.draw(st.integers(0, 3)) == 0:
            break
        node = node[key]
    if data.draw(st.booleans()):
        del node[key]
    else:
        node[key] = data.draw(
            st.sampled_from([None, "", "x", 0, -1.5, True, [], {}, [[]], [None], {"a": {}}, "9" * 400])
        )
    refused = ""
    try:
        assert read(yaml.safe_dump_all(documents), "slo.yaml").policy.objectives
    except PolicyFileError as error:
        refused = str(error)
    assert len(refused.splitlines()) <= 3
    assert refused == "" or refused.startswith("cannot read the policy slo.yaml:")


# --- A policy as OpenSLO v1: the documents keep to the standard, and read back as the same policy.


@pytest.mark.thorough
@given(policies())
def test_any_policy_reads_back_the_same_from_documents_that_keep_to_the_rules(given: Policy) -> None:
    text = render(given, RulesOptions())
    openslo_rules.check(list(yaml.safe_load_all(text)))
    found = read(text, "slo.yaml")
    assert found.policy == given
    assert found.notes == ()
    assert Policy.read(policy_file.write(found.policy), "sla.yaml") == given
