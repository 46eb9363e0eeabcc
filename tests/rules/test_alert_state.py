"""The life of alerts and what receivers are told of it, against a model that looks at the whole history each time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from rules.policies import OTHERS, PREDICT, policy
from stagetrace.rules import burn
from stagetrace.rules.alerts import (
    FIRING,
    PENDING,
    RESOLVED,
    Alert,
    Labels,
    Message,
    Seen,
    Told,
    advance,
    aged,
    delivered,
    due,
    expanded,
    untold,
)
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.prometheus import alert_rules

S = 10**9
ONE: Labels = (("alertname", "A"), ("sla_objective", "predict"))
OTHER: Labels = (("alertname", "A"), ("sla_objective", "other"))
HISTORIES = st.lists(st.tuples(st.sampled_from([True, True, False, None]), st.integers(0, 60)), max_size=40)


HOLDS, ENDS = Seen("rule", ONE, holds=True), Seen("rule", ONE, holds=False)


def lived(history: list[tuple[bool | None, int]], for_s: float) -> list[Alert | None]:
    """Return the alert after each look of a history."""
    alerts: dict[Labels, Alert] = {}
    found = []
    for number, (holds, elapsed_s) in enumerate(history):
        alerts = advance(alerts, [Seen("rule", ONE, holds, for_s)], {"rule"}, elapsed_s, (number + 1) * S)
        found.append(alerts.get(ONE))
    return found


def expected(history: list[tuple[bool | None, int]], for_s: float) -> str | None:
    """Return the state at the end of a history, cut at the looks that found the condition not to hold."""
    runs: list[list[int]] = [[]]  # the times of the looks that found it to hold
    for holds, elapsed_s in history:
        if holds is False:
            runs.append([])
        elif holds:
            runs[-1].append(elapsed_s)
    last = next((run for run in reversed(runs) if run), [])
    has_fired = bool(last) and sum(last[1:]) >= for_s
    if runs[-1]:
        return FIRING if has_fired else PENDING
    return RESOLVED if has_fired else None


@given(HISTORIES, st.sampled_from([0, 30, 90]))
def test_its_state_is_that_of_the_whole_history(history: list[tuple[bool | None, int]], for_s: float) -> None:
    for number, alert in enumerate(lived(history, for_s), 1):
        assert (alert and alert.state) == expected(history[:number], for_s)


def test_a_condition_at_the_edge_of_its_threshold_is_one_alert() -> None:
    """It came and went seven times in a quarter of an hour; it is resolved once it has not held for `keep_s`."""
    alerts: dict[Labels, Alert] = {}
    states = []
    edge: list[bool | None] = [True, False, True, False, False, None, None, True, False, False, False, False, False]
    for number, holds in enumerate(edge, 1):
        alerts = advance(alerts, [Seen("rule", ONE, holds, keep_s=60)], {"rule"}, 20, number * S)
        states.append((alerts[ONE].state, alerts[ONE].started_unix_nano))
    assert states == [(FIRING, S)] * 11 + [(RESOLVED, S)] * 2
    assert alerts[ONE].ended_unix_nano == 12 * S


@given(HISTORIES, st.sampled_from([0, 30]))
def test_unknown_changes_no_state(history: list[tuple[bool | None, int]], for_s: float) -> None:
    for before, after, (holds, _) in zip([None, *lived(history, for_s)], lived(history, for_s), history, strict=False):
        if holds is None:
            assert (before and before.state) == (after and after.state)
            assert after is None or after.state == RESOLVED or not after.is_known


def test_an_alert_whose_rule_is_gone_resolves_and_one_that_is_not_reported_is_kept() -> None:
    alerts = advance({}, [HOLDS, HOLDS._replace(labels=OTHER)], {"rule"}, 0, 1 * S)
    kept = advance(alerts, [HOLDS], {"rule"}, 30, 2 * S)
    assert [(kept[one].state, kept[one].is_known) for one in (ONE, OTHER)] == [(FIRING, True), (FIRING, False)]
    gone = advance(kept, [], {"another"}, 30, 3 * S)
    assert {(one.state, one.ended_unix_nano) for one in gone.values()} == {(RESOLVED, 3 * S)}


def test_each_time_that_an_alert_is_active_has_a_start_of_its_own() -> None:
    """Also where the clock stands still, or goes back: a receiver tells times apart by their start."""
    alerts: dict[Labels, Alert] = {}
    for holds in (True, False, True):
        alerts = advance(alerts, [Seen("rule", ONE, holds)], {"rule"}, 30, 5 * S)
    assert alerts[ONE].started_unix_nano != 5 * S
    ended = advance(alerts, [ENDS], {"rule"}, 30, 1 * S)[ONE]
    assert ended.ended_unix_nano >= ended.started_unix_nano


@dataclass
class Receiver:
    """A receiver that is away at some times; what it heard, and what that makes it believe."""

    told: dict[Labels, Told] = field(default_factory=dict)
    heard: list[Message] = field(default_factory=list)

    def get(self, alerts: dict[Labels, Alert], elapsed_s: float, now: int, *, away: bool) -> None:
        self.told = aged(self.told, elapsed_s)
        if not away:
            messages = due(alerts, self.told, 100, now)
            self.heard += messages
            self.told = delivered(self.told, messages)


@given(st.lists(st.tuples(st.sampled_from([True, False, None]), st.integers(0, 60), st.booleans()), max_size=40))
def test_a_receiver_that_is_there_knows_what_fires_and_hears_each_change_once(
    history: list[tuple[bool | None, int, bool]],
) -> None:
    receiver, alerts, lost, fired = Receiver(), dict[Labels, Alert](), 0, set[int]()
    for number, (holds, elapsed_s, away) in enumerate(history, 1):
        before, alerts = alerts, advance(alerts, [Seen("rule", ONE, holds)], {"rule"}, elapsed_s, number * S)
        lost += untold(before, alerts, receiver.told)
        receiver.get(alerts, elapsed_s, number * S, away=away)
        if ONE in alerts:
            fired.add(alerts[ONE].started_unix_nano)
        if not away:
            assert bool(receiver.told) == (ONE in alerts and alerts[ONE].state == FIRING)
    new = [one.started_unix_nano for one in receiver.heard if one.status == FIRING and not one.is_repeated]
    resolved = [one.started_unix_nano for one in receiver.heard if one.status == RESOLVED]
    assert len(new) == len(set(new))
    assert len(resolved) == len(set(resolved))
    assert set(resolved) <= set(new)
    still = {alerts[ONE].started_unix_nano} if ONE in alerts and alerts[ONE].state == FIRING else set()
    assert len(fired - set(new) - still) == lost


def test_what_fires_is_repeated_after_the_interval_and_no_sooner() -> None:
    receiver = Receiver()
    alerts = advance({}, [HOLDS], {"rule"}, 0, 1 * S)
    for number in range(2, 23):
        receiver.get(alerts, 10, number * S, away=False)
    assert [one.is_repeated for one in receiver.heard] == [False, True, True]


# --- Labels and annotations of rules with the values of one alert: all templates that the rules have are known.

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
