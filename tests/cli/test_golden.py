"""What each command prints of literal spans, whole: for people in a pipe, as JSON, as CSV."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cli import literal
from cli.literal import trace_id
from cli.running import cli
from stagetrace import semconv

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return literal.write(tmp_path_factory.mktemp("literal"))


def printed(*arguments: str) -> str:
    done = cli(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def answer(*arguments: str) -> Any:
    lines = printed(*arguments, "--json").splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_services(spans: Path) -> None:
    assert printed("services", "--store", str(spans)) == "shop\nweb\n"
    assert answer("services", "--store", spans.as_uri()) == {"complete": True, "services": ["shop", "web"]}


def test_stages(spans: Path) -> None:
    assert (
        printed("stages", "--store", str(spans))
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
    assert answer("stages", "--store", str(spans), "--model", "Tagger") == {
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
        printed("requests", "--store", str(spans), "--since", "2026-03-01T12:00:01Z")
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
        "requests", "--store", str(spans), "--sort", "preprocess", "--top", "2", "--service", "shop"
    ).splitlines()
    assert note == "2026-03-01; service shop; model Ranker; status 200; allowed 50 ms"
    assert head.endswith("  verdict  stage      preprocess  trace")
    assert first.endswith(f"  breach   inference    16.00 ms  {trace_id(1)}")
    assert second.endswith(f"  good     inference     8.00 ms  {trace_id(2)}")
    assert more == "2 of 4 requests shown; more: --top N"


def test_people_get_the_first_20_and_see_the_number_of_the_others(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    file.write_text("\n".join(literal.request(number, number, {"queue": number}) for number in range(1, 31)) + "\n")
    at = ("requests", "--store", str(file))
    lines = printed(*at).splitlines()
    assert (len(lines), lines[-1]) == (23, "20 of 30 requests shown; more: --top N")
    assert len(printed(*at, "--top", "25").splitlines()) == 28
    assert len(printed(*at, "--top", "30").splitlines()) == 32
    assert len(answer(*at)["requests"]) == 30
    done = cli(*at, "--limit", "25")
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
    found = answer("requests", "--store", str(spans), *arguments)
    assert [int(one["trace_id"], 16) for one in found["requests"]] == expected
    assert found["complete"]


def test_to_sort_by_a_stage_that_there_is_not_is_an_error(spans: Path) -> None:
    done = cli("requests", "--store", str(spans), "--sort", "min")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "stagetrace: cannot sort by 'min': no request here has a stage of this name\n"
        "there are start, duration, overrun, inference, mine, network.send, preprocess\n"
    )


MISSED = "judged requests missed their objective"


def test_breaches_take_the_same_filters(spans: Path) -> None:
    def ids(*options: str) -> list[int]:
        return [int(one["trace_id"], 16) for one in answer("breaches", "--store", str(spans), *options)["breaches"]]

    assert ids() == [5, 1]
    assert ids("--model", "Tagger") == []
    assert ids("--segment", "tenant=blue", "--route", "/predict") == [5]
    assert ids("--until", "2026-03-01T12:00:04Z") == [1]


def test_one_or_several_causes(spans: Path) -> None:
    def ids(verb: str, *options: str) -> list[int]:
        found = answer(verb, "--store", str(spans), *options)
        return [int(one["trace_id"], 16) for one in found["breaches" if verb == "breaches" else "requests"]]

    for verb in ("breaches", "requests"):
        assert ids(verb, "--cause", "cpu_wait") == [5]
        assert ids(verb, "--cause", "gc") == []
        assert ids(verb, "--cause", "slow_download", "--cause", "cpu_wait", "--cause", "cpu_wait") == [5, 1]
        assert ids(verb, "--cause", "slow_download", "--model", "Tagger") == []
    (group,) = answer("stages", "--store", str(spans), "--cause", "cpu_wait")["groups"]
    assert (group["model"], group["requests"]) == ("Ranker", 1)
    said = printed("breaches", "--store", str(spans), "--cause", "cpu_wait").splitlines()
    assert said[:2] == [
        f"1 of 4 {MISSED} because of cpu_wait, 30.0 ms over in all: inference/cpu_wait 100 %.",
        "All requests of shop, web; not judged: 1 that no objective matches.",
    ]
    assert printed("breaches", "--store", str(spans), "--cause", "gc").startswith(
        "0 of 4 judged requests missed their objective because of gc.\n"
    )


def test_a_cause_that_there_is_none_of_is_refused(spans: Path) -> None:
    done = cli("breaches", "--store", str(spans), "--cause", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "argument --cause: 'cpu' is no cause; there are socket_wait, " in done.stderr


def test_a_breach_of_a_part_of_the_request_shows_that_part_beside_the_whole(tmp_path: Path) -> None:
    broken = literal.verdict(breached=True, **{semconv.SLA_BREACH_PROMISE: "first_chunk"})
    file = tmp_path / "spans.jsonl"
    file.write_text(literal.request(1, 0, {"inference": 80, "network.send": 400}, **broken))
    row = printed("breaches", "--store", str(file)).splitlines()[5]
    assert "  80.00 ms of 480.00 ms  30.00 ms  " in row


def test_each_bound_that_a_stream_missed_is_shown(tmp_path: Path) -> None:
    said = "first_chunk: 163.2 ms, 100 ms allowed; per_chunk: 210 ms, 150 ms allowed"
    broken = literal.verdict(
        breached=True, **{semconv.SLA_BREACH_MISSED: said, semconv.SLA_BREACH_PROMISE: "first_chunk"}
    )
    file = tmp_path / "spans.jsonl"
    file.write_text(literal.request(1, 0, {"inference": 80, "network.send": 400}, **broken))
    assert "  163.20 ms first chunk  " in printed("breaches", "--store", str(file)).splitlines()[5]
    (breach,) = answer("breaches", "--store", str(file))["breaches"]
    assert breach["missed"] == [
        {"bound": "first_chunk", "took_ms": 163.2, "allowed_ms": 100.0},
        {"bound": "per_chunk", "took_ms": 210.0, "allowed_ms": 150.0},
    ]
    shown = printed("trace", breach["trace_id"], "--store", str(file)).splitlines()
    assert shown[1] == (
        "BREACH shop POST /predict: first chunk after 163.20 ms, 100 ms allowed, over by 30.00 ms (major); "
        "the whole response took 480.00 ms"
    )
    assert shown[2] == "  also missed: gap of 210.00 ms between two chunks, 150 ms allowed"


def test_a_limit_is_shown_in_each_form(spans: Path) -> None:
    since = ("--since", "2026-03-01T00:00:00Z")
    for verb in ("requests", "stages", "watch", "query"):
        sql = ["SELECT count(*) FROM requests"] if verb == "query" else []
        done = cli(verb, *sql, "--store", str(spans), *since, "--limit", "2", "--json")
        found = json.loads(done.stdout)
        assert (done.returncode, found["complete"], found["reason"]) == (
            0,
            False,
            "limit 2 reached, there are older requests",
        )
        assert done.stderr == "stagetrace: INCOMPLETE: limit 2 reached, there are older requests\n"
    assert found["rows"] == [[2]]


def test_tail_shows_the_newest_last(spans: Path) -> None:
    assert (
        printed("tail", "--store", str(spans), "--limit", "2")
        == f"""\
2026-03-01
time (UTC)    service  request        model   status      took  allowed  verdict  stage      trace
12:00:03.000  web      GET /health    -          503   1.50 ms        -  -        -          {trace_id(4)}
12:00:04.000  shop     POST /predict  Ranker     200  80.00 ms    50 ms  breach   inference  {trace_id(5)}
"""
    )
    found = answer("tail", "--store", str(spans), "--limit", "2")
    assert [int(one["trace_id"], 16) for one in found["requests"]] == [4, 5]
    assert found["requests"] == answer("requests", "--store", str(spans), "--top", "2")["requests"][::-1]


def test_the_latest_request_and_the_latest_breach_are_drawn(spans: Path) -> None:
    at = ("--store", str(spans))
    assert printed("trace", "latest", *at) == printed("trace", trace_id(5), *at)
    assert answer("trace", "latest", "--service", "web", *at)["trace_id"] == trace_id(4)
    assert answer("trace", "latest", "--breached", *at)["trace_id"] == trace_id(5)
    done = cli("trace", "latest", "--breached", "--service", "web", *at)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "stagetrace: the store holds no breach of web\nsend one, or name another store\n"
    done = cli("trace", trace_id(5), "--breached", *at)
    assert done.stderr == "stagetrace: --breached and --service choose the latest, and an id is given\nleave them out\n"


def test_a_trace_is_drawn_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    ids = ((0x4BF92F35 << 96) + 1, (0x4BF92F36 << 96) + 2, (0x5BF92F36 << 96) + 3)
    file.write_text("\n".join(literal.request(number, at, {"inference": 80}) for at, number in enumerate(ids)) + "\n")
    first, second, other = (trace_id(number) for number in ids)
    assert answer("trace", "5bf9", "--store", str(file))["trace_id"] == other
    assert answer("trace", "4BF92F36", "--store", str(file))["trace_id"] == second
    done = cli("trace", "4bf9", "--store", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"stagetrace: 4bf9 begins the ids of 2 traces: {second}, {first}\ngive more of it\n"
    done = cli("trace", "6bf9", "--store", str(file))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("stagetrace: there is no trace whose id begins with 6bf9\n")
    assert "neither latest nor a trace id" in cli("trace", "4bf", "--store", str(file)).stderr


def test_times_are_read_and_shown_in_a_zone(spans: Path) -> None:
    zone = ("--tz", "Europe/Berlin")
    found = answer("requests", "--store", str(spans), "--since", "2026-03-01T13:00:03", *zone)
    assert [int(one["trace_id"], 16) for one in found["requests"]] == [5, 4]
    head = printed("trace", trace_id(5), "--store", str(spans), *zone).splitlines()[0]
    assert ", 2026-03-01 13:00:04.000000 Europe/Berlin, " in head
    nothing = printed("stages", "--store", str(spans), "--since", "2026-03-02", *zone)
    assert nothing == "No requests since 2026-03-02 00:00:00 Europe/Berlin.\n"


def test_watch_is_one_snapshot_in_a_pipe(spans: Path) -> None:
    assert (
        printed("watch", "--store", str(spans), "--since", "2026-03-01T00:00:00Z", "--service", "shop")
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
    found = answer("watch", "--store", str(spans), "--since", "2026-03-01T00:00:00Z", "--model", "Ranker")
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
    assert [int(one["trace_id"], 16) for one in found["breaches"]] == [5, 1]


QUERY = (
    "SELECT model, count(*) AS n, max(inference_ms) AS most, bool_or(breached) AS b FROM requests "
    "GROUP BY 1 ORDER BY 2 DESC, 1"
)


def test_query(spans: Path) -> None:
    assert (
        printed("query", QUERY, "--store", str(spans))
        == """\
model   n  most  b
Ranker  3  70.0  true
Tagger  1  16.0  false
-       1     -  -
"""
    )
    assert printed("query", QUERY, "--store", str(spans), "--csv") == (
        "model,n,most,b\nRanker,3,70.0,true\nTagger,1,16.0,false\n,1,,\n"
    )
    assert answer("query", QUERY, "--store", str(spans)) == {
        "complete": True,
        "columns": ["model", "n", "most", "b"],
        "rows": [["Ranker", 3, 70.0, True], ["Tagger", 1, 16.0, False], [None, 1, None, None]],
    }


def test_query_gives_every_type_as_json_has_it(spans: Path) -> None:
    sql = (
        "SELECT 9223372036854775807 AS big, 1.50::DECIMAL(9, 2) AS d, 'nan'::DOUBLE AS n, '-inf'::DOUBLE AS i, "
        "attributes AS m, [1, NULL] AS l, {'a': 'b'} AS s, '\\x01'::BLOB AS b, DATE '2026-03-01' AS day, 'é\x1b' AS t "
        "FROM spans WHERE stage = 'network.send'"
    )
    found = answer("query", sql, "--store", str(spans))
    assert found["rows"] == [
        [
            *(9223372036854775807, 1.5, "NaN", "-Infinity", {"ml.stage": "network.send"}, [1, None], {"a": "b"}),
            *("AQ==", "2026-03-01", "é\x1b"),
        ]
    ]
    assert "\x1b" not in printed("query", sql, "--store", str(spans))


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT nope FROM requests", 'Referenced column "nope" not found'),
        ("SELECT * FROM reqests", "Table with name reqests does not exist"),
        ("SELEC 1", 'syntax error at or near "SELEC"'),
        ("", "query takes one statement, and this is none"),
        ("SELECT 1; SELECT 2", "query takes one statement, and this is 2"),
        ("DROP VIEW requests", "query only reads, and this is DROP"),
        ("INSERT INTO requests VALUES (1)", "query only reads, and this is INSERT"),
        ("CREATE TABLE t AS SELECT 1", "query only reads, and this is CREATE"),
        ("UPDATE requests SET name = 'x'", "query only reads, and this is UPDATE"),
        ("ATTACH '/tmp/x.db'", "query only reads, and this is ATTACH"),
        ("COPY requests TO '/tmp/x.csv'", "query only reads, and this is COPY"),
        ("EXPORT DATABASE '/tmp/x'", "query only reads, and this is EXPORT"),
        ("INSTALL httpfs", "query only reads, and this is LOAD"),
        ("SET enable_external_access = true", "query only reads, and this is SET"),
        ("SET VARIABLE since_ns = 0", "query only reads, and this is SET"),
        ("PRAGMA enable_profiling", "query only reads, and this is PRAGMA"),
        ("EXPLAIN ANALYZE COPY requests TO '/tmp/x.csv'", "Cannot access file"),
        ("FROM read_csv('/etc/passwd')", "file system operations are disabled"),
        ("FROM read_text('/etc/passwd')", "file system operations are disabled"),
        ("FROM '/etc/passwd'", "does not exist"),
        ("FROM glob('/*')", "file system operations are disabled"),
        ("SELECT getenv('HOME')", "does not exist"),
        ("FROM query('DROP VIEW requests')", "SELECT statement"),
    ],
)
def test_query_reads_the_relations_and_nothing_else(spans: Path, sql: str, expected: str) -> None:
    done = cli("query", sql, "--store", str(spans))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("stagetrace: ")
    assert expected in done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 3


def test_describe_lists_the_columns(spans: Path) -> None:
    assert "network_send_ms" in printed("query", "DESCRIBE requests", "--store", str(spans))


def test_an_empty_answer_gives_its_start(spans: Path) -> None:
    for verb in ("stages", "requests", "tail", "watch"):
        found = printed(verb, "--store", str(spans), "--since", "2026-03-02T00:00:00Z")
        assert found == "No requests since 2026-03-02 00:00:00 UTC.\n"


def test_breaches_say_out_of_how_many_requests(spans: Path) -> None:
    def said(*options: str) -> str:
        return printed("breaches", "--store", str(spans), *options)

    assert said("--model", "Tagger") == (
        "0 of 1 judged requests missed their objective.\nThe selected requests of shop, web.\n"
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
    whole, cut = (printed("breaches", "--store", str(spans), *limit).splitlines() for limit in ((), ("--limit", "1")))
    assert cut[:2] == whole[:2]
    assert cut[5].startswith("12:00:04.000  POST /predict  80.00 ms  30.00 ms  inference (cpu_wait)")
    assert cut[6:] == ["", "These are the newest 1 of 2; --limit 2 shows all.", whole[-1]]
    done = cli("breaches", "--store", str(spans), "--limit", "1", "--json")
    found = json.loads(done.stdout)
    assert (found["missed"], found["judged"], len(found["breaches"]), found["complete"]) == (2, 4, 1, False)
    assert done.stderr == "stagetrace: INCOMPLETE: limit 1 reached, there are older breaches\n"


def test_people_are_shown_the_newest_twenty_and_scripts_all(tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    made = [
        literal.request(number, number, {"inference": 80}, **literal.verdict(breached=True)) for number in range(1, 26)
    ]
    file.write_text("\n".join(made))
    lines = printed("breaches", "--store", str(file)).splitlines()
    assert lines[0] == "25 of 25 judged requests missed their objective, 750.0 ms over in all: inference/unknown 100 %."
    assert [line.split()[-1] for line in lines[5:25]] == [trace_id(number) for number in range(25, 5, -1)]
    assert lines[25:27] == ["", "These are the newest 20 of 25; --limit 25 shows all."]
    assert len(printed("breaches", "--store", str(file), "--limit", "25").splitlines()) == 3 + 2 + 25 + 2
    found = answer("breaches", "--store", str(file))
    assert (len(found["breaches"]), found["complete"]) == (25, True)


def test_time_lost_is_ranked_by_time_and_not_by_number(tmp_path: Path) -> None:
    """One long breach outweighs several short ones; of many kinds the rest is summed."""
    file = tmp_path / "spans.jsonl"
    made = []
    for number, (stage, cause, over) in enumerate(
        [("preprocess", "gc", 1.0)] * 3 + [("inference", f"cause{n}", 10.0 * n) for n in range(1, 7)], 1
    ):
        verdict = literal.verdict(breached=True) | {
            semconv.SLA_BREACH_STAGE: stage,
            semconv.SLA_BREACH_CAUSE: cause,
            semconv.SLA_OVERRUN_MS: over,
        }
        made.append(literal.request(number, number, {stage: 80}, **verdict))
    file.write_text("\n".join(made))
    assert printed("breaches", "--store", str(file)).splitlines()[0] == (
        "9 of 9 judged requests missed their objective, 213.0 ms over in all: inference/cause6 28 %, "
        "inference/cause5 23 %, inference/cause4 19 %, inference/cause3 14 %, inference/cause2 9 %, 2 others 6 %."
    )
    lost = answer("breaches", "--store", str(file))["lost"]
    assert [one["cause"] for one in lost] == ["cause6", "cause5", "cause4", "cause3", "cause2", "cause1", "gc"]
    assert (lost[-1]["missed"], lost[-1]["overrun_ms"]) == (3, 3.0)


def failing(file: Path, *options: str) -> tuple[int, str, str]:
    done = cli("breaches", "--store", str(file), "--fail", *options)
    return done.returncode, done.stdout.partition("\n")[0], done.stderr


NOTHING = "stagetrace: no request was judged, so that --fail has no answer\n"


def test_fail_is_no_good_news_where_nothing_was_judged(tmp_path: Path, spans: Path) -> None:
    """Whatever the reason: no request, no objective that matches, all excluded, other senders' spans."""
    plain = {"http.route": "/score", "http.request.method": "POST"}
    good = literal.verdict(breached=False)
    excluded = {**plain, semconv.SLA_VERDICT: "excluded", semconv.SLA_OBJECTIVE: "POST /score excluded"}
    file = tmp_path / "spans.jsonl"

    def of(*requests: str) -> tuple[int, str, str]:
        file.write_text("\n".join(requests))
        return failing(file)

    recorded = literal.request(1, 0, {"inference": 80}, **plain)
    stock = literal.request(2, 0, {}, ms=80, **plain)
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
    done = cli(verb, *more, "--store", str(spans), "--since", "2026-03-01T00:00:00Z", *flags)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not list(tmp_path.iterdir())
