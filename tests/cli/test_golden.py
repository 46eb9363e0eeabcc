"""What each command prints of literal spans, whole: for people in a pipe, as JSON, as CSV."""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import MS, NOON, Made, lines
from cli import literal
from cli.literal import trace_id
from cli.running import answered, cli, printed, refused
from stagetrace import semconv

if TYPE_CHECKING:
    from pathlib import Path


MISSED = "judged requests missed their objective"
SINCE = ("--since", "2026-03-01T00:00:00Z")


def ids(requests: list[dict[str, Any]]) -> list[int]:
    """Return the numbers of requests or breaches, as an answer lists them."""
    return [int(one["trace_id"], 16) for one in requests]


def test_services(spans: Path) -> None:
    assert printed("services", "--store", spans) == "shop\nweb\n"
    assert answered("services", "--store", spans.as_uri()) == {"complete": True, "services": ["shop", "web"]}


def test_stages(spans: Path) -> None:
    assert (
        printed("stages", "--store", spans)
        == """\
stage           count       p50       p95       p99       max    share
shop /predict, model Ranker
  (request)         3  80.00 ms  80.00 ms  80.00 ms  80.00 ms  100.0 %
  preprocess        2  12.00 ms  15.60 ms  15.92 ms  16.00 ms   12.0 %
  inference         3  60.00 ms  69.00 ms  69.80 ms  70.00 ms   81.0 %
  mine              1  10.00 ms  10.00 ms  10.00 ms  10.00 ms    5.0 %
  network.send      1   4.00 ms   4.00 ms   4.00 ms   4.00 ms    2.0 %
shop /predict, model Tagger
  (request)         1  20.00 ms  20.00 ms  20.00 ms  20.00 ms  100.0 %
  preprocess        1   4.00 ms   4.00 ms   4.00 ms   4.00 ms   20.0 %
  inference         1  16.00 ms  16.00 ms  16.00 ms  16.00 ms   80.0 %
web /health
  (request)         1   1.50 ms   1.50 ms   1.50 ms   1.50 ms  100.0 %
"""
    )


def test_stages_json(spans: Path) -> None:
    stage = {"count": 1, "p50_ms": 4.0, "p95_ms": 4.0, "p99_ms": 4.0, "max_ms": 4.0, "share": 0.2}
    other = {"count": 1, "p50_ms": 16.0, "p95_ms": 16.0, "p99_ms": 16.0, "max_ms": 16.0, "share": 0.8}
    assert answered("stages", "--store", spans, "--model", "Tagger") == {
        "complete": True,
        "groups": [
            {
                "service": "shop",
                "route": "/predict",
                "model": "Tagger",
                "requests": 1,
                "stored": 1,
                "counted": False,
                "estimated": False,
                "sampling_known": True,
                "p50_ms": 20.0,
                "p95_ms": 20.0,
                "p99_ms": 20.0,
                "max_ms": 20.0,
                "stages": [{"stage": "preprocess", **stage}, {"stage": "inference", **other}],
            }
        ],
    }


def test_requests(spans: Path) -> None:
    assert (
        printed("requests", "--store", spans, "--since", "2026-03-01T12:00:01Z")
        == f"""\
2026-03-01
time (UTC)    service  request        model   status      took  allowed  verdict  stage      trace
12:00:04.000  shop     POST /predict  Ranker     200  80.00 ms    50 ms  breach   inference  {trace_id(5)}
12:00:03.000  web      GET /health    -          503   1.50 ms        -  -        -          {trace_id(4)}
12:00:02.000  shop     POST /predict  Tagger     200  20.00 ms    50 ms  good     inference  {trace_id(3)}
12:00:01.000  shop     POST /predict  Ranker     200  40.00 ms    50 ms  good     inference  {trace_id(2)}
"""
    )


def test_the_requests_that_took_longest_in_a_stage(spans: Path) -> None:
    note, head, first, second, more = printed(
        "requests", "--store", spans, "--sort", "preprocess", "--top", "2", "--service", "shop"
    ).splitlines()
    assert note == "2026-03-01; service shop; model Ranker; status 200; allowed 50 ms"
    assert head.endswith("  verdict  stage      preprocess  trace")
    assert first.endswith(f"  breach   inference    16.00 ms  {trace_id(1)}")
    assert second.endswith(f"  good     inference     8.00 ms  {trace_id(2)}")
    assert more == "2 of 4 requests shown; more: --top N"


def test_people_get_the_first_20_and_see_the_number_of_the_others(tmp_path: Path) -> None:
    file = literal.write(tmp_path, [literal.request(number, number, {"queue": number}) for number in range(1, 31)])
    at = ("requests", "--store", file)
    lines = printed(*at).splitlines()
    assert (len(lines), lines[-1]) == (23, "20 of 30 requests shown; more: --top N")
    assert len(printed(*at, "--top", "25").splitlines()) == 28
    assert len(printed(*at, "--top", "30").splitlines()) == 32
    assert len(answered(*at)["requests"]) == 30
    done = cli(*map(str, at), "--limit", "25")
    assert (len(done.stdout.splitlines()), done.returncode) == (27, 0)
    assert done.stderr == "stagetrace: INCOMPLETE: limit 25 reached, there are older requests\n"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", [5, 4, 3, 2, 1]),
        ("--sort duration", [5, 1, 2, 3, 4]),
        ("--slowest 3", [5, 1, 2]),
        ("--sort overrun --top 3", [5, 1, 4]),
        ("--sort inference", [5, 1, 2, 3, 4]),
        ("--sort other --top 1", [5]),
        ("--sort mine --top 2", [5, 4]),
        ("--sort network.send --top 1", [1]),
        ("--breached", [5, 1]),
        ("--kept", [4, 3, 2]),
        ("--service web", [4]),
        ("--route /predict", [5, 3, 2, 1]),
        ("--model Tagger --segment tenant=blue", []),
        ("--route POST__/predict", [5, 3, 2, 1]),
        ("--route GET__/health", [4]),
        ("--model Ranker", [5, 2, 1]),
        ("--segment tenant=it's", [3]),
        ("--segment pod=b", [2]),
        ("--segment pod=a --segment tenant=blue", [5]),
        ("--segment http.response.status_code=503", [4]),
        ("--since 2026-03-01T12:00:01Z --until 2026-03-01T12:00:03Z", [3, 2]),
        ("--since 2026-03-01T12:00:01.000000001Z", [5, 4, 3]),
    ],
)
def test_each_option_narrows_and_orders(spans: Path, options: str, expected: list[int]) -> None:
    arguments = [word.replace("__", " ") for word in options.split()]
    found = answered("requests", "--store", spans, *arguments)
    assert ids(found["requests"]) == expected
    assert found["complete"]


def test_to_sort_by_a_stage_that_there_is_not_is_an_error(spans: Path) -> None:
    said = refused("requests", "--store", spans, "--sort", "min")
    assert said == (
        "stagetrace: cannot sort by 'min': no request here has a stage of this name\n"
        "there are start, duration, overrun, inference, mine, network.send, preprocess\n"
    )


def test_breaches_take_the_same_filters(spans: Path) -> None:
    cases = {"": [5, 1], "--model Tagger": [], "--segment tenant=blue --route /predict": [5]}
    cases |= {"--until 2026-03-01T12:00:04Z": [1]}
    for options, expected in cases.items():
        assert ids(answered("breaches", "--store", spans, *options.split())["breaches"]) == expected


def test_one_or_several_causes(spans: Path) -> None:
    cases = {"cpu_wait": [5], "gc": [], "slow_download --cause cpu_wait --cause cpu_wait": [5, 1]}
    cases |= {"slow_download --model Tagger": []}
    for verb, (cause, expected) in product(("breaches", "requests"), cases.items()):
        assert ids(answered(verb, "--store", spans, "--cause", *cause.split())[verb]) == expected
    (group,) = answered("stages", "--store", spans, "--cause", "cpu_wait")["groups"]
    assert (group["model"], group["requests"]) == ("Ranker", 1)
    said = printed("breaches", "--store", spans, "--cause", "cpu_wait").splitlines()
    assert said[:2] == [
        f"1 of 4 {MISSED} because of cpu_wait, 30.0 ms over in all: inference/cpu_wait 100 %.",
        "All requests of shop, web; not judged: 1 that no objective matches.",
    ]
    assert printed("breaches", "--store", spans, "--cause", "gc").startswith(
        "0 of 4 judged requests missed their objective because of gc.\n"
    )


def test_a_cause_that_there_is_none_of_is_refused(spans: Path) -> None:
    said = refused("breaches", "--store", spans, "--cause", "cpu")
    assert "argument --cause: 'cpu' is no cause; there are socket_wait, " in said


def test_one_or_several_lines_of_code(tmp_path: Path) -> None:
    """By the whole of it, a file, a line or a pattern; each verb that lists or groups breaches has the option."""
    at = {1: "app.py:41 in predict", 2: "app.py:410 in load", 3: "app.py:410 in load", 4: None}
    spans = lines(
        tmp_path / "spans.jsonl",
        [Made(number, NOON + number * MS, within_ms=5, attributes={"sla.breach.code": at[number]}) for number in at],
    )
    cases = {"app.py:41": [1], "app.py:41 in predict": [1], "app.py": [3, 2, 1], "*in load": [3, 2]}
    for code, expected in cases.items():
        for verb in ("breaches", "requests"):
            assert ids(answered(verb, "--store", spans, "--code", code)[verb]) == expected
    (group,) = answered("stages", "--store", spans, "--code", "app.py:410", "--code", "app.py:41")["groups"]
    assert group["requests"] == 3
    said = printed("breaches", "--store", spans, "--code", "*in load", "--code", "app.py:41", "--cause", "unknown")
    assert said.startswith("3 of 4 judged requests missed their objective because of unknown at *in load or app.py:41,")
    assert "argument --code: it is empty" in refused("breaches", "--store", spans, "--code", "")
    assert refused("breaches", "--store", spans, "--code", "app.py:14").endswith(
        ": no request has the line of code 'app.py:14'\nthere are app.py:410 in load, app.py:41 in predict\n"
    )


def test_a_breach_of_a_part_of_the_request_shows_that_part_beside_the_whole(tmp_path: Path) -> None:
    broken = literal.verdict(breached=True, **{semconv.SLA_BREACH_PROMISE: "first_chunk"})
    file = literal.write(tmp_path, [literal.request(1, 0, {"inference": 80, "network.send": 400}, **broken)])
    row = printed("breaches", "--store", file).splitlines()[5]
    assert "  80.00 ms of 480.00 ms  30.00 ms  " in row


def test_each_bound_that_a_stream_missed_is_shown(tmp_path: Path) -> None:
    said = "first_chunk: 163.2 ms, 100 ms allowed; per_chunk: 210 ms, 150 ms allowed"
    broken = literal.verdict(
        breached=True, **{semconv.SLA_BREACH_MISSED: said, semconv.SLA_BREACH_PROMISE: "first_chunk"}
    )
    file = literal.write(tmp_path, [literal.request(1, 0, {"inference": 80, "network.send": 400}, **broken)])
    assert "  163.20 ms first chunk  " in printed("breaches", "--store", file).splitlines()[5]
    (breach,) = answered("breaches", "--store", file)["breaches"]
    assert breach["missed"] == [
        {"bound": "first_chunk", "took_ms": 163.2, "allowed_ms": 100.0},
        {"bound": "per_chunk", "took_ms": 210.0, "allowed_ms": 150.0},
    ]
    shown = printed("trace", breach["trace_id"], "--store", file).splitlines()
    assert shown[1] == (
        "BREACH shop POST /predict: first chunk after 163.20 ms, 100 ms allowed, over by 30.00 ms (major); "
        "the whole response took 480.00 ms"
    )
    assert shown[2] == "  also missed: gap of 210.00 ms between two chunks, 150 ms allowed"


def test_each_bound_on_tokens_that_was_missed_is_shown(tmp_path: Path) -> None:
    said = "first_token: 163.2 ms, 100 ms allowed; per_token: 41.5 ms, 40 ms allowed"
    missed = {semconv.SLA_BREACH_MISSED: said, semconv.SLA_BREACH_PROMISE: "first_token"}
    more = literal.verdict(breached=True, **missed)
    file = literal.write(tmp_path, [literal.request(1, 0, {"inference": 480}, **more)])
    assert "  163.20 ms first token  " in printed("breaches", "--store", file).splitlines()[5]
    (breach,) = answered("breaches", "--store", file)["breaches"]
    assert [one["bound"] for one in breach["missed"]] == ["first_token", "per_token"]
    shown = printed("trace", breach["trace_id"], "--store", file).splitlines()
    assert shown[1].startswith("BREACH shop POST /predict: first token after 163.20 ms, 100 ms allowed")
    assert shown[2] == "  also missed: 41.50 ms for each token after the first, 40 ms allowed"


def test_a_limit_is_shown_in_each_form(spans: Path) -> None:
    cut = "limit 2 reached, there are older requests"
    for verb in ("requests", "stages", "watch", "query"):
        sql = ["SELECT count(*) FROM requests"] if verb == "query" else []
        done = cli(verb, *sql, "--store", str(spans), *SINCE, "--limit", "2", "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["complete"], found["reason"]) == (0, False, cut)
        assert done.stderr == f"stagetrace: INCOMPLETE: {cut}\n"
    assert found["rows"] == [[2]]


def test_tail_shows_the_newest_last(spans: Path) -> None:
    assert (
        printed("tail", "--store", spans, "--limit", "2")
        == f"""\
2026-03-01
time (UTC)    service  request        model   status      took  allowed  verdict  stage      trace
12:00:03.000  web      GET /health    -          503   1.50 ms        -  -        -          {trace_id(4)}
12:00:04.000  shop     POST /predict  Ranker     200  80.00 ms    50 ms  breach   inference  {trace_id(5)}
"""
    )
    found = answered("tail", "--store", spans, "--limit", "2")
    assert ids(found["requests"]) == [4, 5]
    assert found["requests"] == answered("requests", "--store", spans, "--top", "2")["requests"][::-1]


def test_the_latest_request_and_the_latest_breach_are_drawn(spans: Path) -> None:
    at = ("--store", spans)
    assert printed("trace", "latest", *at) == printed("trace", trace_id(5), *at)
    assert answered("trace", "latest", "--service", "web", *at)["trace_id"] == trace_id(4)
    assert answered("trace", "latest", "--breached", *at)["trace_id"] == trace_id(5)
    said = refused("trace", "latest", "--breached", "--service", "web", *at)
    assert said == "stagetrace: the store holds no breach of web\nsend one, or name another store\n"
    said = refused("trace", trace_id(5), "--breached", *at)
    assert said == "stagetrace: --breached and --service choose the latest, and an id is given\nleave them out\n"


def test_a_trace_is_drawn_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    numbers = ((0x4BF92F35 << 96) + 1, (0x4BF92F36 << 96) + 2, (0x5BF92F36 << 96) + 3)
    file = literal.write(tmp_path, [literal.request(one, at, {"inference": 80}) for at, one in enumerate(numbers)])
    first, second, other = map(trace_id, numbers)
    assert answered("trace", "5bf9", "--store", file)["trace_id"] == other
    assert answered("trace", "4BF92F36", "--store", file)["trace_id"] == second
    said = refused("trace", "4bf9", "--store", file)
    assert said == f"stagetrace: 4bf9 begins the ids of 2 traces: {second}, {first}\ngive more of it\n"
    said = refused("trace", "6bf9", "--store", file)
    assert said.startswith("stagetrace: there is no trace whose id begins with 6bf9\n")
    assert "neither latest nor a trace id" in refused("trace", "4bf", "--store", file)


def test_times_are_read_and_shown_in_a_zone(spans: Path) -> None:
    zone = ("--tz", "Europe/Berlin")
    found = answered("requests", "--store", spans, "--since", "2026-03-01T13:00:03", *zone)
    assert ids(found["requests"]) == [5, 4]
    head = printed("trace", trace_id(5), "--store", spans, *zone).splitlines()[0]
    assert ", 2026-03-01 13:00:04.000000 Europe/Berlin, " in head
    nothing = printed("stages", "--store", spans, "--since", "2026-03-02", *zone)
    assert nothing == "No requests since 2026-03-02 00:00:00 Europe/Berlin.\n"


def test_watch_is_one_snapshot_in_a_pipe(spans: Path) -> None:
    assert (
        printed("watch", "--store", spans, *SINCE, "--service", "shop")
        == f"""\
Objectives and routes
service shop; objective POST /predict within 50ms
route     model   requests  errors       p50       p99  breaches       met
/predict  Ranker         3       0  80.00 ms  80.00 ms         2   33.33 %
/predict  Tagger         1       0  20.00 ms  20.00 ms         0  100.00 %

Stages
stage                p50       p99   share
shop /predict, model Ranker
  preprocess    12.00 ms  15.92 ms  12.0 %
  inference     60.00 ms  69.80 ms  81.0 %
  mine          10.00 ms  10.00 ms   5.0 %
  network.send   4.00 ms   4.00 ms   2.0 %
shop /predict, model Tagger
  preprocess     4.00 ms   4.00 ms  20.0 %
  inference     16.00 ms  16.00 ms  80.0 %

Newest breaches
2026-03-01; service shop; model Ranker; status 200; allowed 50 ms; verdict breach
time (UTC)    request            took  stage      trace
12:00:04.000  POST /predict  80.00 ms  inference  {trace_id(5)}
12:00:00.000  POST /predict  80.00 ms  inference  {trace_id(1)}
"""
    )


def test_watch_json(spans: Path) -> None:
    found = answered("watch", "--store", spans, *SINCE, "--model", "Ranker")
    assert found["routes"] == [
        {
            "service": "shop",
            "route": "/predict",
            "model": "Ranker",
            "objective": "POST /predict within 50ms",
            "requests": 3,
            "judged": 3,
            "breaches": 2,
            "errors": 0,
            "p50_ms": 80.0,
            "p99_ms": 80.0,
            "max_ms": 80.0,
            "attainment": 1 / 3,
            "attainment_95": [1 / 3, 1 / 3],
            "stored": 3,
            "counted": False,
            "estimated": False,
            "sampling_known": True,
        }
    ]
    assert ids(found["breaches"]) == [5, 1]


def test_an_empty_answer_gives_its_start(spans: Path) -> None:
    for verb in ("stages", "requests", "tail", "watch"):
        found = printed(verb, "--store", spans, "--since", "2026-03-02T00:00:00Z")
        assert found == "No requests since 2026-03-02 00:00:00 UTC.\n"


def test_breaches_say_out_of_how_many_requests(spans: Path) -> None:
    said = partial(printed, "breaches", "--store", spans)
    assert said("--model", "Tagger") == (
        "0 of 1 judged requests missed their objective.\nThe selected requests of shop.\n"
    )
    ends = "--since", "2026-03-01T11:00", "--until", "2026-03-01T13:00"
    assert (
        said(*ends, "--service", "shop")
        .splitlines()[1]
        .startswith("All requests of shop between 2026-03-01 11:00:00 and 2026-03-01 13:00:00 UTC")
    )
    lines = said().splitlines()
    assert lines[:2] == [
        f"2 of 4 {MISSED}, 60.0 ms over in all: inference/cpu_wait 50 %, inference/slow_download 50 %.",
        "All requests of shop, web; not judged: 1 that no objective matches.",
    ]
    assert said("--service", "web") == (
        "1 request, none judged: their spans carry no verdict, which only stagetrace writes (STAGETRACE=1 and "
        "STAGETRACE_SLA).\nAll requests of web.\n"
    )
    assert said("--service", "web", "--since", "2026-03-02").startswith("No requests in this window, the last one ")


def test_the_summary_counts_what_is_and_not_what_is_listed(spans: Path) -> None:
    """Whatever the limit; people are told how to see the rest, and a script that its list is not whole."""
    whole, cut = (printed("breaches", "--store", spans, *limit).splitlines() for limit in ((), ("--limit", "1")))
    assert cut[:2] == whole[:2]
    assert cut[5].startswith("12:00:04.000  POST /predict  80.00 ms  30.00 ms  inference (cpu_wait)")
    assert cut[6:] == ["", "These are the newest 1 of 2; --limit 2 shows all.", whole[-1]]
    done = cli("breaches", "--store", str(spans), "--limit", "1", "--json")
    found = json.loads(done.stdout)
    assert (found["missed"], found["judged"], len(found["breaches"]), found["complete"]) == (2, 4, 1, False)
    assert done.stderr == "stagetrace: INCOMPLETE: limit 1 reached, there are older breaches\n"


def test_people_are_shown_the_newest_twenty_and_scripts_all(tmp_path: Path) -> None:
    broken = literal.verdict(breached=True)
    file = literal.write(tmp_path, [literal.request(n, n, {"inference": 80}, **broken) for n in range(1, 26)])
    lines = printed("breaches", "--store", file).splitlines()
    assert lines[0] == "25 of 25 judged requests missed their objective, 750.0 ms over in all: inference/unknown 100 %."
    assert [line.split()[-1] for line in lines[5:25]] == [trace_id(number) for number in range(25, 5, -1)]
    assert lines[25:27] == ["", "These are the newest 20 of 25; --limit 25 shows all."]
    assert len(printed("breaches", "--store", file, "--limit", "25").splitlines()) == 3 + 2 + 25 + 2
    found = answered("breaches", "--store", file)
    assert (len(found["breaches"]), found["complete"]) == (25, True)


def test_time_lost_is_ranked_by_time_and_not_by_number(tmp_path: Path) -> None:
    """One long breach outweighs several short ones; of many kinds the rest is summed."""
    lost = [("preprocess", "gc", 1.0)] * 3 + [("inference", f"cause{n}", 10.0 * n) for n in range(1, 7)]
    names = (semconv.SLA_BREACH_STAGE, semconv.SLA_BREACH_CAUSE, semconv.SLA_OVERRUN_MS)
    verdicts = [literal.verdict(breached=True, **dict(zip(names, one, strict=True))) for one in lost]
    made = [literal.request(n, n, {lost[n - 1][0]: 80}, **one) for n, one in enumerate(verdicts, 1)]
    file = literal.write(tmp_path, made)
    assert printed("breaches", "--store", file).splitlines()[0] == (
        "9 of 9 judged requests missed their objective, 213.0 ms over in all: inference/cause6 28 %, "
        "inference/cause5 23 %, inference/cause4 19 %, inference/cause3 14 %, inference/cause2 9 %, 2 others 6 %."
    )
    found = answered("breaches", "--store", file)["lost"]
    assert [one["cause"] for one in found] == ["cause6", "cause5", "cause4", "cause3", "cause2", "cause1", "gc"]
    assert (found[-1]["missed"], found[-1]["overrun_ms"]) == (3, 3.0)


def failing(file: Path, *options: str) -> tuple[int, str, str]:
    done = cli("breaches", "--store", str(file), "--fail", *options)
    return done.returncode, done.stdout.partition("\n")[0], done.stderr


NOTHING = "stagetrace: no request was judged, so that --fail has no answer\n"


def test_fail_is_no_good_news_where_nothing_was_judged(tmp_path: Path, spans: Path) -> None:
    """Whatever the reason: no request, no objective that matches, all excluded, other senders' spans."""
    plain = {"http.route": "/score", "http.request.method": "POST"}
    good = literal.verdict(breached=False)
    excluded = {**plain, semconv.SLA_VERDICT: "excluded", semconv.SLA_OBJECTIVE: "POST /score excluded"}

    def of(*requests: str) -> tuple[int, str, str]:
        return failing(literal.write(tmp_path, requests))

    recorded = literal.request(1, 0, {"inference": 80}, **plain)
    stock = literal.request(2, 0, {}, duration_ms=80, **plain)
    left_out = literal.request(3, 0, {"inference": 80}, **excluded)
    kept = literal.request(4, 0, {"inference": 20}, **good)
    broken = literal.request(5, 0, {"inference": 80}, **literal.verdict(breached=True))
    assert of(recorded) == (2, "1 request, none judged: no objective matches (STAGETRACE_SLA of the service).", NOTHING)
    assert of(stock)[0::2] == (2, NOTHING)
    assert "none judged: their spans carry no verdict" in of(stock)[1]
    assert of(left_out) == (2, "1 request, none judged: the policy excludes them.", NOTHING)
    assert of(recorded, left_out)[1] == (
        "2 requests, none judged: 1 excluded, and of the other 1 no objective matches (STAGETRACE_SLA of the service)."
    )
    assert of(recorded, stock, left_out, kept) == (0, "0 of 1 judged requests missed their objective.", "")
    assert of(recorded, stock, left_out, kept, broken)[0] == 1
    assert failing(spans, "--since", "2026-03-02")[0::2] == (2, NOTHING)
    assert failing(spans, "--model", "Tagger")[0] == 0
    assert failing(spans, "--model", "Ranker")[0] == 1


@pytest.mark.parametrize("verb", ["breaches", "stages", "requests", "tail", "watch", "query", "export"])
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--route", "/predcit"], "no request has the route '/predcit'\nthere are /predict, /health"),
        (["--route", "PUT /predict"], "no request has the route 'PUT /predict'\nthere are POST /predict, GET /health"),
        (["--model", "Rankr"], "no request has the model 'Rankr'\nthere are Ranker, Tagger"),
        (["--segment", "pd=a"], "no request has the attribute pd=a\nthey have the attributes pod, "),
        (["--segment", "pod=c"], "no request has the attribute pod=c\npod is a, b"),
        (["--service", "shp"], "there is no service 'shp'\nit holds shop, web"),
    ],
)
def test_a_name_that_the_store_does_not_know_is_an_error(
    spans: Path, tmp_path: Path, verb: str, flags: list[str], expected: str
) -> None:
    more = {"query": ["SELECT count(*) FROM requests"], "export": [str(tmp_path / "out.jsonl")]}.get(verb, [])
    said = refused(verb, *more, "--store", spans, *SINCE, *flags)
    assert expected in said
    assert len(said.splitlines()) == 2
    assert not list(tmp_path.iterdir())
