"""One suite over every member of the reader contract: the same spans, the same questions, the same answers."""

from __future__ import annotations

import re
import statistics
from collections import Counter, deque
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from heavy import HEAVY
from messages import leaves
from stagetrace import semconv
from stagetrace.analysis import routes_and_stages
from stagetrace.analysis.breach_details import Hop, Owner
from stagetrace.errors import QueryError, StoreError
from stagetrace.output.breaches import owners_of
from stagetrace.store import Selection, answers, open_store
from stagetrace.store.base import CANDIDATES
from stagetrace.store.message_reader import nearest
from stagetrace.store.reductions import REQUESTS, SPANS
from store import members
from store.feed import MS
from store.oracle import BASIC, SELECTIONS, has_texts, meant, seen, tally, text_of
from store.spans import ALL, BASE, END, ENTRIES, NASTY, OLD, RENAMED, RPC, VERDICTS, WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.store import Reader

MODEL = semconv.ML_MODEL_NAME
# The types of columns in DuckDB -> in ClickHouse.
CLICKHOUSE = {
    "VARCHAR": "String",
    "BIGINT": "Int64",
    "DOUBLE": "Float64",
    "BOOLEAN": "Bool",
    "TIMESTAMP": "DateTime64(6, 'UTC')",
    "MAP(VARCHAR, DOUBLE)": "Map(String, Float64)",
    "MAP(VARCHAR, VARCHAR)": "Map(String, String)",
}


def rows(reader: Reader, selection: Selection, sql: str) -> list[dict[str, Any]]:
    with reader.relations(selection) as relations:
        names, found = relations.select(sql)
        return [dict(zip(names, row, strict=True)) for row in found]


def test_services(member: str) -> None:
    with open_store(member) as reader:
        found = [name for name in reader.services() if name.startswith("contract-")]
    assert found == ["contract-0", "contract-1", "contract-back", "contract-odd", "contract-old"]


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("member", members.EACH_WAY, indirect=True)
def test_breaches_and_relations_are_the_selected_ones(member: str, name: str) -> None:
    compare(member, name)


@pytest.mark.heavier
@pytest.mark.parametrize("member", members.LIKE_ANOTHER, indirect=True)
def test_what_is_read_like_another_gives_the_same(member: str) -> None:
    for name in SELECTIONS if HEAVY else BASIC:
        compare(member, name)


def compare(member: str, name: str) -> None:
    if name == "shown-elsewhere" and has_texts(member):
        return  # where its route is 7, the request is shown as `odd 7`
    with open_store(member) as reader:
        _compare_breaches(reader, name, member)
        _compare_relations(reader, name, member)


def _compare_breaches(reader: Reader, name: str, member: str) -> None:
    selection = SELECTIONS[name]
    answer = reader.breaches(selection)
    expected = meant(replace(selection, breached=True), member)
    found = [(one.trace_id, one.span_id) for one in answer.breaches]
    assert found == [(one.trace_id, one.span_id) for one in expected], name
    cut = len(meant(replace(selection, breached=True, limit=None), member)) > len(expected)
    reason = f"limit {selection.limit} reached, there are older breaches" if cut else None
    assert (answer.complete, answer.reason) == (not cut, reason), name
    assert answer.tally == tally(selection, member), name


def _compare_relations(reader: Reader, name: str, member: str) -> None:
    """Requests are the selected entry spans; spans are those of the requests' traces, or of the time."""
    selection = SELECTIONS[name]
    with reader.relations(selection) as relations:
        requests = list(
            relations.select("SELECT trace_id, span_id FROM requests ORDER BY start_unix_nano DESC, trace_id, span_id")[
                1
            ]
        )
        spans = list(relations.select("SELECT trace_id, span_id FROM spans WHERE service LIKE 'contract-%'")[1])
        cut = (relations.complete, relations.reason)
    expected = meant(selection, member)
    assert requests == [(one.trace_id, one.span_id) for one in expected], name
    more = len(meant(replace(selection, limit=None), member)) > len(expected)
    assert cut == (not more, f"limit {selection.limit} reached, there are older requests" if more else None), name
    traces = {one.trace for one in expected}
    in_time = selection.since_ns, selection.until_ns
    assert sorted(spans) == sorted(
        (one.trace_id, one.span_id)
        for one in ALL
        if (one.trace in traces if selection.is_filtered else in_time[0] <= one.start < in_time[1])
    ), name


def test_the_relations_have_these_columns_and_types(member: str) -> None:
    with open_store(member) as reader, reader.relations(WHOLE) as relations:
        for name, columns in {"spans": SPANS, "requests": REQUESTS}.items():
            found = list(relations.select(f"DESCRIBE {name}")[1])
            kinds = CLICKHOUSE if member.startswith("clickhouse") else {}
            assert {
                column: re.sub(r"(?:Nullable|LowCardinality)\((?:Nullable\()?(\w+)\)+", r"\1", kind)
                for column, kind, *_ in found
            } == {column: kinds.get(kind, kind) for column, kind in columns.items()}
            assert [column for column, *_ in found] == list(columns)


def test_a_request_has_every_column_filled(member: str) -> None:
    made = ALL[0]
    with open_store(member) as reader:
        found = next(one for one in rows(reader, WHOLE, "SELECT * FROM requests") if one["span_id"] == made.span_id)
    assert found == {
        "trace_id": made.trace_id,
        "span_id": made.span_id,
        "service": "contract-0",
        "name": "POST /predict",
        "route": "/predict",
        "method": "POST",
        "http_status": 200,
        "model": "Ranker",
        "model_version": "1",
        "framework": "sklearn",
        "batch_size": 1,
        "status": "ERROR",
        "start_unix_nano": made.start,
        "end_unix_nano": made.start + 40 * MS,
        "duration_ms": 40.0,
        "breached": True,
        "verdict": "breach",
        "objective": "POST /predict within 50ms",
        "verdicts": VERDICTS,
        "segment": "gold, eu",
        "over_budget": "inference, queue",
        "deadline_source": "grpc-timeout",
        "threshold_ms": 50.0,
        "overrun_ms": -10.0,
        "severity": "major",
        "stage": "inference",
        "cause": "unknown",
        "evidence": "inference took 40.0 ms of 40.0 ms",
        "code": "app.py:4 in predict",
        "weight": 1.0,
        "preprocess_ms": 10.0,
        "inference_ms": 20.0,
        "other_ms": 10.0,
        "start_time": datetime(1970, 1, 1) + timedelta(microseconds=made.start // 1000),  # noqa: DTZ001
        **dict.fromkeys(
            (
                "request_bytes",
                "process_cpu_ms",
                "target",
                "excluded_reason",
                "upgraded",
                "sampling_probability",
                "url_path",
            )
        ),
        **dict.fromkeys(("network_receive_ms", "queue_ms", "handler_ms", "postprocess_ms", "network_send_ms")),
        "stages": {"preprocess": 10.0, "inference": 20.0, "mine": 5.0, "yours": 5.0},
        "attributes": {key: text_of(value) for key, value in made.attributes.items()},
    }


def test_a_request_by_the_older_names_of_opentelemetry_fills_the_same_columns(member: str) -> None:
    """And a stage that the program named itself is one of its stages, also where its total is a whole number."""
    with open_store(member) as reader:
        (found,) = rows(reader, replace(WHOLE, service="contract-old"), "SELECT * FROM requests")
        (span,) = rows(reader, replace(WHOLE, service="contract-old"), "SELECT * FROM spans")
        (newest,) = answers_of(reader, replace(WHOLE, service="contract-old"))
    assert (found["method"], found["http_status"], found["url_path"]) == ("GET", 503, "/items/7")
    assert (span["method"], span["http_status"]) == ("GET", 503)
    assert (found["route"], found["stages"], found["other_ms"]) == (None, {"tokenize": 12.0}, 12.0)
    assert found["attributes"] == span["attributes"] == {key: text_of(value) for key, value in OLD.attributes.items()}
    assert newest["stages"] == {"tokenize": 12.0}


@pytest.mark.parametrize("name", RENAMED)
def test_a_renamed_attribute_is_counted_by_either_name(member: str, name: str) -> None:
    values = [one.attributes.get(RENAMED[0], one.attributes.get(RENAMED[1])) for one in ENTRIES]
    with open_store(member) as reader, reader.relations(WHOLE) as relations:
        counted = {row[name]: row["stored"] for row in relations.reduce("counts", [name])}
    assert counted == Counter(values)
    assert len(counted) == 3


def test_stages_are_shown_by_their_names(member: str) -> None:
    """Those that a program marked by hand beside the others, in order, with the same quantiles."""
    with (
        open_store(member) as reader,
        reader.relations(replace(WHOLE, service="contract-1", model="Tagger")) as relations,
    ):
        groups = routes_and_stages.ask_stages(relations)
        assert answers.stage_names(relations) == ["inference", "mine", "preprocess", "yours"]
        slowest = answers.requests(relations, "mine", 2)
    made = [one for one in ENTRIES if one.service == "contract-1" and one.attributes.get(MODEL) == "Tagger"]
    assert sum(group.requests for group in groups) == len(made) > 2
    for group in groups:
        assert [one.stage for one in group.stages] == ["preprocess", "inference", "mine", "yours"]
        totals = [one.attributes["ml.stage.mine.ms"] for one in made if one.attributes["http.route"] == group.route]
        mine = group.stages[2]
        assert (mine.count, mine.max_ms) == (len(totals), max(totals))
        assert mine.p50_ms == pytest.approx(statistics.median(totals))
        assert mine.share == pytest.approx(0.125)
    most = sorted((one.attributes["ml.stage.mine.ms"] for one in made), reverse=True)
    assert [one["stages"]["mine"] for one in slowest] == most[:2]


def answers_of(reader: Reader, selection: Selection) -> list[dict[str, Any]]:
    with reader.relations(selection) as relations:
        return answers.requests(relations)


def test_a_span_has_every_column_filled(member: str) -> None:
    made, stage = ALL[4], ALL[6]
    with open_store(member) as reader:
        found = {one["span_id"]: one for one in rows(reader, WHOLE, "SELECT * FROM spans")}
    top, below = found[made.span_id], found[stage.span_id]
    typed = {"route": "/rank", "method": "POST", "http_status": 300, "model": "Tagger", "framework": "sklearn"}
    typed |= {"batch_size": 2, "breached": False, "verdict": "good", "objective": "POST /predict within 50ms"}
    typed["target"] = made.attributes.get("sla.target")
    assert {name: top[name] for name in typed} == typed
    assert (top["is_entry"], top["parent_span_id"], top["threshold_ms"], top["stage"]) == (True, None, 50.0, None)
    assert top["attributes"] == {key: text_of(value) for key, value in made.attributes.items()}
    resource = {**made.resource, "service.name": "contract-1"}
    assert {key: top["resource"].get(key) for key in resource} == resource
    assert (below["is_entry"], below["parent_span_id"], below["stage"]) == (False, made.span_id, "inference")
    assert (below["start_unix_nano"], below["end_unix_nano"]) == (stage.start, stage.end)
    assert below["duration_ms"] == (stage.end - stage.start) / 1e6
    assert (below["kind"], below["status"], below["service"]) == ("INTERNAL", "UNSET", "contract-1")


def test_the_route_of_an_rpc_is_its_method(member: str) -> None:
    """Of its entry span alone: its calls of others are no requests, and have no route."""
    selection = SELECTIONS["rpc"]
    with open_store(member) as reader:
        (breach,) = reader.breaches(selection).breaches
        requests = rows(reader, selection, "SELECT name, route FROM requests")
        spans = rows(reader, selection, "SELECT name, route, attributes FROM spans ORDER BY is_entry DESC")
    assert breach.route == RPC
    assert requests == [{"name": RPC, "route": RPC}]
    assert [(one["name"], one["route"]) for one in spans] == [(RPC, RPC), ("ml.Features/Get", None)]
    assert [one["attributes"]["rpc.method"] for one in spans] == [RPC, "ml.Features/Get"]


def test_an_attribute_of_another_type_than_its_column_is_absent_there(member: str) -> None:
    with open_store(member) as reader:
        (found,) = rows(reader, replace(WHOLE, service="contract-odd"), "SELECT * FROM spans")
    columns = found["route"], found["http_status"], found["batch_size"], found["verdict"]
    # Of texts, one that reads as the column's type is in it.
    assert columns == (("7", None, None, "true") if has_texts(member) else (None, None, None, None))
    assert found["attributes"]["http.route"] == "7"
    assert found["attributes"][semconv.ML_BATCH_SIZE] == "1.5"


def test_quantiles_are_exact(member: str) -> None:
    with open_store(member) as reader:
        quantiles = "quantile_cont(inference_ms, [0.5, 0.95, 0.99])"
        if member.startswith("clickhouse"):
            quantiles = "quantilesExactInclusive(0.5, 0.95, 0.99)(inference_ms)"
        sql = f"SELECT {quantiles} AS q, count(*) AS n FROM requests"  # noqa: S608 -- ours
        (found,) = rows(reader, replace(WHOLE, service="contract-1"), sql)
    totals = [one.attributes["ml.stage.inference.ms"] for one in ENTRIES if one.service == "contract-1"]
    cuts = statistics.quantiles(totals, n=100, method="inclusive")
    assert found["n"] == len(totals)
    assert found["q"] == pytest.approx([cuts[49], cuts[94], cuts[98]], rel=1e-12)


def test_a_trace_comes_whole_and_each_span_once(member: str) -> None:
    expected = [one for one in ALL if one.trace == ALL[0].trace]
    with open_store(member) as reader:
        trace = reader.trace(ALL[0].trace_id)
        repeated = reader.trace(ALL[4].trace_id)
    assert sorted(one.span_id for one in trace.spans) == sorted(one.span_id for one in expected)
    assert len(repeated.spans) == 4
    top = next(one for one in trace.spans if one.span_id == ALL[0].span_id)
    assert dict(top.attributes) == seen(ALL[0], member).attributes
    assert (trace.complete, trace.reason) == (True, None)


def test_many_traces_come_at_once_as_each_would_alone(member: str) -> None:
    wanted = [ALL[0].trace_id, ALL[4].trace_id, "ab" * 16, ENTRIES[-1].trace_id]
    with open_store(member) as reader:
        found = {one.trace_id: one for one in reader.traces(wanted)}
        assert found == {trace_id: reader.trace(trace_id) for trace_id in wanted if trace_id != "ab" * 16}
        assert list(reader.traces([])) == []


def test_what_is_read_is_reported_as_progress(member: str) -> None:
    """Of what takes long: Jaeger, Tempo and files; the share of all of it never falls, and ends within the whole."""
    told: list[tuple[int, str, float | None]] = []
    with open_store(member) as reader:
        reader.progress = lambda count, what, share: told.append((count, what, share))
        with reader.relations(replace(WHOLE, since_ns=BASE - 1)):
            pass
    if not member.startswith(("jaeger:", "file:", "tempo:")) or member.endswith(".parquet"):
        return
    assert [count for count, _, _ in told] == list(range(1, len(told) + 1)) != []
    shares = [share for _, _, share in told if share is not None]
    assert shares == sorted(shares)
    assert len(shares) == len(told)
    assert 0 <= shares[0] <= shares[-1] <= 1


def test_a_breach_is_followed_down_to_who_owns_the_time(member: str) -> None:
    with open_store(member) as reader:
        answer = reader.breaches(replace(WHOLE, service="contract-0"))
        owners = owners_of(reader, answer.breaches)
    followed = [owner for owner in owners if len(owner.path) > 1]
    assert followed == [
        Owner((Hop("contract-0", "handler", 90.0, "down:8001"), Hop("contract-back", "queue", 50.0))),
    ]


def test_a_trace_is_found_by_the_beginning_of_its_id(member: str) -> None:
    newest = {one.trace_id: one.start for one in ALL}
    for one in ALL:
        newest[one.trace_id] = max(newest[one.trace_id], one.start)
    first = ALL[0].trace_id
    with open_store(member) as reader:
        assert reader.trace_ids(first[:9]).ids == (first,)
        assert reader.trace_ids(first).ids == (first,)
        begun = sorted((one for one in newest if one.startswith(first[0])), key=lambda one: -newest[one])
        assert 1 < len(begun) <= CANDIDATES
        assert [one for one in reader.trace_ids(first[0]).ids if one in newest] == begun
        none = reader.trace_ids("abcdef012345")
    assert none.ids == ()
    if member.startswith(("jaeger:", "tempo:")):
        who = member.partition(":")[0].title()
        searched = f"{who} cannot search by a part of an id, so only the traces of the last 30 days were searched"
        assert (none.complete, none.reason) == (False, searched)
    else:
        assert (none.complete, none.reason) == (True, None)


def test_an_unknown_trace_is_an_error(member: str) -> None:
    with open_store(member) as reader, pytest.raises(StoreError, match=f"there is no trace {'ab' * 16}\n"):
        reader.trace("ab" * 16)


def test_an_unknown_service_is_an_error_and_never_good_news(member: str) -> None:
    with open_store(member) as reader:
        for service in ("contract-9", NASTY, "contract-0' --", "%", ""):
            for ask in (reader.breaches, reader.relations):
                with pytest.raises(StoreError) as caught:
                    ask(replace(WHOLE, service=service))
                first, second = str(caught.value).splitlines()
                assert first.endswith(f": there is no service {service!r}")
                assert second.startswith("it holds ")
                assert "contract-back" in second


def filtered(field: str, text: str) -> Selection:
    return {
        "route": replace(WHOLE, route=text),
        "model": replace(WHOLE, model=text),
        "segment": replace(WHOLE, segments={"tenant": text}),
        "key": replace(WHOLE, segments={text: "blue"}),
    }[field]


FIELDS = ("route", "model", "segment", "key")
LITERALLY = ("' OR '1'='1", '"; DROP TABLE loaded; --', "$since_ns", "{}", "/pre%", "\\", "é\x00")


UNKNOWN = {
    "route": (replace(WHOLE, route="/predcit"), "no request has the route '/predcit'\nthere are /predict, "),
    "as-shown": (replace(WHOLE, route="PUT /rank"), "no request has the route 'PUT /rank'\nthere are "),
    "route-of": (
        replace(WHOLE, route="/rank", service="contract-back"),
        f"no request of contract-back has the route '/rank'\nthere are /predict, {RPC}",
    ),
    "model": (replace(WHOLE, model="Rankr"), "no request has the model 'Rankr'\nthere are Ranker, "),
    "no-model": (
        replace(WHOLE, model="Ranker", service="contract-odd"),
        "no request of contract-odd has the model 'Ranker'\nno model is known of any of them",
    ),
    "code": (
        replace(WHOLE, codes=("app.py:14 in predict",)),
        "no request has the line of code 'app.py:14 in predict'\nthere are app.py:4 in predict, ",
    ),
    "no-code": (
        replace(WHOLE, codes=("app.py:4 in predict",), service="contract-back"),
        "contract-back has the line of code 'app.py:4 in predict'\nno line of code is known of any of them",
    ),
    "key": (
        replace(WHOLE, segments={"tennant": "blue"}),
        "has the attribute tennant=blue\nthey have the attributes tenant, ",
    ),
    "value": (replace(WHOLE, segments={"tenant": "bleu"}), "has the attribute tenant=bleu\ntenant is blue, '', it's"),
    # The entry span's own attribute wins over its resource's.
    "hidden": (replace(WHOLE, segments={"tier": "resource"}), "has the attribute tier=resource\ntier is "),
    "one-of-two": (replace(WHOLE, segments={"pod": "pod-0", "tier": "7"}), "has the attribute tier=7\ntier is "),
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("member", members.EACH_WAY, indirect=True)
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(member: str, name: str) -> None:
    """Whatever time is asked for, and whatever way the answer comes: for each name one pairing of the two."""
    selection, expected = UNKNOWN[name]
    wanted = deque((selection, replace(selection, breached=True, limit=3), replace(selection, since_ns=END - 1)))
    wanted.rotate(list(UNKNOWN).index(name))
    with open_store(member) as reader:
        asks: tuple[Callable[[Selection], object], ...] = (
            reader.breaches,
            reader.relations,
            lambda wanted: list(reader.iter_otlp(wanted, [])),
        )
        for ask, one in zip(asks, wanted, strict=True):
            with pytest.raises(StoreError) as caught:
                ask(one)
            assert expected in str(caught.value)
            assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("member", members.EACH_WAY, indirect=True)
def test_a_part_of_a_code_that_none_has_is_no_good_news_either(member: str) -> None:
    """But of Jaeger, which cannot search for a part, so that none is known to be missing."""
    with open_store(member) as reader:
        for ask in (reader.breaches, reader.relations):
            for code in ("app.py:14", "*in predict_all"):
                wanted = replace(WHOLE, codes=(code,))
                if member.startswith("jaeger:"):
                    assert ask(wanted).complete
                else:
                    with pytest.raises(StoreError, match=f"has the line of code '{re.escape(code)}'\nthere are app"):
                        ask(wanted)


@pytest.mark.parametrize("member", members.EACH_WAY, indirect=True)
def test_an_objective_that_judged_none_is_no_good_news_either(member: str) -> None:
    """But of Jaeger, which cannot search in the list of verdicts."""
    with open_store(member) as reader:
        for ask in (reader.breaches, reader.relations):
            wanted = replace(WHOLE, judged_by="predict-p98")
            if member.startswith("jaeger:"):
                assert ask(wanted).complete
            else:
                with pytest.raises(
                    StoreError, match="has the objective 'predict-p98'\nthere are predict-p99, predict, "
                ):
                    ask(wanted)


def test_many_unknown_names_are_not_all_listed() -> None:
    known = [f"/items/{number}" for number in range(40)]
    assert nearest("/items/7x", known).startswith("/items/7, /items/17, ")
    assert nearest("/items/7x", known).endswith(" and 30 more")


def test_a_filter_is_taken_literally(member: str, request: pytest.FixtureRequest) -> None:
    """Each member is asked for each text and by each field; all members together, for each text by each field."""
    turn = members.ALL.index(request.node.callspec.params["member"])
    with open_store(member) as reader:
        for number, text in enumerate(LITERALLY):
            selection = filtered(FIELDS[(number + turn) % len(FIELDS)], text)
            for ask in (reader.breaches, reader.relations):
                with pytest.raises(StoreError, match=": no request has the "):
                    ask(selection)
        assert len(rows(reader, SELECTIONS["nasty"], "SELECT * FROM requests")) == len(meant(SELECTIONS["nasty"])) > 0


def test_otlp_comes_back_without_loss(member: str) -> None:
    selection = replace(WHOLE, service="contract-1", route="/rank")
    cuts: list[str] = []
    with open_store(member) as reader:
        found = [span for message in reader.iter_otlp(selection, cuts) for _, _, span in leaves(message)]
    traces = {one.trace for one in meant(selection)}
    expected = {one.span_id: one for one in ALL if one.trace in traces}
    assert {span.span_id.hex() for span in found} == set(expected)
    assert cuts == []
    for span in found:
        made = expected[span.span_id.hex()]
        assert (span.name, span.start_time_unix_nano, span.end_time_unix_nano) == (made.name, made.start, made.end)
        assert {item.key for item in span.attributes} == set(made.attributes)


def test_the_connection_reads_no_file_and_stays_locked(member: str) -> None:
    with open_store(member) as reader, reader.relations(WHOLE) as relations:
        for sql in (
            "FROM read_text('/etc/hostname')",
            "ATTACH '/tmp/contract.db'",
            "COPY spans TO '/tmp/contract.csv'",
            "INSTALL httpfs",
            "SET enable_external_access = true",
        ):
            refused = None if member.startswith("clickhouse") else r"(?i)disabled|locked|cannot|only reads"
            with pytest.raises(QueryError, match=refused):
                relations.select(sql)


def test_declares_its_capabilities(member: str) -> None:
    with open_store(member) as reader:
        assert {"relations", "sql", "segments"} <= reader.capabilities
        assert ("exhaustive" in reader.capabilities) == (not member.startswith("tempo:"))
        assert ("tail" in reader.capabilities) == (member.startswith("local:") or member.endswith(".jsonl"))
