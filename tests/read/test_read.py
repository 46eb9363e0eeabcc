"""`stagetrace.read` gives a notebook what the commands print, and says what is missing."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from inspect import signature
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import Made, messages, store
from clickhouse import run_clickhouse
from read.conftest import requests
from stagetrace import read as st
from stagetrace.cli.main import main
from stagetrace.cli.registry import VERBS, load
from stagetrace.errors import QueryError, StagetraceError, StoreError
from stagetrace.read.store import _ASKED, Selected
from stagetrace.store.answers import COLUMNS
from store import otel_traces

if TYPE_CHECKING:
    from collections.abc import Callable

ALL, LATE = 60, 12
PAGE = Path(__file__).parents[2] / "docs/notebooks.md"


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return the JSON that a command prints."""
    capsys.readouterr()
    main([*words, "--json"])
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_all_public_names_are_there() -> None:
    assert sorted(st.__all__) == st.__all__
    assert all(getattr(st, name).__doc__ for name in st.__all__)


def test_requests_are_those_of_the_command(opened: st.Store, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same requests in the same order, with the same values in each column that a command has."""
    found = opened.requests(since="1h")
    assert (len(found), found.complete, repr(found)) == (ALL, True, "<60 requests, complete>")
    rows = found.arrow().to_pylist()
    told = printed(capsys, "requests", "--store", url, "--since", "1h")["requests"]
    assert found.arrow().column_names == list(COLUMNS)
    same = [one for one in COLUMNS if one not in ("stages", "start_time")]
    assert [{name: row[name] for name in same} for row in rows] == [{name: row[name] for name in same} for row in told]
    assert [dict(row["stages"]) for row in rows] == [row["stages"] for row in told]
    assert f"{rows[0]['start_time'].isoformat(timespec='microseconds')}Z" == told[0]["start_time"]


def test_requests_are_selected_by_the_options_of_the_command(opened: st.Store) -> None:
    assert len(opened.requests(breached=True)) == LATE
    assert len(opened.requests(segment={"tenant.id": "acme"}, cause=["unknown", "gc"])) == LATE
    assert len(opened.requests(route="/predict", service="shop", model=None)) == ALL
    half = datetime.now(timezone.utc) - timedelta(hours=2)
    assert len(opened.requests(since=half)) == ALL
    assert len(opened.requests(since=half, until=datetime.now(timezone.utc) - timedelta(hours=1))) == 0


def test_attributes_become_columns(opened: st.Store) -> None:
    """Also one that no request has; and of a span, that of its resource."""
    found = opened.requests(attributes=("tenant.id", "not there"), breached=True).arrow()
    assert found["tenant.id"].to_pylist() == ["acme"] * LATE
    assert found["not there"].to_pylist() == [None] * LATE
    spans = opened.spans(attributes=["service.name"]).arrow()
    assert set(spans["service.name"].to_pylist()) == {"shop"}


def test_spans_are_those_of_the_requests(opened: st.Store) -> None:
    found = opened.spans(breached=True)
    assert repr(found) == "<36 spans, complete>"
    names = found.arrow()["name"].to_pylist()
    assert sorted(set(names)) == ["POST /predict", "inference", "preprocess"]
    assert "attributes" not in found.arrow().column_names


@pytest.mark.thorough
def test_clickhouse_gives_the_same_rows(tmp_path: Path) -> None:
    """It is asked for requests and SQL itself; its columns have the types that a local store gives."""
    made = requests()
    with run_clickhouse(tmp_path / "server") as server:
        otel_traces.create(server)
        otel_traces.insert(server, messages(made))
        folder = store(tmp_path / "store", made)
        with st.open(server.url) as there, st.open(str(folder)) as here:
            wanted: list[dict[str, Any]] = [{}, {"breached": True}, {"limit": 3}]
            for ask, how in product((st.Store.requests, st.Store.spans), wanted):
                ours, theirs = (ask(one, attributes=["tenant.id"], **how) for one in (here, there))
                assert theirs.arrow().schema == ours.arrow().schema
                assert theirs.arrow().to_pylist() == ours.arrow().to_pylist()
                assert theirs.reason == ours.reason
            sql = "SELECT verdict, count(*) AS n FROM requests GROUP BY verdict ORDER BY verdict"
            assert there.sql(sql).arrow().to_pylist() == here.sql(sql).arrow().to_pylist()


def test_what_a_limit_cuts_off_is_said(opened: st.Store) -> None:
    for found, count in ((opened.requests(limit=3), 3), (opened.spans(limit=3), 9)):
        assert (len(found), found.complete) == (count, False)
        assert found.reason == "limit 3 reached, there are older requests"
        assert "incomplete: limit 3 reached" in repr(found)
        assert "incomplete: limit 3 reached" in found._repr_html_()
    found = opened.sql("SELECT count(*) AS n FROM requests", limit=3)
    assert (found.arrow().to_pylist(), found.complete) == ([{"n": 3}], False)
    answer = opened.answer("causes", limit=30)
    assert not answer.complete
    assert "Incomplete: limit 30" in answer._repr_html_()


def test_sql_gives_the_types_of_the_database(opened: st.Store) -> None:
    found = opened.sql("SELECT verdict, count(*) AS n, max(start_time) AS t FROM requests GROUP BY 1 ORDER BY 1")
    assert [str(one) for one in found.arrow().schema.types] == ["string", "int64", "timestamp[us]"]
    assert [(row["verdict"], row["n"]) for row in found.arrow().to_pylist()] == [("breach", LATE), ("good", ALL - LATE)]
    assert opened.sql("DESCRIBE requests").arrow()["column_name"].to_pylist()[:2] == ["trace_id", "span_id"]
    with pytest.raises(QueryError, match="only reads, and this is DROP"):
        opened.sql("DROP VIEW requests")
    with pytest.raises(QueryError, match="nowhere"):
        opened.sql("SELECT * FROM nowhere")


@pytest.mark.parametrize(
    ("verb", "options", "words"),
    [
        ("causes", {"since": "1h"}, ["--since", "1h"]),
        ("segments", {"by": "tenant.id", "since": "1h"}, ["--by", "tenant.id", "--since", "1h"]),
        ("bottleneck", {"since": "1h"}, ["--since", "1h"]),
        ("why", {"since": "2026-01-01"}, ["--since", "2026-01-01"]),
        ("why", {"id": f"{1:032x}"}, [f"{1:032x}"]),
    ],
)
def test_an_answer_is_what_the_verb_prints(
    opened: st.Store, url: str, capsys: pytest.CaptureFixture[str], verb: str, options: dict[str, Any], words: list[str]
) -> None:
    found = opened.answer(verb, **options)
    told = printed(capsys, verb, *words, "--store", url)
    keys = json.loads(json.dumps(found.as_json()))
    assert {**keys, "next": None} == {**told, "next": None}
    shown = found._repr_html_()
    assert found.sentence.split(" [")[0][:40] in shown
    assert not re.search(r"<script|<b>|src=|href=|url\(", shown)


def test_each_verb_that_answers_can_be_asked() -> None:
    """Those whose `answer` takes a reader, a selection and the options."""
    answers = {name: getattr(load(name), "answer", None) for name in VERBS}
    taken = {name: [*signature(answer).parameters] for name, answer in answers.items() if answer is not None}
    assert set(_ASKED) == {name for name, names in taken.items() if names == ["reader", "wanted", "args"]}


def test_a_trace_is_drawn_by_itself(opened: st.Store, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its verdict and each span with its bar, as HTML that needs nothing else."""
    found = opened.trace("latest")
    assert found.trace_id == f"{1:032x}"
    assert opened.trace("latest", breached=True).trace_id == found.trace_id
    assert opened.trace(found.trace_id).spans == found.spans
    assert found.as_json() == printed(capsys, "trace", found.trace_id, "--store", url)
    assert "BREACH shop POST /predict: took 105.00 ms" in str(found)
    shown = found._repr_html_()
    assert "<strong>BREACH shop POST /predict: took 105.00 ms, 50 ms allowed" in shown
    assert shown.count('class="span"') == len(found.spans) == 3
    assert "95.2 %" in shown
    assert not re.search(r"<script|src=|href=|url\(", shown)
    with pytest.raises(StagetraceError, match="begins the ids of 10 traces"):
        opened.trace("0000")


def test_what_spans_hold_is_escaped(opened: st.Store) -> None:
    shown = opened.requests(attributes=["tenant.id"])._repr_html_()
    assert "&lt;b&gt;other" in shown
    assert "<b>" not in shown
    assert "the first 20 are shown" in shown


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda s: s.requests(sicne="1h"), "requests takes no 'sicne'\nthere are attributes, breached, cause, code"),
        (lambda s: s.requests(since="1 hour"), "requests: since: cannot read '1 hour': write a duration"),
        (lambda s: s.requests(since=["1h", "2h"]), "requests: since takes one value, and these are 2"),
        (lambda s: s.requests(limit=0), "requests: limit: '0' is not a whole number from 1 on"),
        (
            lambda s: s.requests(attributes="tenant.id"),
            "attributes is a list of names\nwrite attributes=('tenant.id',)",
        ),
        (lambda s: s.requests(attributes=["route"]), "requests: 'route' is a column already\nleave it out"),
        (lambda s: s.answer("causes", by="x"), "causes takes no 'by'\nthere are against, limit"),
        (lambda s: s.answer("slo", format="html"), "slo takes no 'format'\nthere are"),
        (lambda s: s.answer("cauzes"), "'cauzes' is no verb that answers a question\nthere are why, stages, slo"),
        (lambda s: s.answer("compare", once="yes"), "compare: once is True or False, and 'yes' is neither"),
        (lambda s: s.trace("xyz"), "'xyz' is neither latest nor a trace id"),
        (lambda s: s.requests(service="nope"), "there is no service 'nope'\nit holds shop"),
        # Neither is installed beside the tests.
        (lambda s: s.requests().df(), ".df() needs pandas: pip install pandas"),
        (lambda s: s.requests().polars(), ".polars() needs polars: pip install polars"),
    ],
)
def test_an_error_names_what_is_wrong_and_what_fixes_it(
    opened: st.Store, ask: Callable[[Any], Any], error: str
) -> None:
    with pytest.raises(StagetraceError) as caught:
        ask(opened)
    text = str(caught.value)
    assert error in text
    assert len(text.splitlines()) <= 3


def test_the_default_store_is_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of STAGETRACE_STORE, else the local data folder; without either the error says so."""
    monkeypatch.delenv("STAGETRACE_STORE", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(StoreError, match="no store to read from\nname one"):
        st.open()
    store(tmp_path / "stagetrace", [Made(1)])
    with st.open() as found:
        assert found.services() == ("shop",)
    named = store(tmp_path / "named", [Made(1, service="other")])
    monkeypatch.setenv("STAGETRACE_STORE", str(named))
    with st.open() as found:
        assert found.services() == ("other",)
        assert len(found.requests()) == 0
        assert found.requests(since="2026-01-01").arrow().num_rows == 1


def test_the_page_on_notebooks_is_true(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its code runs, with another store and service; each keyword that it names is one."""
    text = PAGE.read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    exec(code.replace("local:///data", url).replace('"rank"', '"shop"'), {})  # noqa: S102
    out = capsys.readouterr().out
    assert "<60 requests, complete>" in out
    assert "BREACH shop POST /predict" in out
    named = set(re.findall(r"`(\w+)=", text)) - {"attributes"}
    assert named <= Selected.__annotations__.keys()
    with st.open(url) as opened, pytest.raises(StagetraceError) as caught:
        opened.requests(no="such")  # type: ignore[call-arg]
    assert {"attributes", "breached", *Selected.__annotations__} == set(
        re.findall(r"\w+", str(caught.value).split("there are")[1])
    )
