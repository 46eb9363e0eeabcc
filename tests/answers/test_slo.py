"""`stagetrace slo`: its counts are those that one gets by counting, in any window, of any store."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import MS, NOON, Made, lines, store
from cli.running import answered, printed
from stagetrace.backend.alerts import saved
from stagetrace.output.units import shown
from stagetrace.policy.policy import Policy
from stagetrace.store.local.counts import CountStore, Point

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

found = partial(answered, "slo", "--store", code=None)
DAY = 86_400 * 10**9
HOUR = 3600 * 10**9
MINUTE = 60 * 10**9
END = NOON + 40 * DAY
OLD, NEW, EMBED = "POST /predict within 50ms", "POST /predict within 40ms", "* within 50ms"
CHANGED = END - 11 * DAY


def traffic(count: int = 5000) -> list[Made]:
    """Return requests of 40 days, most of them late: and of each kind, under an objective that changes."""
    chance = random.Random(5)
    made = []
    for number in range(1, count + 1):
        ago = round(40 * DAY * chance.random() ** 6)
        route = chance.choice(["/predict", "/predict", "/embed", "/free", "/health"])
        start = END - ago - 1
        objective = {"/predict": NEW if start >= CHANGED else OLD, "/embed": EMBED}.get(route)
        more: dict[str, Any] = {"within_ms": None if route == "/free" else 50.0, "objective": objective}
        if route == "/health" or number % 41 == 0:
            more["verdict"] = "excluded"
        if route == "/embed":
            more["attributes"] = {"sla.target": "90% over 7d"}
        if route == "/predict" and start >= CHANGED:
            more["attributes"] = {"sla.target": "99.9% over 36h", "tenant.id": chance.choice(["a", "b"])}
        took = 80.0 if chance.random() < 0.03 else 20.0
        made.append(Made(number, start, {"inference": took}, service=chance.choice("st"), route=route, **more))
    return made


def at(ns: int) -> str:
    """Return a time as an option takes it, to the nanosecond."""
    return f"{shown(ns, digits=9).replace(' ', 'T')}Z"


def counted(requests: Iterable[Made], since: int, until: int) -> dict[tuple[str, ...], tuple[int, int]]:
    """Return how many were judged and how many were breaches, by service, route and objective."""
    judged: Counter[tuple[str, ...]] = Counter()
    breaches: Counter[tuple[str, ...]] = Counter()
    for one in requests:
        if since <= one.start_unix_nano < until and one.word in ("good", "breach"):
            key = (one.service, one.route or one.name, str(one.all_attributes["sla.objective"]))
            judged[key] += 1
            breaches[key] += one.word == "breach"
    return {key: (judged[key], breaches[key]) for key in judged}


@pytest.fixture(scope="module")
def requests() -> list[Made]:
    return traffic()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, requests: list[Made]) -> Path:
    """Return a store with all of them, some of which came twice."""
    return store(store(tmp_path_factory.mktemp("slo") / "store", requests), requests[::7])


def test_counts_in_any_window_are_those_by_counting(folder: Path, requests: list[Made]) -> None:
    chance = random.Random(1)
    for _ in range(6):
        since, until = sorted(END - round(40 * DAY * chance.random() ** 3) for _ in range(2))
        answer = found(folder, "--since", at(since), "--until", at(until))
        told = {
            (one["service"], one["route"], one["objective"]): (one["judged"], one["breaches"])
            for one in answer["objectives"]
        }
        assert told == counted(requests, since, until)
        inside = [one for one in requests if since <= one.start_unix_nano < until]
        assert answer["unjudged"] == sum(one.word is None for one in inside)


def test_each_objective_has_its_own_window_target_and_burn_rates(folder: Path, requests: list[Made]) -> None:
    """By definition: the share of breaches, over the share that is allowed."""
    until = END - 2 * HOUR
    answer = found(folder, "--until", at(until), code=1)
    wanted = {NEW: (0.999, 36 * HOUR), EMBED: (0.9, 7 * DAY), OLD: (0.99, 28 * DAY)}
    assert {one["objective"] for one in answer["objectives"]} == set(wanted)
    for one in answer["objectives"]:
        target, window = wanted[one["objective"]]
        key = (one["service"], one["route"], one["objective"])
        judged, breaches = counted(requests, until - window, until)[key]
        assert (one["judged"], one["breaches"], one["target"]) == (judged, breaches, target)
        assert one["attainment"] == (judged - breaches) / judged
        assert one["interval"][0] < one["attainment"] < one["interval"][1]
        assert one["missed"] == (one["attainment"] < target)
        assert one["budget_left"] == pytest.approx(1 - breaches / judged / (1 - target))
        for name, length in {"5m": 5 * MINUTE, "30m": 30 * MINUTE, "1h": HOUR, "6h": 6 * HOUR, "3d": 3 * DAY}.items():
            all_of, late = counted(requests, until - length, until).get(key, (0, 0))
            assert one["burn"][name] == (pytest.approx(late / all_of / (1 - target)) if all_of else None)
    left = [one["budget_left"] for one in answer["objectives"]]
    assert left == sorted(left)
    missed = sum(one["missed"] for one in answer["objectives"])
    assert answer["sentence"].endswith(f"{missed} of {len(left)} objectives are missed.")
    assert {(one["before"], one["after"]) for one in answer["changes"]} == {(OLD, f"{NEW} for 99.9% over 36h")}


def test_segments_are_counted_apart(folder: Path, requests: list[Made]) -> None:
    answer = found(folder, "--until", at(END), "--by", "tenant.id", "--route", "/predict", "--service", "s")
    told = {one["segment"]: one["judged"] for one in answer["objectives"] if one["objective"] == NEW}
    expected = {
        tenant: sum(judged for judged, _ in counted([one for one in requests if one.service == "s"
            and one.route == "/predict" and one.attributes.get("tenant.id") == tenant], END - 36 * HOUR, END).values())
        for tenant in ("a", "b")
    }  # fmt: skip
    assert told == expected


@pytest.mark.parametrize("by", ["breached", "http_status", "weight", "service", "path", 'o\'neil "x"'])
def test_any_column_or_attribute_makes_segments(folder: Path, requests: list[Made], by: str) -> None:
    answer = found(folder, "--until", at(END), "--since", at(END - HOUR), "--by", by)
    assert sum(one["judged"] for one in answer["objectives"]) == sum(
        judged for judged, _ in counted(requests, END - HOUR, END).values()
    )
    assert all(isinstance(one["segment"], (str, type(None))) for one in answer["objectives"])


def test_a_file_ends_with_its_newest_request(tmp_path: Path, folder: Path, requests: list[Made]) -> None:
    newest = max(one.start_unix_nano for one in requests)
    path = lines(tmp_path / "spans.jsonl", requests)
    of_file = found(path)
    of_store = found(folder, "--until", at(newest + 1))
    assert of_file["until_unix_nano"] == newest + 1
    for one in (*of_file["objectives"], *of_store["objectives"]):
        assert one.pop("held_s") > 0.98 * one["window_s"]  # of a file it is known what came before the window
    assert of_file == of_store


def many(count: int, breaches: int, start: int = NOON, **more: Any) -> list[Made]:
    """Return requests a second apart, the last of them breaches."""
    took = [20.0] * (count - breaches) + [80.0] * breaches
    return [Made(n, start + (n - 1) * 10**9, {"inference": ms}, **more) for n, ms in enumerate(took, 1)]


def test_the_sentence_and_the_exit_code(tmp_path: Path) -> None:
    good = store(tmp_path / "good", many(1000, 8, within_ms=50.0))
    shown = printed("slo", "--long", "--store", good, "--until", at(NOON + 1000 * 10**9))
    assert shown.splitlines()[0] == (
        "POST /predict: 99.2 % [98.4, 99.7] of its requests met it, 99 % are wanted; 20 % of its error budget is left, "
        "at the rate of the last hour for 7 days (the store holds 16.7 minutes of 28 days)."
    )
    assert "Alert" not in shown
    bad = store(tmp_path / "bad", many(1000, 600, within_ms=50.0))
    shown = printed("slo", "--long", "--store", bad, "--until", at(NOON + 1000 * 10**9), code=1)
    kept = "POST /predict: 40.0 % [36.9, 43.1] of its requests met it, 99 % are wanted"
    assert shown.startswith(f"{kept}; its error budget is spent 60 times over")
    assert "Alert" not in shown  # nobody evaluates any, for there is no policy
    policy = ("--policy", "POST /predict within 50ms")
    shown = printed("slo", "--long", "--store", bad, "--until", at(NOON + 1000 * 10**9), *policy, code=1)
    alert = "POST /predict of service shop has a burn rate of 60 in 1h and 100 in 5m (alert at 14.4)"
    assert f"\nAlert: {alert}.\n" in shown


def test_the_policy_that_up_evaluates_counts_unless_another_is_named(tmp_path: Path) -> None:
    """Before that of services, STAGETRACE_SLA; one that cannot be read is named, and the answer goes on without."""
    folder = store(tmp_path / "store", many(1000, 8, within_ms=50.0))
    asked = ("slo", "--store", folder, "--until", at(NOON + 1000 * 10**9))

    def told(*more: str, code: int = 1, **variables: str) -> tuple[float, int]:
        (one,) = answered(*asked, *more, code=code, **variables)["objectives"]
        return one["target"], len(one["alerts"])

    assert told(code=0) == (0.99, 0)
    saved.keep(folder, Policy.parse("POST /predict within 50ms for 99.9%"))
    assert told() == (0.999, 3)
    assert told(STAGETRACE_SLA="POST /predict within 50ms for 99.5%") == (0.999, 3)
    assert told("--policy", "POST /predict within 50ms for 99.8%") == (0.998, 3)
    (folder / saved.POLICY_FILE).write_text("version: 7")
    answer = answered(*asked, code=None)
    assert answer["reason"].startswith("the policy that `up` evaluates is not used: ")
    assert answer["objectives"][0]["target"] == 0.99
    saved.keep(folder, None)
    assert told(code=0) == (0.99, 0)


def test_a_store_that_reaches_back_far_enough_does_not_mention_it(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", [Made(1, NOON, within_ms=50.0), Made(2, NOON + 28 * DAY - 1, within_ms=50.0)])
    assert "holds" not in printed("slo", "--long", "--store", folder, "--until", at(NOON + 28 * DAY))


def test_no_request_in_a_window_is_unknown_and_not_good(tmp_path: Path) -> None:
    """Exit code 2: nothing can be said of an objective over five minutes whose requests are of yesterday."""
    made = many(100, 0, within_ms=50.0, attributes={"sla.target": "99% over 5m"})
    folder = store(tmp_path / "store", made)
    answer = found(folder, "--until", at(NOON + DAY), code=2)
    (one,) = answer["objectives"]
    assert (one["judged"], one["attainment"], one["interval"], one["budget_left"], one["missed"]) == (0, *[None] * 4)
    assert (one["burn"]["5m"], one["burn"]["3d"]) == (None, 0)
    assert answer["sentence"].startswith("POST /predict: no request was judged in its window of 5 minutes")


def test_a_longer_window_than_usual_is_read_too(tmp_path: Path) -> None:
    over: dict[str, Any] = {"within_ms": 50.0, "attributes": {"sla.target": "99% over 90d"}}
    made, late = many(10, 1, **over), [Made(100, NOON + 80 * DAY, **over)]
    folder = store(tmp_path / "store", [*made, *late])
    (one,) = found(folder, "--until", at(NOON + 85 * DAY))["objectives"]
    assert (one["judged"], one["breaches"], one["window_s"]) == (11, 1, 90 * 86_400)


def test_what_allows_no_breach(tmp_path: Path) -> None:
    """There is no budget of which a part could be left, or burn."""
    target: dict[str, Any] = {"attributes": {"sla.target": "100% over 28d"}, "within_ms": 50.0}
    for breaches in (0, 1):
        folder = store(tmp_path / str(breaches), many(10, breaches, **target))
        answer = found(folder, "--until", at(NOON + HOUR), code=breaches)
        assert f"no breach is allowed, and there {('are 0 breaches', 'is 1 breach')[breaches]}" in answer["sentence"]
        (one,) = answer["objectives"]
        assert (one["budget_left"], one["burn"]["1h"], one["lasts_s"]) == (None, None, None)


def test_sampled_requests_are_weighted_and_judged_by_the_interval(tmp_path: Path) -> None:
    """Of 2,000 requests one in ten is kept, and each breach: the truth lies within the interval."""
    chance = random.Random(2)
    truth, kept = [0, 0], []
    for number in range(1, 2001):
        late = chance.random() < 0.02
        truth[late] += 1
        if late or chance.random() < 0.1:
            took = {"inference": 80.0 if late else 20.0}
            kept.append(Made(number, NOON + number * 10**9, took, within_ms=50.0, probability=0.1))
    folder = store(tmp_path / "store", kept)
    (one,) = found(folder, "--until", at(NOON + HOUR), code=1)["objectives"]
    assert one["estimated"]
    assert one["breaches"] == truth[1]
    assert one["interval"][0] <= truth[0] / sum(truth) <= one["interval"][1] < 0.99
    # 2 of about 152: less than 99 % by the estimate, and that cannot be told out of so few.
    few = [one for one in kept if one.word == "good"][:15] + [one for one in kept if one.word == "breach"][:2]
    folder = store(tmp_path / "few", few)
    (one,) = found(folder, "--until", at(NOON + HOUR), code=0)["objectives"]
    assert one["attainment"] < 0.99 < one["interval"][1]
    assert one["missed"] is None


def test_counts_of_the_service_stand_in_for_a_sample(tmp_path: Path) -> None:
    """One request a second for two hours, one in ten kept; the service has counted all, and sent that each 10 s."""
    late = set(random.Random(8).sample(range(7200), 60))
    kept = [
        Made(number + 1, NOON + number * 10**9, {"inference": 80.0 if number in late else 1.0}, within_ms=50.0,
             probability=0.1)
        for number in range(7200)
        if number in late or number % 10 == 0
    ]  # fmt: skip
    folder = store(tmp_path / "store", kept)
    counter, points = CountStore(folder), []
    for until in range(10, 7201, 10):
        breaches = sum(number < until for number in late)
        for verdict, value in (("good", until - breaches), ("breach", breaches)):
            points.append(Point("shop", "a", NOON, "/predict", OLD, verdict, value, NOON + until * 10**9))
    counter.append(points)
    counter.close()
    (one,) = found(folder, "--until", at(NOON + 2 * HOUR))["objectives"]
    assert (one["counted"], one["estimated"], one["judged"], one["breaches"]) == (True, False, 7200, 60)
    assert one["attainment"] == 7140 / 7200
    last_hour = sum(number >= 3600 for number in late)
    assert one["burn"]["1h"] == pytest.approx(last_hour / 3600 / 0.01)
    (one,) = found(folder, "--until", at(NOON + 2 * HOUR), "--by", "region")["objectives"]
    assert (one["counted"], one["estimated"]) == (False, True)  # services do not count by that


def test_sampling_of_which_nothing_is_known(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", many(100, 5, within_ms=50.0, probability=0.0))
    answer = found(folder, "--until", at(NOON + HOUR), code=2)
    (one,) = answer["objectives"]
    assert (one["attainment"], one["budget_left"], one["sampling_known"]) == (None, None, False)
    assert "it is not known how its 100 stored requests were sampled" in answer["sentence"]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([], "nor any of another time"),
        (many(3, 0), "no objective matches"),
        (many(3, 0, within_ms=50.0, verdict="excluded"), "the policy excludes them"),
        (many(3, 0, start=NOON - 90 * DAY, within_ms=50.0), "give --until '2025-12-01 12:00:03'"),
    ],
)
def test_nothing_judged_is_no_answer(tmp_path: Path, made: list[Made], words: str) -> None:
    answer = found(store(tmp_path / "store", made), "--until", at(NOON + HOUR), code=2)
    assert answer["objectives"] == []
    assert words in answer["sentence"]


def test_more_segments_than_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with the most breaches come, and the answer is not complete."""
    monkeypatch.setattr("stagetrace.analysis.slo.MOST", 3)
    made = [
        Made(number, NOON + number * MS, {"inference": 80.0 if number % 10 < number % 5 else 1.0}, within_ms=50.0,
             attributes={"tenant.id": f"t{number % 5}"})
        for number in range(1, 101)
    ]  # fmt: skip
    folder = store(tmp_path / "store", made)
    answer = found(folder, "--until", at(NOON + HOUR), "--by", "tenant.id", code=None)
    breaches: dict[str, int] = defaultdict(int)
    for one in made:
        breaches[str(one.attributes["tenant.id"])] += one.word == "breach"
    assert len(answer["objectives"]) == 3
    assert not answer["complete"]
    assert "2 groups" in answer["reason"]
    least = min(one["breaches"] for one in answer["objectives"])
    assert sum(count > least for count in breaches.values()) <= 3
