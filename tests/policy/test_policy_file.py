"""The policy file: what it says, what is said of what it cannot say, and that it is written as it is read."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stagetrace import PolicyError
from stagetrace.policy import policy_file
from stagetrace.policy.alert_options import AlertOptions, BurnAlert
from stagetrace.policy.objective import BREACH, EXCLUDED, NEVER_NS, Calendar, Condition, Deadline, Objective
from stagetrace.policy.policy import Policy
from stagetrace.policy.policy_file import MOST_BYTES, MOST_OBJECTIVES, PolicyFileError

if TYPE_CHECKING:
    from pathlib import Path

MS = 1_000_000
EVERYTHING = """\
version: 1
service: churn-api
objectives:
  - name: predict
    description: what customers wait for
    match:
      route: POST /predict
      model: churn*
      attributes: {tenant.tier: "*", "header:X-Plan": pro, "baggage:region": eu, http.response.status_code: 200}
    within: 250 ms
    target: 99.9 %
    window: month@Europe/Berlin
    first_chunk: 100ms
    per_token: 20ms
    errors: bad
    disconnect: breach
    stages: {preprocess: 60ms, inference: 150ms}
    segments: {by: [tenant.tier, "header:X-Region"], max: 20}
    overrides:
      - when: {tenant.tier: gold}
        within: 120ms
        stages: {inference: 90ms}
      - when: {tenant.tier: free}
        name: free
        p50: 1s
        excluded: false
        alerts: {burn: [], min_requests: 50, no_data: never, runbook: "https://example.com/free"}
      - when: {tenant.tier: test}
        excluded: true
    deadline: {from: [grpc-timeout, x-slo-ttft-ms], mode: replace}
    warmup: 30s
    continue: true
    alerts:
      burn: [{factor: 1.8, long: 1h, short: 5m}]
      labels: {tier: first, team: search}
  - match: {rpc: shop.Cart/Add}
    p99.9: 20ms
    window: {calendar: week, timezone: Europe/Berlin}
    segments: {by: tenant.tier}
    deadline: {from: x-request-timeout-ms}
  - match: {method: get, route: /health}
    excluded: true
  - within: 1m
alerts:
  burn:
    - {factor: 14.4, long: 1h, short: 5m}
    - {factor: 2, long: 90s, short: 5s, severity: ticket}
  min_requests: 0
  no_data: 10m
  labels: {team: ml}
  runbook: https://example.com/runbook
  webhook: http://127.0.0.1:8080/hook
  alertmanager: http://127.0.0.1:9093
  traces: http://127.0.0.1:16686
"""
SERVICE = Condition("service.name", "churn-api")
ALERTS = AlertOptions(
    burns=(BurnAlert(14.4, 3_600, 300), BurnAlert(2, 90, 5, "ticket")),
    min_requests=0,
    no_data_s=600,
    labels=(("team", "ml"),),
    runbook="https://example.com/runbook",
    webhook="http://127.0.0.1:8080/hook",
    alertmanager="http://127.0.0.1:9093",
    traces="http://127.0.0.1:16686",
)
OWN_ALERTS = ALERTS._replace(burns=(BurnAlert(1.8, 3_600, 300),), labels=(("team", "search"), ("tier", "first")))
PREDICT = Objective(
    "predict",
    "POST",
    "/predict",
    250 * MS,
    target=0.999,
    window_s=31 * 86_400,
    first_chunk_ns=100 * MS,
    per_token_ns=20 * MS,
    disconnect=BREACH,
    conditions=(
        SERVICE,
        Condition("ml.model.name", "churn*"),
        Condition("tenant.tier", "*"),
        Condition("header:x-plan", "pro"),
        Condition("baggage:region", "eu"),
        Condition("http.response.status_code", "200"),
    ),
    calendar=Calendar("month", "Europe/Berlin"),
    errors="bad",
    stages=(("preprocess", 60 * MS), ("inference", 150 * MS)),
    segment_by=("tenant.tier", "header:x-region"),
    max_segments=20,
    deadline=Deadline(("grpc-timeout", "x-slo-ttft-ms"), "replace"),
    warmup_s=30,
    continues=True,
    description="what customers wait for",
    alerts=OWN_ALERTS,
)


def override(of: Objective, tier: str, **changes: object) -> Objective:
    """Return an override for a tier."""
    fields = {name: getattr(of, name) for name in of.__slots__}
    conditions = (*of.conditions, Condition("tenant.tier", tier))
    named = {"name": f"{of.name}[tenant.tier={tier}]", "base": of.name, "description": ""}
    return Objective(**{**fields, "conditions": conditions, **named, **changes})


def test_a_file_says_all_that_an_objective_has() -> None:
    policy = Policy.read(EVERYTHING, "sla.yaml")
    gold, free, test, predict, cart, health, every = policy.objectives
    assert predict == PREDICT
    assert gold == override(PREDICT, "gold", within_ns=120 * MS, stages=(("inference", 90 * MS),))
    silent = OWN_ALERTS._replace(burns=(), min_requests=50, no_data_s=0, runbook="https://example.com/free")
    assert free == override(PREDICT, "free", name="free", within_ns=1000 * MS, target=0.5, alerts=silent)
    assert (test.name, test.excludes, test.base) == ("predict[tenant.tier=test]", True, "predict")
    assert test.conditions == (*PREDICT.conditions, Condition("tenant.tier", "test"))
    assert (cart.name, cart.method, cart.route) == ("shop.Cart/Add within 20ms", None, "shop.Cart/Add")
    assert (cart.within_ns, cart.target, cart.calendar) == (20 * MS, 0.999, Calendar("week", "Europe/Berlin"))
    assert (cart.segment_by, cart.deadline) == (("tenant.tier",), Deadline(("x-request-timeout-ms",)))
    assert health == Objective("GET /health excluded", "GET", "/health", NEVER_NS, excludes=True, conditions=(SERVICE,))
    assert every == Objective("* within 1m", None, "*", 60_000 * MS, conditions=(SERVICE,))
    assert policy.alerts == policy.alerts_of(cart) == ALERTS
    assert policy.alerts_of(gold) == OWN_ALERTS
    assert policy.source == "sla.yaml"


def test_the_keys_of_a_window_stand_in_either_order() -> None:
    windows = (
        "{calendar: month, timezone: Europe/Berlin}",
        "{timezone: Europe/Berlin, calendar: month}",
        "month@Europe/Berlin",
    )
    first, *others = (Policy.read(f"objectives: [{{within: 1s, window: {one}}}]", "") for one in windows)
    assert others == [first, first]
    assert first.objectives[0].calendar == Calendar("month", "Europe/Berlin")


def test_a_file_may_be_json(tmp_path: Path) -> None:
    """With tabs, escapes and all."""
    path = tmp_path / "sla.json"
    text = json.dumps(yaml.safe_load(EVERYTHING), indent="\t", ensure_ascii=True).replace("/", "\\/")
    path.write_text(text)
    assert Policy.load(str(path)) == Policy.read(EVERYTHING, "")


def test_the_text_is_a_path_or_an_inline_policy(tmp_path: Path) -> None:
    """One word with the ending of a policy file is one, whether or not it exists; any other word if it exists."""
    path = tmp_path / "my objectives"
    path.write_text("objectives: [{within: 1s}]")
    assert (
        Policy.load(str(path)).objectives
        == Policy.parse("* within 1s").objectives
        == Policy.load("* within 1s").objectives
    )
    with pytest.raises(PolicyError, match=r"cannot read the policy missing\.yml: No such file"):
        Policy.load(" missing.yml ")
    with pytest.raises(PolicyError, match="the word `within` is missing"):
        Policy.load("missing")
    with pytest.raises(PolicyError, match="the word `within` is missing"):
        Policy.load("x" * 10_000)


def wrong(text: str) -> list[str]:
    """Return what is wrong in a policy file, each problem in a line."""
    with pytest.raises(PolicyFileError) as caught:
        Policy.read(text, "sla.yaml")
    lines = str(caught.value).splitlines()
    assert 1 <= len(lines) <= 3
    assert lines[0].startswith("cannot read the policy sla.yaml:")
    return [one.text("sla.yaml") for one in caught.value.problems]


RULE = "objectives:\n  - match: {route: POST /predict}\n    within: 250ms\n    "


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: the file is empty"),
        ("# nothing\n", "1:1: the file is empty"),
        ("* within 1s", "1:2: this is not YAML: "),
        ("POST /predict within 1s", "1:1: a policy is the text 'POST /predict within 1s': write a mapping"),
        ("objectives:", "1:12: a policy without a list of objectives"),
        ("objectives: []", "1:13: a policy without a list of objectives"),
        ("version: 1", "1:1: a policy without a list of objectives"),
        ("version: 2\nobjectives: [{within: 1s}]", "1:10: version: there stands the number 2: write 1"),
        ("objectives:\n- withn: 1s", "2:3: 'withn' is no key of an objective: write within"),
        ("objectives:\n- threshold: 1s", "2:3: 'threshold' is no key of an objective: write within"),
        (
            "objectives:\n- {match: {route: /a}, witin: 50ms}",
            "2:24: 'witin' is no key of an objective: write within",
        ),
        ("objectives:\n- {}", "2:3: an objective without within: write within: 250ms, or excluded: true"),
        ("objectives:\n- 5", "2:3: an objective is the number 5: write a mapping"),
        ("slos: []", "1:1: 'slos' is no key of a policy: write objectives"),
        ("objectives: [{within: 250}]", "1:23: within: the duration '250' has no unit (us, ms, s, m): write 250ms"),
        ("objectives: [{within: 1h}]", "1:23: within: the duration '1h' has the unit 'h'"),
        ("objectives: [{within: [1s]}]", "1:23: within: there stands a list: write it like 250ms"),
        ("objectives: [{within: true}]", "1:23: within: there stands true: write it like 250ms"),
        (RULE + "target: 101%", "4:13: target: '101%' is not a percentage above 0% and up to 100%"),
        (RULE + "target: 99.9", "4:13: target: '99.9' is not a percentage above 0% and up to 100%: write 99.9%"),
        (RULE + "target: 0.999", "4:13: target: '0.999' is not a percentage"),
        (RULE + "p99: 1s", "4:5: p99 stands beside within: write two objectives"),
        (RULE + "window: 28", "4:13: window: the window '28' has no unit (s, m, h, d, w): write 28d"),
        (RULE + "window: month@Europe/Berlni", "4:13: window: 'Europe/Berlni' is no time zone"),
        (RULE + "window: {calendar: month, timezone: ../../etc/passwd}", "4:41: window: '../../etc/passwd' is no"),
        (RULE + "window: {calendar: moon}", "4:24: calendar: there stands the text 'moon': write month"),
        (RULE + "stages: {inferense: 1s}", "4:14: 'inferense' is no stage: write inference"),
        (RULE + "stages: {inference: 1}", "4:25: the duration '1' has no unit"),
        (RULE + "stages: [inference]", "4:13: stages: there stands a list: write keys and values"),
        (RULE + "errors: good", "4:13: errors: there stands the text 'good': write one of bad"),
        (RULE + "disconnect: ignored", "4:17: disconnect: there stands the text 'ignored'"),
        (RULE + "continue: yes", "4:15: continue: there stands the text 'yes': write true or false"),
        (RULE + "name: a;b", "4:11: name: 'a;b' is no name"),
        (RULE + 'name: "a\\nb"', "is no name"),
        (RULE + "name: 5", '4:11: name: there stands the number 5: write it in quotes: "5"'),
        (RULE + "name: [a]", "4:11: name: there stands a list: write a text"),
        (RULE + "description: ''", "4:18: description: the text is empty"),
        (RULE + f"name: {'x' * 1001}", "4:11: name: the text has 1001 characters"),
        (RULE + "segments: {by: [a b]}", "4:21: 'a b' holds white space"),
        (RULE + "segments: {by: ['header:']}", "4:21: 'header:' is no key"),
        (RULE + "segments: {max: 5}", "4:15: segments: by is missing"),
        (RULE + "segments: {by: [a], max: 1000000}", "4:30: max: there stands the number 1000000: write"),
        (RULE + "segments: {by: [a, a]}", "4:20: by: the list repeats a key or is long"),
        (RULE + "deadline: {from: [x-request-timeout]}", "write x-request-timeout-ms"),
        (RULE + "overrides: [{within: 1s}]", "4:17: an override without when"),
        (RULE + "overrides: [{when: {a: b}, match: {}}]", "'match' is no key of an override"),
        (RULE + "overrides: [{when: {a: b}}, {when: {a: b}}]", "4:33: the name 'POST /predict within 250ms[a=b]'"),
        (RULE + "excluded: true", "3:5: within says nothing of what is excluded"),
        (RULE + "match: {}", "4:5: 'match' stands twice: first in line 2"),
        (RULE + "<<: {}", "4:5: a merge key is not read"),
        (RULE + "name: &a x", "4:11: an anchor is not read: remove &a"),
        (RULE + "name: *a", "4:11: an alias is not read: write in place of *a"),
        (RULE + "name: !!python/object/apply:os.system [x]", "the tag 'tag:yaml.org,2002:python/object"),
        (RULE + "name: !x y", "4:11: the tag '!x' is not read"),
        (RULE + "[a]: b", "4:5: a key is a list: write a word"),
        (RULE + "name: {a: b", "this is not YAML: while parsing a flow mapping"),
        (RULE + "\tname: a", "indent with spaces"),
        (RULE + "name: \x07", "4:11: this character is not allowed in YAML"),
        ("objectives:\n- match: {route: POST GET /x}\n  within: 1s", "2:18: match: 'POST GET /x' is no route"),
        ("objectives:\n- match: {route: 99%}\n  within: 1s", "2:18: match: '99%' is no route"),
        ("objectives:\n- match: {rpc: /shop.Cart/Add}\n  within: 1s", "2:16: rpc: '/shop.Cart/Add' is no"),
        ("objectives:\n- match: {rpc: a/b, route: /x}\n  within: 1s", "2:21: match: route stands beside rpc"),
        ("objectives:\n- match: {method: GET, route: GET /x}\n  within: 1s", "2:11: match: the route has a method"),
        ("objectives:\n- match: {model: a, attributes: {ml.model.name: b}}\n  within: 1s", "beside model"),
        ("service: a\nobjectives:\n- match: {service: b}\n  within: 1s", "3:3: service stands at the top"),
        (f"{RULE}\n---\n{RULE}", "5:1: a second document begins"),
        ("[" * 30 + "]" * 30, "1:21: more than 20 levels lie within each other"),
        ("[" * 100_000, "sla.yaml:1:"),
        (RULE + "\nalerts: {burn: [{factor: 0, long: 1h, short: 5m}]}", "factor: there stands the number 0"),
        (RULE + "\nalerts: {burn: [{factor: 1, long: 5m, short: 1h}]}", "the short window is longer than the long one"),
        (RULE + "\nalerts: {burn: [{factor: 1, long: 5m}]}", "short is missing"),
        (RULE + "\nalerts: {burn: [{factor: 1, long: 5, short: 1m}]}", "long: the window '5' has no unit"),
        (RULE + "\nalerts: {burn: [{factor: 1, long: month, short: 1m}]}", "long: 'month' is a calendar window"),
        (RULE + "\nalerts: {labels: {a-b: c}}", "'a-b' is no name of a label"),
        (RULE + "\nalerts: {runbook: example.com}", "runbook: this is no URL"),
        (RULE + "\nalerts: {webhook: 'file:///etc/passwd'}", "webhook: this is no URL"),
        (RULE + "\nalerts: {min_request: 1}", "'min_request' is no key of alerts: write min_requests"),
        (RULE + "\nalerts: {no_data: always}", "(s, m, h, d, w): write it like 5m, or never"),
        (
            RULE + "alerts: {webhook: 'http://a'}",
            "4:14: alerts: webhook is one for all objectives: write it into alerts: at the top of the file",
        ),
        (RULE + "alerts: {burn: [{factor: 0, long: 1h, short: 5m}]}", "4:30: factor: there stands the number 0"),
        ("objectives: [{excluded: true, alerts: {burn: []}}]", "alerts says nothing of what is excluded"),
    ],
)  # fmt: skip
def test_a_broken_file_is_told_where_and_what_fixes_it(text: str, problem: str) -> None:
    assert any(problem in one for one in wrong(text)), wrong(text)


def test_all_that_is_wrong_in_a_file_is_found_up_to_a_bound() -> None:
    """The message has the first problem, and how many more there are."""
    text = "objectives:\n" + "- {within: 1, target: 200%}\n" * 30
    with pytest.raises(PolicyFileError) as caught:
        Policy.read(text, "sla.yaml")
    assert (len(caught.value.problems), caught.value.more) == (20, 40)
    assert str(caught.value).splitlines()[-1] == "59 more are wrong: stagetrace sla check sla.yaml"


def test_a_file_that_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("objectives:\n- name: Größe".encode("latin-1"))
    with pytest.raises(PolicyError, match=r"latin\.yaml:2:11: the byte 0xf6 is not UTF-8"):
        Policy.load(str(latin))
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for path in (tmp_path / "folder.yaml", pipe):
        path.mkdir() if path != pipe else None
        with pytest.raises(PolicyError, match="cannot read the policy"):
            Policy.load(str(path))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MOST_BYTES + 1))
    with pytest.raises(PolicyError, match="larger than 4 MiB"):
        Policy.load(str(large))
    marked = tmp_path / "marked.yaml"
    marked.write_bytes("objectives: [{within: 1s}]".encode("utf-8-sig"))
    assert Policy.load(str(marked)).objectives == Policy.parse("* within 1s").objectives


@pytest.mark.thorough
def test_ten_thousand_objectives_are_read_and_one_more_is_not() -> None:
    rules = "".join(
        f"- {{name: r{i}, match: {{route: POST /r{i}}}, within: {i + 1}ms}}\n" for i in range(MOST_OBJECTIVES)
    )
    policy = Policy.read(f"objectives:\n{rules}", "sla.yaml")
    assert len(policy.objectives) == MOST_OBJECTIVES
    found = policy.objective("POST", f"/r{MOST_OBJECTIVES - 1}")
    assert found is not None
    assert found.within_ns == MOST_OBJECTIVES * MS
    assert "more than 10000 objectives" in wrong(f"objectives:\n{rules}- within: 1s\n")[0]


def test_a_policy_that_is_written_reads_back_as_the_same() -> None:
    policy = Policy.read(EVERYTHING, "")
    assert Policy.read(policy_file.write(policy), "") == policy


WORDS = st.sampled_from(
    ["/predict", "*", "/a(b)", "pkg.Service/Method", "/#{x}", "/y's", "/é", "null", "1e3", "0x10", "~", "yes"]
)
AMOUNTS = st.integers(1, 10**7).map(lambda number: f"{number / 1000:.12g}")
RULES = st.builds(
    lambda method, route, amount, unit, bounds, disconnect, target, window: " ".join(
        [*method, route, "within", amount + unit, *bounds, *disconnect, *target, *window]
    ),
    st.sampled_from([[], ["POST"], ["WEBSOCKET"]]),
    WORDS,
    AMOUNTS,
    st.sampled_from(["us", "ms", "s", "m"]),
    st.sampled_from([[], ["first_chunk", "1m"], ["per_token", "1.5us", "per_chunk", "120s"]]),
    st.sampled_from([[], ["disconnect", EXCLUDED], ["disconnect", BREACH]]),
    st.one_of(st.just([]), st.integers(1, 10**7).map(lambda share: ["for", f"{share / 10**5:.12g}%"])),
    st.sampled_from([[], ["over", "90m"], ["over", "0.1m"], ["over", "2w"], ["over", "quarter@Europe/Berlin"]]),
)


@given(st.lists(RULES | WORDS.map(lambda route: f"{route} excluded"), min_size=1, max_size=5, unique=True))
def test_an_inline_policy_is_the_same_as_a_file(rules: list[str]) -> None:
    """Inline, written as a file and read back: equal objectives, names included."""
    try:
        policy = Policy.parse("; ".join(rules))
    except PolicyError:  # less than a nanosecond
        return
    if len({one.name for one in policy.objectives}) == len(policy.objectives):
        assert Policy.read(policy_file.write(policy), "").objectives == policy.objectives
