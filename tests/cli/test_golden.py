"""What each verb prints, whole, as `golden.py` says; and lists that are too long for that."""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import EVER, store
from cli import golden, literal
from cli.literal import trace_id
from cli.running import answered, cli, printed, refused
from stagetrace import semconv
from stagetrace.cli.registry import VERBS

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("golden")
    golden.make_stores(made)
    return made


# These take seconds each.
LONG = ("bottleneck", "capacity", "causes", "compare", "report", "requests")
EACH = [
    pytest.param(path.stem, marks=pytest.mark.thorough if path.stem in LONG else ())
    for path in sorted(golden.FOLDER.glob("*.txt"))
]


@pytest.mark.parametrize("name", EACH)
def test_each_output_is_the_one_that_is_kept(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    kept = (golden.FOLDER / f"{name}.txt").read_text("utf-8")
    assert golden.rendered(kept) == kept, "look at it, then run: PYTHONPATH=src python tests/cli/golden.py"


def test_each_verb_has_a_file() -> None:
    """Which begins with its help, and that ends with an example of the verb."""
    for verb in VERBS:
        kept = (golden.FOLDER / f"{verb.replace(' ', '_')}.txt").read_text("utf-8")
        assert kept.startswith(f"$ COLUMNS=100 stagetrace {verb} --help\n")
        heading, example = kept.partition("\n$ ")[0].splitlines()[-2:]
        assert heading == "example:"
        assert f"stagetrace {verb}" in example


def test_groups_of_a_local_store_are_those_of_a_file(folder: Path, tmp_path: Path) -> None:
    asked = partial(answered, "breaches", *EVER, "--store")
    assert asked(store(tmp_path / "store", golden.GROUPS)) == asked(folder / "groups.jsonl")


def ids(requests: list[dict[str, Any]]) -> list[int]:
    """Return the numbers of requests or breaches, as an answer lists them."""
    return [int(one["trace_id"], 16) for one in requests]


def test_people_get_the_first_15_and_see_the_number_of_the_others(tmp_path: Path) -> None:
    """Scripts get all; a limit that cuts is reported."""
    broken = literal.verdict(breached=True)
    made = [literal.request(number, number, {"queue": number}, **broken) for number in range(1, 31)]
    at = ("--store", literal.write(tmp_path, made))
    rest = {"requests": "15 of 30 requests shown; more: --top N", "breaches --each": "These are the newest 15 of 30; "}
    for command, more in rest.items():
        verb, *each = command.split()
        text = printed(verb, *each, *at)
        assert more in text
        assert [line.split()[-1] for line in text.splitlines() if trace_id(0)[:20] in line][:15] == [
            trace_id(number) for number in range(30, 15, -1)
        ]
        assert len(answered(verb, *each, *at)[verb]) == 30
        assert more not in printed(verb, *at, *(("--top", "30") if verb == "requests" else ("--limit", "30")))
    assert len(printed("requests", *at).splitlines()) == 18
    assert len(printed("requests", *at, "--top", "25").splitlines()) == 28
    done = cli("requests", *map(str, at), "--limit", "25")
    assert (len(done.stdout.splitlines()), done.returncode) == (27, 0)
    assert done.stderr == "stagetrace: INCOMPLETE: limit 25 reached, there are older requests\n"


def test_breaches_take_the_same_filters(spans: Path) -> None:
    cases = {"": [5, 1], "--model Tagger": [], "--segment tenant=blue --route /predict": [5]}
    cases |= {"--cause slow_download --model Tagger": [], "--cause gc": [], "--cause gc --cause cpu_wait": [5]}
    for verb, (options, expected) in product(("breaches", "requests"), cases.items()):
        listed = ["--breached" if verb == "requests" else "--each"]
        assert ids(answered(verb, "--store", spans, *options.split(), *listed)[verb]) == expected


def test_a_limit_is_shown_in_each_form(spans: Path) -> None:
    cut = "limit 2 reached, there are older requests"
    for verb in ("requests", "stages", "watch", "query"):
        sql = ["SELECT count(*) FROM requests"] if verb == "query" else []
        done = cli(verb, *sql, "--store", str(spans), "--since", "2026-03-01", "--limit", "2", "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["complete"], found["reason"]) == (0, False, cut)
        assert done.stderr == f"stagetrace: INCOMPLETE: {cut}\n"
    assert found["rows"] == [[2]]


def test_tail_has_the_requests_of_the_list_in_reverse(spans: Path) -> None:
    newest = answered("requests", "--store", spans, "--top", "2")["requests"]
    assert answered("tail", "--store", spans, "--limit", "2")["requests"] == newest[::-1]


def test_a_trace_is_drawn_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    numbers = ((0x4BF92F35 << 96) + 1, (0x4BF92F36 << 96) + 2, (0x5BF92F36 << 96) + 3)
    file = literal.write(tmp_path, [literal.request(one, at, {"inference": 80}) for at, one in enumerate(numbers)])
    first, second, other = map(trace_id, numbers)
    assert answered("trace", "5bf9", "--store", file)["trace_id"] == other
    assert answered("trace", "4BF92F36", "--store", file)["trace_id"] == second
    said = refused("trace", "4bf9", "--store", file)
    assert said == f"stagetrace: 4bf9 begins the ids of 2 traces: {second}, {first}\ngive more of it\n"


def test_time_lost_is_ranked_by_time_and_not_by_number(tmp_path: Path) -> None:
    """One long breach outweighs several short ones; of many kinds the rest is summed."""
    lost = [("preprocess", "gc", 1.0)] * 3 + [("inference", f"cause{n}", 10.0 * n) for n in range(1, 7)]
    names = (semconv.SLA_BREACH_STAGE, semconv.SLA_BREACH_CAUSE, semconv.SLA_OVERRUN_MS)
    verdicts = [literal.verdict(breached=True, **dict(zip(names, one, strict=True))) for one in lost]
    made = [literal.request(n, n, {lost[n - 1][0]: 80}, **one) for n, one in enumerate(verdicts, 1)]
    file = literal.write(tmp_path, made)
    assert printed("breaches", "--each", "--store", file).splitlines()[0] == (
        "9 of 9 judged requests missed their objective, 213.0 ms over in all: inference/cause6 28 %, "
        "inference/cause5 23 %, inference/cause4 19 %, inference/cause3 14 %, inference/cause2 9 %, 2 others 6 %."
    )
    found = answered("breaches", "--each", "--store", file)["lost"]
    assert [one["cause"] for one in found] == ["cause6", "cause5", "cause4", "cause3", "cause2", "cause1", "gc"]
    assert (found[-1]["missed"], found[-1]["overrun_ms"]) == (3, 3.0)


def test_what_fails_where_nothing_was_judged(tmp_path: Path) -> None:
    """Whatever the mixture of requests: of other senders, without an objective, excluded, good, late."""
    plain = {"http.route": "/score", "http.request.method": "POST"}
    excluded = {**plain, semconv.SLA_VERDICT: "excluded", semconv.SLA_OBJECTIVE: "POST /score excluded"}

    def of(*requests: str) -> tuple[int, str]:
        done = cli("breaches", "--each", "--store", str(literal.write(tmp_path, requests)), "--fail")
        return done.returncode, done.stdout.partition("\n")[0]

    recorded = literal.request(1, 0, {"inference": 80}, **plain)
    stock = literal.request(2, 0, {}, duration_ms=80, **plain)
    left_out = literal.request(3, 0, {"inference": 80}, **excluded)
    kept = literal.request(4, 0, {"inference": 20}, **literal.verdict(breached=False))
    broken = literal.request(5, 0, {"inference": 80}, **literal.verdict(breached=True))
    assert of(recorded) == (2, "1 request, none judged: no objective matches (STAGETRACE_SLA of the service).")
    assert of(recorded, left_out) == (
        2,
        "2 requests, none judged: 1 excluded, and of the other 1 no objective matches (STAGETRACE_SLA of the service).",
    )
    assert of(recorded, stock, left_out, kept) == (0, "0 of 1 judged requests missed their objective.")
    assert of(recorded, stock, left_out, kept, broken)[0] == 1


@pytest.mark.parametrize("verb", ["breaches", "requests", "tail", "watch", "query", "export"])
def test_a_name_that_the_store_does_not_know_is_an_error(spans: Path, tmp_path: Path, verb: str) -> None:
    more = {"query": ["SELECT count(*) FROM requests"], "export": [str(tmp_path / "out.jsonl")]}.get(verb, [])
    said = refused(verb, *more, "--store", spans, "--since", "2026-03-01", "--route", "/predcit")
    assert said.endswith("no request has the route '/predcit'\nthere are /predict, /health\n")
    assert not list(tmp_path.iterdir())
