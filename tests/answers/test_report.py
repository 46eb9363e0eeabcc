"""`stagetrace report`: its counts, incidents and digests are those that one gets by hand, on every run and store."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import MS, NOON, Made, lines, reading, store
from answers.test_slo import at
from cli.running import answered, printed
from stagetrace.analysis.report import Window, flattened

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

found = partial(answered, "report", "--store", code=None)
MINUTE = 60 * 10**9
DAY = 1440 * MINUTE
SPAN = 6 * 60 * MINUTE
PREDICT, EMBED = "POST /predict within 50ms", "POST /embed within 50ms"
TARGETS = {PREDICT: 0.99, EMBED: 0.8}


def traffic(count: int = 5000) -> list[Made]:
    """Return requests of six hours, with bursts of breaches, and of each kind."""
    chance = random.Random(9)
    bursts = [(start, start + chance.randrange(1, 9)) for start in (10, 30, 33, 47, 100, 250, 351)]
    made = []
    for number in range(1, count + 1):
        start = NOON + chance.randrange(SPAN)
        minute = (start - NOON) // MINUTE
        route = chance.choice(["/predict", "/predict", "/embed", "/free", "/health"])
        late = chance.random() < (0.7 if any(a <= minute < b for a, b in bursts) else 0.02)
        more: dict[str, Any] = {"within_ms": None if route == "/free" else 50.0}
        if route == "/health":
            more |= {"verdict": "excluded", "attributes": {"sla.objective": "GET /health excluded"}}
        elif route == "/embed":
            more |= {"objective": EMBED, "attributes": {"sla.target": "80% over 28d"}}
            if number % 31 == 0:
                more |= {"verdict": "excluded", "attributes": {"sla.objective": EMBED, "sla.target": "80% over 28d"}}
        elif route == "/free" and number % 2:
            more |= {"stages": {}, "duration_ms": 5.0}
        took = {"inference": round(chance.uniform(60, 200), 3) if late else 20.0}
        cause = chance.choice(["cpu_wait", "gc"])
        made.append(Made(number, start, **{"stages": took, "route": route, "cause": cause, **more}))
    return made


WINDOWS = [
    (NOON + 31 * MINUTE, NOON + 36 * MINUTE, "deploy"),
    (NOON + 34 * MINUTE, NOON + 40 * MINUTE, "network"),
    (NOON - DAY, NOON + 5 * MINUTE, "before"),
    (NOON + 300 * MINUTE + 17, NOON + 301 * MINUTE + 1, "deploy"),
    (NOON + DAY, NOON + 2 * DAY, "later"),
]
EXCLUDE = [part for begin, end, why in WINDOWS for part in ("--exclude", f"{at(begin)}..{at(end)}={why}")]


def reason(start: int) -> str | None:
    """Return why a moment does not count: the first window given that it is in."""
    return next((why for begin, end, why in WINDOWS if begin <= start < end), None)


@pytest.fixture(scope="module")
def requests() -> list[Made]:
    return traffic()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, requests: list[Made]) -> Path:
    return store(store(tmp_path_factory.mktemp("report") / "store", requests), requests[::9])  # some come again


@pytest.fixture(scope="module")
def report(folder: Path) -> Any:
    return found(folder, "--period", "2026-03-01", *EXCLUDE, "--credits", "99:10%,90:25,50:100%", code=1)


def objective(one: Made) -> str | None:
    text = one.all_attributes.get("sla.objective")
    return None if text is None else str(text)


def test_counts_are_those_by_counting(report: dict[str, Any], requests: list[Made]) -> None:
    counting = [one for one in requests if reason(one.start_unix_nano) is None]
    for line in report["objectives"]:
        own = [one for one in counting if objective(one) == line["objective"] and one.word in ("good", "breach")]
        breaches = sum(one.word == "breach" for one in own)
        assert (line["judged"], line["breaches"]) == (len(own), breaches)
        assert line["target"] == TARGETS[line["objective"]]
        assert line["attainment"] == pytest.approx(1 - breaches / len(own), abs=1e-12)
        assert line["missed"] == (line["attainment"] < line["target"])
        percent = 100 * line["attainment"]
        credit = 100 if percent < 50 else 25 if percent < 90 else 10 if percent < 99 else 0
        assert line["credit_percent"] == credit
    excluded = Counter(why for one in requests if (why := reason(one.start_unix_nano)) is not None)
    told = {one["reason"]: one["requests"] for one in report["excluded"]}
    windows = {why for _, _, why in WINDOWS}
    assert {why: told[why] for why in windows} == {why: excluded[why] for why in windows}
    by_policy = sum(one.route == "/health" for one in counting)
    assert told["the policy excludes the route"] == by_policy
    disconnected = sum(one.route == "/embed" and one.word == "excluded" for one in counting)
    assert told["the client disconnected, or the request was cancelled"] == disconnected
    free = [one for one in counting if one.route == "/free"]
    assert {one["reason"].partition(":")[0]: one["requests"] for one in report["unjudged"]} == {
        "no objective matches": sum(bool(one.stages) for one in free),
        "the span carries no verdict": sum(not one.stages for one in free),
    }
    assert report["requests"] == len(requests) == report["stored"]
    parts = report["judged"] + sum(one["requests"] for one in (*report["excluded"], *report["unjudged"]))
    assert parts == report["requests"]


def incidents(requests: Iterable[Made], text: str, burn: float, gap: int) -> list[tuple[int, int, int, int, int]]:
    """Return start, end, judged, breaches and bad minutes of each incident of an objective, by the definition."""
    minutes: dict[int, list[bool]] = defaultdict(list)
    begin = NOON - NOON % DAY
    for one in requests:
        if objective(one) == text and one.word in ("good", "breach") and reason(one.start_unix_nano) is None:
            minutes[(one.start_unix_nano - begin) // MINUTE].append(one.word == "breach")
    share = min(0.5, burn * (1 - TARGETS[text]))
    bad = sorted(at for at, of in minutes.items() if sum(of) >= 2 and sum(of) / len(of) >= share)
    runs: list[list[int]] = []
    for one_bad in bad:
        if runs and one_bad - runs[-1][-1] - 1 <= gap:
            runs[-1].append(one_bad)
        else:
            runs.append([one_bad])
    made = []
    for run in runs:
        of = [late for at in range(run[0], run[-1] + 1) for late in minutes.get(at, [])]
        made.append((begin + run[0] * MINUTE, begin + (run[-1] + 1) * MINUTE, len(of), sum(of), len(run)))
    return made


@pytest.mark.parametrize(("burn", "gap"), [(10.0, 5), (3.0, 0), (1.0, 20), (30.0, 2)])
def test_incidents_are_those_of_the_definition(folder: Path, requests: list[Made], burn: float, gap: int) -> None:
    options = ("--incident-burn", str(burn), "--incident-gap", f"{gap}m")
    told = found(folder, "--period", "2026-03-01", *EXCLUDE, *options)["incidents"]
    assert told == sorted(told, key=lambda one: (one["since_unix_nano"], one["route"]))
    numbers = ("since_unix_nano", "until_unix_nano", "judged", "breaches", "bad_minutes")
    expected = {text: incidents(requests, text, burn, gap) for text in TARGETS}
    assert sum(map(len, expected.values())) > 3
    for text, meant in expected.items():
        assert [tuple(one[name] for name in numbers) for one in told if one["objective"] == text] == meant
    for one in told:
        late = [made for made in requests if objective(made) == one["objective"] and made.word == "breach"
                and one["since_unix_nano"] <= made.start_unix_nano < one["until_unix_nano"]
                and reason(made.start_unix_nano) is None]  # fmt: skip
        causes = Counter(made.cause for made in late)
        assert {cause["cause"]: cause["breaches"] for cause in one["causes"]} == causes
        assert [cause["breaches"] for cause in one["causes"]] == sorted(causes.values(), reverse=True)
        for cause in one["causes"]:
            own = [made for made in late if made.cause == cause["cause"]]
            worst = max(own, key=lambda made: (made.took_ms, -made.start_unix_nano))
            assert int(cause["trace_id"], 16) == worst.number
            assert cause["over_ms"] == pytest.approx(sum(made.took_ms - 50 for made in own))


def test_the_digest_is_the_one_by_hand(report: dict[str, Any], folder: Path, requests: list[Made]) -> None:
    """The sums of the hashes are those of Python's own SHA-256."""
    sums = [0, 0]
    for one in requests:
        span = (one.number * 16 + 1).to_bytes(8, "big").hex()
        told = (f"{one.number:032x}", span, one.service, one.start_unix_nano, one.word or "", one.route or one.name)
        rest = (objective(one) or "", one.all_attributes.get("sla.target", ""))
        digest = hashlib.sha256("\x1f".join(map(str, (*told, *rest))).encode()).digest()
        for place in range(2):
            sums[place] = (sums[place] + int.from_bytes(digest[place * 8 : place * 8 + 8], "big")) % 2**64
    with reading(folder) as relations:
        (row,) = relations.reduce("digest")
    assert [row[f"{name}_sum"] for name in ("first", "second")] == sums
    assert len(report["digest"]["inputs"]) == len(report["digest"]["result"]) == 64


def test_every_run_and_store_gives_the_same(
    tmp_path: Path, report: dict[str, Any], folder: Path, requests: list[Made]
) -> None:
    """Whatever the order in which requests came, and how often."""
    shuffled = random.Random(4).sample(requests, len(requests))
    path = lines(tmp_path / "spans.jsonl", [*shuffled, *shuffled[:500]])
    options = ("--period", "2026-03-01", *EXCLUDE, "--credits", "99:10%,90:25,50:100%")
    assert found(path, *options) == report
    exported = tmp_path / "spans.parquet"
    printed("export", "--store", folder, "--since", "2026-03-01", exported)
    assert found(exported, *options) == report
    assert found(folder, *options) == report
    others = {report["digest"]["inputs"]}
    others.add(found(folder, *options[:-1], "99:11%,90:25%,50:100%")["digest"]["inputs"])
    others.add(found(folder, "--period", "2026-03-01")["digest"]["inputs"])
    changed = [replace(requests[0], verdict="breach" if requests[0].word == "good" else "good"), *requests[1:]]
    again = found(lines(tmp_path / "changed.jsonl", changed), *options)
    others.add(again["digest"]["inputs"])
    assert len(others) == 4


def test_what_lies_outside_of_the_period_does_not_count(tmp_path: Path) -> None:
    """Days of Berlin: an hour before those of UTC, two in summer."""
    edge = 1_782_856_800_000_000_000  # 2026-06-30T22:00:00Z: July begins in Berlin
    starts = (edge - 1, edge, edge + 31 * DAY - 1, edge + 31 * DAY)
    folder = store(tmp_path / "store", [Made(n, start, within_ms=50.0) for n, start in enumerate(starts, 1)])
    july = found(folder, "--period", "2026-07", "--tz", "Europe/Berlin", code=0)
    assert (july["judged"], july["period"]["since_unix_nano"]) == (2, edge)
    june = found(folder, "--period", "2026-06", "--tz", "Europe/Berlin", code=0)
    assert june["judged"] == 1
    utc = found(folder, "--period", "2026-07", code=0)
    assert (utc["judged"], utc["first_unix_nano"]) == (2, starts[2])


def test_windows_that_overlap_count_once() -> None:
    """Each second has the reason of the first window that it is in."""
    chance = random.Random(6)
    for _ in range(200):
        windows = []
        for number in range(chance.randrange(6)):
            begin = chance.randrange(-5, 40)
            windows.append(Window(begin, begin + chance.randrange(1, 15), f"r{number % 3}"))
        made = flattened(windows, 0, 30)
        assert all(begin < end for begin, end, _ in made)
        marked = {at: why for begin, end, why in made for at in range(begin, end)}
        assert sum(end - begin for begin, end, _ in made) == len(marked)
        expected = {
            at: next(one.reason for one in windows if one.since_ns <= at < one.until_ns)
            for at in range(30)
            if any(one.since_ns <= at < one.until_ns for one in windows)
        }
        assert marked == expected


def served(count: int, late: int, apart: int = MS, **more: Any) -> Iterator[Made]:
    """Yield requests, the first of which are late."""
    for n in range(1, count + 1):
        yield Made(n, NOON + n * apart, {"inference": 80.0 if n <= late else 20.0}, within_ms=50.0, **more)


@pytest.mark.parametrize(("breaches", "credit"), [(0, 0.0), (1, 0.0), (2, 10.0), (11, 25.0), (51, 100.0)])
def test_credits_at_their_edges(tmp_path: Path, breaches: int, credit: float) -> None:
    """Of a thousand: exactly 99.9 % is not below it."""
    folder = store(tmp_path / "store", served(1000, breaches, MINUTE))
    (line,) = found(folder, "--period", "2026-03", "--credits", "99:25%,99.9:10%,95:100%")["objectives"]
    assert line["credit_percent"] == credit


def test_a_credit_that_a_sample_leaves_open(tmp_path: Path) -> None:
    """2 breaches and 15 others that stand for ten each: 98.7 %, or anything up to 99.2 %."""
    folder = store(tmp_path / "store", served(17, 2, probability=0.1))
    arguments = (folder, "--period", "2026-03", "--credits")
    (line,) = found(*arguments, "99:10%", code=0)["objectives"]
    assert (line["estimated"], line["judged"], line["credit_percent"], line["missed"]) == (True, 152, None, None)
    (line,) = found(*arguments, "90:10%", code=0)["objectives"]
    assert line["credit_percent"] == 0
    assert "estimates out of sampled requests" in printed("report", "--long", "--store", *arguments, "99:10%")


def test_nothing_in_the_period_is_no_answer(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", [Made(1, within_ms=50.0)])
    answer = found(folder, "--period", "2025", code=2)
    assert answer["sentence"] == "No request was judged in 2025 (UTC), out of 0 requests."
    assert (answer["objectives"], answer["judged"], answer["told"]) == ([], 0, False)


def test_a_period_that_is_not_over_is_not_complete(tmp_path: Path) -> None:
    folder = store(tmp_path / "store", [Made(1, within_ms=50.0)])
    answer = found(folder, "--period", "2999")
    assert not answer["complete"]
    assert "the period is not over" in answer["reason"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [
        Made(n, NOON + n * MINUTE // 10, {"inference": 80.0 if 20 < n <= 24 else 20.0}, within_ms=50.0, cause="gc")
        for n in range(1, 101)
    ]
    return store(tmp_path_factory.mktemp("small") / "store", made)


SMALL = ("--period", "2026-03", "--tz", "Europe/Berlin", "--credits", "99:10%")
WINDOW = ("--exclude", "2026-03-01T13:05..2026-03-01T13:06=deploy | v3")


def test_the_report_as_markdown_and_as_a_page(small: Path) -> None:
    command = ("report", "--store", small, *SMALL, *WINDOW, "--format")
    markdown = printed(*command, "markdown", code=1)
    assert markdown.startswith("# Report of service levels: 2026-03 (Europe/Berlin)\n\n0 of 1 objective was met")
    row = "| shop | /predict | POST /predict within 50ms | 99 % | 90 | 4 | 95.6 % | \\[89.0, 98.8\\] | no | 10 % |"
    assert row in markdown
    assert "| deploy \\| v3 | 10 |" in markdown
    page = printed(*command, "html", code=1)
    assert page.startswith("<!DOCTYPE html>")
    assert "deploy | v3" in page
    assert not any(link in page for link in ("src=", "href=", "url(", "@import"))
    digest = found(small, *SMALL, *WINDOW)["digest"]
    assert all(digest[name] in markdown and digest[name] in page for name in ("inputs", "result"))


def test_incidents_do_not_depend_on_the_second_at_which_a_window_begins(folder: Path) -> None:
    """Two forms of a report once counted 3 and 2 of them in the same requests."""
    begins, until = "2026-02-28T23:30", ("--until", "2026-03-02T00:00:00Z")
    one, other = (found(folder, "--since", f"{begins}:{second}Z", *until)["incidents"] for second in ("00", "37"))
    assert len(one) > 3
    assert one == other
