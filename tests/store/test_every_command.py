"""Each command over each store that holds the same spans: the same answer, whichever way they are kept."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from cli.running import answered, refused, time_of
from stagetrace.otlp.decode.json import encode
from store import members
from store.feed import readable
from store.oracle import has_texts, seen
from store.questions import rounded
from store.spans import AGAIN, ALL, BASE, CODES, END, NASTY

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WINDOW = ("--since", time_of(BASE), "--until", time_of(END))
OPEN = ("--since", time_of(BASE))  # for commands that go on
POLICY = "POST /predict within 50ms per_chunk 1ms for 1%; POST /rank within 45ms for 1%; * within 60ms for 1%"
# Jaeger holds a span of the feed itself too, so where that would count, a service is named.
COMMANDS = {
    "breaches": ["breaches", "--each", *WINDOW],
    "breaches-filtered": [
        "breaches",
        "--each",
        *WINDOW,
        "--route",
        "/rank",
        "--model",
        "Tagger",
        "--segment",
        "tier=1",
    ],
    "breaches-grouped": ["breaches", *WINDOW, "--code", "app.py", "--code", CODES[2]],
    "stages": ["stages", *WINDOW],
    "requests": ["requests", *WINDOW, "--slowest", "9"],
    "requests-nasty": ["requests", *WINDOW, "--route", NASTY, "--sort", "inference"],
    "tail": ["tail", *OPEN, "--service", "contract-1"],
    "watch": ["watch", *OPEN, "--service", "contract-0"],
    "query": ["query", "SELECT stage, count(*) AS n, sum(duration_ms) AS ms FROM spans GROUP BY 1 ORDER BY 1", *WINDOW],
    "sla-explain": ["sla explain", ALL[4].trace_id, "--policy", POLICY],
    "sla-replay": ["sla replay", *WINDOW, "--service", "contract-1", "--policy", POLICY],
    "trace": ["trace", ALL[4].trace_id],
}


@pytest.fixture(scope="session")
def answers_of_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Return what gives for a member what each command says of a file of OTLP JSON, which needs no other process."""

    @cache
    def of(kind: str) -> dict[str, Any]:
        path = tmp_path_factory.mktemp("expected") / "spans.jsonl"
        parts = ([seen(one, kind) for one in made] for made in (ALL, AGAIN))
        path.write_text("\n".join(encode(encode_spans(list(map(readable, made)))) for made in parts) + "\n")
        return {name: answered(*command, "--store", path) for name, command in COMMANDS.items()}

    return lambda member: of("clickhouse" if has_texts(member) else "")


@pytest.fixture
def expected(member: str, answers_of_file: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Return what each command is to say of a member."""
    return answers_of_file(member)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_store_gives_the_same_answer(member: str, expected: dict[str, Any], name: str) -> None:
    assert rounded(answered(*COMMANDS[name], "--store", member)) == rounded(expected[name])
    assert expected[name]["complete"]


def test_a_limit_that_no_store_reaches_is_none(member: str) -> None:
    for name in ("breaches", "requests", "tail"):
        assert answered(*COMMANDS[name], "--limit", "9" * 30, "--store", member)["complete"], name
    assert answered("requests", *WINDOW, "--sort", "duration", "--top", "9" * 30, "--store", member)["complete"]


def test_services_and_export(member: str, tmp_path: Path) -> None:
    services = answered("services", "--store", member)["services"]
    ours = [f"contract-{name}" for name in ("0", "1", "back", "odd", "old")]
    assert [name for name in services if name != "feed"] == ours
    for suffix in (".parquet", ".jsonl", ".pb"):
        target = tmp_path / f"out{suffix}"
        assert answered("export", target, *WINDOW, "--store", member)["spans"] >= len(ALL)
        stages = [answered(*COMMANDS["stages"], "--store", url) for url in (member, target)]
        assert rounded(stages[0]) == rounded(stages[1])


TEXTS = ("'; DROP TABLE loaded; --", "x' OR '1'='1", "1); DELETE FROM requests; --", "../../etc/passwd")
VERBS = ("breaches", "stages", "requests", "watch", "query")
FLAGS = (
    *(("--route", "{}"), ("--model", "{}"), ("--segment", "tenant={}"), ("--segment", "{}=1")),
    *(("--code", "{} in predict"), ("--service", "{}"), ("--since", "{}"), ("--until", "{}"), ("--limit", "{}")),
)


@pytest.mark.parametrize("member", members.EACH_WAY, indirect=True)
def test_whatever_a_flag_holds_is_data(member: str, expected: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """An injection through a flag is what it says literally, which nothing has, or is refused; nothing changes.

    Commands and texts take turns: each flag has one of each here, and others over another store.
    """
    at = ("--store", member)
    turn = members.DISTINCT.index(request.node.callspec.params["member"])
    for number, (flag, holding) in enumerate(FLAGS):
        verb = VERBS[(number + turn) % len(VERBS)]
        if verb == "watch" and flag in ("--code", "--until"):
            continue  # it has neither
        text = holding.format(TEXTS[(number + turn) % len(TEXTS)])
        sql = ["SELECT count(*) FROM requests"] if verb == "query" else []
        if flag in ("--service", "--since", "--until", "--limit"):
            refused(verb, *sql, flag, text, *at, "--json")
            continue
        said = refused(verb, *sql, *(OPEN if verb == "watch" else WINDOW), flag, text, *at, "--json")
        assert ": no request has the " in said
        assert len(said.splitlines()) == 2
    for text in TEXTS:
        for flag in ("--sort", "--top", "--slowest"):
            refused("requests", flag, text, *at)
        refused("trace", text, *at)
        refused("tail", "--interval", text, *at)
        refused("stages", "--store", text)
    assert rounded(answered(*COMMANDS["requests"], *at)) == rounded(expected["requests"])
