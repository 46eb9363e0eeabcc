"""What `stagetrace up` counts for its alerts is what one gets by counting, and decides what `burn.is_burning` does."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from answers.made import MS, NOON, Made, store
from rules.policies import policy
from stagetrace.backend.alerts.counting import Replayed, add_counts, count
from stagetrace.policy import entry_span
from stagetrace.policy.alert_options import AlertOptions, BurnAlert
from stagetrace.policy.objective import SERVICE_KEY, Condition, Objective
from stagetrace.rules import alerts, burn
from stagetrace.rules.alerts import Group
from stagetrace.rules.burn import Counts
from stagetrace.rules.prometheus import NO_DATA, SILENT_S
from stagetrace.store import open_store
from stagetrace.store.local.counts import CountStore, Point
from stagetrace.store.local.reader import LocalReader

if TYPE_CHECKING:
    from pathlib import Path

S = 1000 * MS
END = NOON + 10 * 86_400 * S
PREDICT = Objective("predict", "POST", "/predict", 50 * MS, 0.9, 3_600, segment_by=("tier",), continues=True)
OWN = AlertOptions((BurnAlert(1.3, 900, 60),), no_data_s=120)
FAST = Objective("fast", "POST", "/predict", 10 * MS, 0.5, 3_600, alerts=OWN)
EMBED = Objective("embed", "POST", "/embed", 50 * MS, 0.9, 3_600, conditions=(Condition(SERVICE_KEY, "shop*"),))
POLICY = policy(PREDICT, FAST, EMBED, burns=(BurnAlert(1.5, 600, 60), BurnAlert(1.1, 3_600, 300)), no_data_s=120)
WINDOWS = alerts.windows(alerts.watched(POLICY))


def traffic(count: int = 3_000) -> list[Made]:
    """Return requests of two hours; half of them are judged by two objectives, and carry both verdicts."""
    chance = random.Random(7)
    made = []
    for number in range(1, count + 1):
        start = END - round(7_200 * S * chance.random() ** 3) - 1
        one = Made(number, start, service=chance.choice(["shop", "depot"]), resource={"service.namespace": "eu"})
        word = "breach" if chance.random() < 0.3 else "excluded" if chance.random() < 0.1 else "good"
        if chance.random() < 0.5:
            more = {"sla.objective": "predict", "sla.segment": chance.choice(["gold", "other"])}
            other = "good" if word == "breach" and chance.random() < 0.5 else word
            several = [(word, "predict", "90% over 1h"), (other, "fast", "50% over 1h")]
            more["sla.verdicts"] = entry_span.write(several)
        else:
            more = {"sla.objective": chance.choice(["embed", "of another policy"])}
        breached = {} if word == "excluded" else {"sla.breached": word == "breach"}
        made.append(replace(one, verdict=word, attributes={**more, **breached}))
    return made


def by_counting(requests: list[Made]) -> dict[Group, dict[float, Counts]]:
    """Return the judged requests of each group and window, one by one."""
    found: dict[Group, dict[float, Counter[str]]] = {}
    for one in requests:
        first = str(one.attributes["sla.objective"])
        text = one.attributes.get("sla.verdicts")
        words = {each.objective: each.word for each in entry_span.read(text)[0]} if text else {first: str(one.word)}
        for name, word in words.items():
            group = Group("eu", one.service, name)
            segments = [group._replace(segment=one.attributes["sla.segment"])] if name == "predict" else []
            for key in (group, *segments):
                for window in WINDOWS:
                    if one.start_unix_nano >= END - window * S:
                        found.setdefault(key, {}).setdefault(window, Counter())[word] += 1
    return {
        group: {window: Counts(of["good"], of["breach"]) for window, of in windows.items()}
        for group, windows in found.items()
        if group.objective != "of another policy"
    }


@pytest.fixture(scope="module")
def requests() -> list[Made]:
    return traffic()


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory, requests: list[Made]) -> alerts.Counted:
    folder = store(tmp_path_factory.mktemp("alerts") / "store", requests)
    with open_store(str(folder)) as reader:
        found = count(reader, POLICY, WINDOWS, END)
    assert found.left == 0
    return found.counts


def test_counts_of_all_windows_are_those_by_counting(counts: alerts.Counted, requests: list[Made]) -> None:
    expected = by_counting(requests)
    assert len(expected) == 10
    assert {group: dict(windows) for group, windows in counts.items()} == expected


def test_an_alert_burns_where_the_rule_says_so_by_these_counts(counts: alerts.Counted, requests: list[Made]) -> None:
    expected = by_counting(requests)
    rules = alerts.watched(POLICY)
    seen = [(dict(one.labels), one.holds) for one in alerts.seen(rules, counts)]
    compared = set()
    for group, of in expected.items():
        if group.objective == "embed" and group.service != "shop":  # its condition
            continue
        objective = next(one for one in POLICY.objectives if one.name == group.objective)
        about = {"sla_objective": objective.name, "job": f"eu/{group.service}", "sla_segment": group.segment or ""}
        for alert in burn.alerts(objective, POLICY.alerts_of(objective)):
            own = {**about, "burn_rate": f"{alert.factor:g}"}.items()
            (holds,) = (holds for labels, holds in seen if own <= {"sla_segment": "", **labels}.items())
            assert holds == burn.is_burning(alert, of)
            compared.add(holds)
    assert compared == {True, False}
    assert not any(of["sla_objective"] == "embed" and "depot" in of.get("job", "") for of, _ in seen)


def judged(counts: dict[float, Counts | None], objective: Objective = EMBED) -> dict[str, bool | None]:
    """Return what is to be said of the alerts of one service, by long window or name."""
    group = Group("", "shop", objective.name)
    seen = alerts.seen(alerts.watched(policy(objective, **ALERTS)), {group: counts} if counts else {})
    return {dict(one.labels).get("long_window", dict(one.labels)["alertname"]): one.holds for one in seen}


ALERTS = {"burns": (BurnAlert(1.5, 600, 60),), "no_data_s": 120}
BAD, GOOD = Counts(50, 50), Counts(100, 0)


@pytest.mark.parametrize(
    ("short", "long", "holds"),
    [
        (BAD, BAD, True),
        (GOOD, BAD, False),
        (Counts(), BAD, None),  # nothing shows that the fault is over
        (Counts(), Counts(), False),
        (Counts(1, 5), Counts(4, 5), False),  # fewer than min_requests
        (None, BAD, None),  # it is not known of how many the stored ones are a sample
        (BAD, None, None),
    ],
)
def test_without_judged_requests_in_the_short_window_an_alert_stays_as_it_is(
    short: Counts | None, long: Counts | None, holds: bool | None
) -> None:
    assert judged({60: short, 600: long, SILENT_S: BAD})["10m"] is holds


def test_an_objective_has_the_alerts_of_its_own() -> None:
    """In place of those of all: other windows, and none where there is no data."""
    own = replace(EMBED, alerts=AlertOptions((BurnAlert(1.2, 300, 60),), min_requests=0))
    assert judged({60: BAD, 300: Counts(0, 1), 600: GOOD, SILENT_S: GOOD}, own) == {"5m": True}
    assert judged({60: BAD, 300: GOOD, 600: BAD, SILENT_S: BAD}, own) == {"5m": False}


def test_no_data_is_an_alert_of_its_own_of_each_service_that_was_heard_of() -> None:
    assert judged({60: Counts(), 600: BAD, SILENT_S: BAD})[NO_DATA] is True
    assert judged({60: GOOD, 600: BAD, SILENT_S: BAD})[NO_DATA] is False
    assert judged({60: None, 600: BAD, SILENT_S: BAD})[NO_DATA] is False
    assert judged({}) == {NO_DATA: True}


SAMPLED = [
    replace(Made(number, END - number * S), objective="embed", within_ms=50.0, probability=0.25, verdict=word)
    for number, word in enumerate(["breach", "good", "good", "good"] * 10, 1)
]


def counted(folder: Path, until: int, good: int, breaches: int) -> None:
    """Have the service send what it has counted since 3,000 s ago."""
    exact, begin = CountStore(folder), END - 3_000 * S
    for at, numbers in ((begin, (0, 0)), (until, (good, breaches))):
        each = zip(("good", "breach"), numbers, strict=True)
        exact.append([Point("shop", "1", begin, "/predict", "embed", word, number, at) for word, number in each])
    exact.close()


def test_of_a_service_that_samples_stored_requests_count_by_their_weight(tmp_path: Path) -> None:
    """And its own counts as soon as it has sent them, together with what it has not counted yet."""
    folder = store(tmp_path / "store", SAMPLED)
    group = Group("", "shop", "embed")
    with open_store(str(folder)) as reader:
        assert count(reader, POLICY, WINDOWS, END).counts[group][60] == Counts(4 * 30, 10)
    until = END - 20 * S
    counted(folder, until, 500, 7)
    later = [one for one in SAMPLED if one.start_unix_nano + one.took_ms * MS >= until]
    good, breaches = (sum(one.word == word for one in later) for word in ("good", "breach"))
    with open_store(str(folder)) as reader:
        found = count(reader, POLICY, WINDOWS, END).counts[group][3_600]
    assert found == Counts(500 + 4 * good, 7 + breaches)


def test_what_a_collector_has_dropped_is_counted_by_the_service(tmp_path: Path) -> None:
    """As the Collector does that keeps all breaches; but a count that lacks what is stored is not taken."""
    folder = store(tmp_path / "store", [replace(one, probability=None) for one in SAMPLED if one.word == "breach"])
    group = Group("", "shop", "embed")
    counted(folder, END - 30 * S, 400, 9)
    with open_store(str(folder)) as reader:
        assert count(reader, POLICY, WINDOWS, END).counts[group][3_600] == Counts(400, 9 + 8)
    other = store(tmp_path / "other", [replace(one, probability=None) for one in SAMPLED])
    counted(other, END, 4, 10)
    with open_store(str(other)) as reader:
        assert count(reader, POLICY, WINDOWS, END).counts[group][3_600] == Counts(30, 10)


def test_where_it_is_not_known_how_a_service_samples_nothing_is_said(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", [replace(one, probability=0.0) for one in SAMPLED])
    with open_store(str(folder)) as reader:
        found = count(reader, POLICY, WINDOWS, END).counts[Group("", "shop", "embed")]
    assert set(found.values()) == {None}


UNJUDGED = [
    replace(
        one,
        verdict=None,
        duration_ms=chance.choice([5.0, 20.0, 80.0]),
        route=chance.choice(["/predict", "/embed", "/health"]),
        attributes=chance.choice(
            [{}, {"sla.objective": "of another policy", "sla.verdict": "good", "sla.breached": False}]
        ),
    )
    for chance in [random.Random(3)]
    for one in traffic(1_500)
]


def replayed(requests: list[Made], now: int = END) -> dict[Group, dict[float, Counts]]:
    """Return what the policy says of requests, one by one; windows begin with their bucket."""
    found: dict[Group, dict[float, Counts]] = {}
    width = round(min(WINDOWS) / 10 * S)
    for one in requests:
        within = {"/predict": {"predict": 50, "fast": 10}, "/embed": {"embed": 50} if one.service == "shop" else {}}
        for name, bound in within.get(str(one.route), {}).items():
            counts = found.setdefault(Group("eu", one.service, name), dict.fromkeys(WINDOWS, Counts()))
            for window in WINDOWS:
                if one.start_unix_nano // width >= (now - round(window * S)) // width:
                    good = one.took_ms <= bound
                    counts[window] = Counts(counts[window].good + good, counts[window].breaches + (not good))
    return found


def test_requests_without_a_verdict_of_the_policy_are_judged_by_it(tmp_path: Path) -> None:
    """Each once, look by look, or all at once after a restart; those that it has judged already are not among them."""
    looks = Replayed(POLICY, WINDOWS)
    named = [one for one in traffic(300) if one.attributes["sla.objective"] != "of another policy"]
    judged_before = [replace(one, number=one.number + 10_000) for one in named]
    first, second = UNJUDGED[:700], UNJUDGED[700:]
    for part in (first, [*second, *judged_before]):
        folder = store(tmp_path / "store", part)
        with LocalReader.open(folder) as reader:
            found = looks.counts(reader, END)
    expected = replayed(UNJUDGED)
    assert found == expected
    assert (looks.judged, looks.skipped) == (len(UNJUDGED), 0)
    with LocalReader.open(folder) as reader:
        assert Replayed(POLICY, WINDOWS).counts(reader, END) == expected
        assert count(reader, POLICY, WINDOWS, END).has_others
        later = END + 3_000 * S
        assert looks.counts(reader, later) == replayed(UNJUDGED, later)


def test_of_requests_that_are_too_many_windows_are_known_as_far_as_all_were_judged(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", UNJUDGED)
    with LocalReader.open(folder) as reader:
        looks = Replayed(POLICY, WINDOWS, 900)
        found = looks.counts(reader, END)[Group("eu", "shop", "predict")]
    assert looks.skipped
    expected = replayed(UNJUDGED)[Group("eu", "shop", "predict")]
    assert {found[window] == expected[window] for window in (60, 300)} == {True}
    assert found[3_600] is None


def test_a_verdict_that_depends_on_what_is_not_stored_is_unknown(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", [replace(Made(1, END - S), service="shop", route="/predict")])
    gold = policy(replace(FAST, conditions=(Condition("header:x-plan", "gold"),)))
    with LocalReader.open(folder) as reader:
        assert Replayed(gold, [60]).counts(reader, END) == {Group("", "shop", "fast"): {60: None}}


def test_counts_of_the_same_objective_are_added() -> None:
    one, other = Group("", "a", "predict"), Group("", "b", "predict")
    found = add_counts(
        {one: {60: Counts(1, 2), 300: None}}, {one: {60: Counts(3, 4), 300: Counts()}, other: {60: Counts(5, 6)}}
    )
    assert found == {one: {60: Counts(4, 6), 300: None}, other: {60: Counts(5, 6)}}
