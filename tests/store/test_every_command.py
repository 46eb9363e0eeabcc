"""Each command over each store that holds the same spans: the same answer, whichever way they are kept."""

from __future__ import annotations

import io
import itertools
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from cli.running import time_of
from stagetrace.cli.main import main
from stagetrace.otlp.decode.json import encode
from store import members
from store.feed import Made, readable
from store.spans import AGAIN, ALL, BASE, END, NASTY

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WINDOW = ("--since", time_of(BASE), "--until", time_of(END))
OPEN = ("--since", time_of(BASE))  # for commands that go on
# Jaeger holds a span of the feed itself too, so where that would count, a service is named.
COMMANDS = {
    "breaches": ["breaches", *WINDOW],
    "breaches-filtered": ["breaches", *WINDOW, "--route", "/rank", "--model", "Tagger", "--segment", "tier=1"],
    "stages": ["stages", *WINDOW],
    "requests": ["requests", *WINDOW, "--slowest", "9"],
    "requests-nasty": ["requests", *WINDOW, "--route", NASTY, "--sort", "inference"],
    "tail": ["tail", *OPEN, "--service", "contract-1"],
    "watch": ["watch", *OPEN, "--service", "contract-0"],
    "query": ["query", "SELECT stage, count(*), sum(duration_ms) FROM spans GROUP BY 1 ORDER BY 1", *WINDOW],
    "trace": ["trace", ALL[4].trace_id],
}


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what each command says of a file of OTLP JSON, which needs no other process."""
    path = tmp_path_factory.mktemp("expected") / "spans.jsonl"
    path.write_text("\n".join(encode(_request(made)) for made in (ALL, AGAIN)) + "\n")
    return {name: answer(*command, "--store", str(path)) for name, command in COMMANDS.items()}


def _request(made: Sequence[Made]) -> Any:
    return encode_spans([readable(one) for one in made])


def run(*command: str) -> tuple[int, str, str]:
    """Run a command in this process, as there are many: exit code, stdout, stderr."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        code = main(command)
    return code, output.getvalue(), errors.getvalue()


def answer(*command: str) -> Any:
    code, output, errors = run(*command, "--json")
    assert (code, errors) == (0, ""), command
    (line,) = output.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_store_gives_the_same_answer(member: str, expected: dict[str, Any], name: str) -> None:
    assert answer(*COMMANDS[name], "--store", member) == expected[name]
    assert expected[name]["complete"]


def test_a_limit_that_no_store_reaches_is_none(member: str) -> None:
    for name in ("breaches", "requests", "tail"):
        assert answer(*COMMANDS[name], "--limit", "9" * 30, "--store", member)["complete"], name
    assert answer("requests", *WINDOW, "--sort", "duration", "--top", "9" * 30, "--store", member)["complete"]


def test_services_and_export(member: str, tmp_path: Path) -> None:
    services = answer("services", "--store", member)["services"]
    assert [name for name in services if name != "feed"] == [
        "contract-0",
        "contract-1",
        "contract-back",
        "contract-odd",
        "contract-old",
    ]
    for suffix in (".parquet", ".jsonl", ".pb"):
        target = tmp_path / f"out{suffix}"
        assert answer("export", str(target), *WINDOW, "--store", member)["spans"] >= len(ALL)
        stages = [answer(*COMMANDS["stages"], "--store", url) for url in (member, str(target))]
        assert stages[0] == stages[1]


TEXTS = ("'; DROP TABLE loaded; --", "x' OR '1'='1", "1); DELETE FROM requests; --", "../../etc/passwd")


@pytest.mark.parametrize("member", members.EACH_WAY, indirect=True)
def test_whatever_a_flag_holds_is_data(member: str, expected: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """An injection through a flag is what it says literally, which nothing has, or is refused; nothing changes.

    The texts take turns: each flag of each command has one here, and another over another store.
    """
    at = ("--store", member)
    texts = itertools.cycle(TEXTS)
    for _ in range(members.DISTINCT.index(request.node.callspec.params["member"])):
        next(texts)
    for verb in ("breaches", "stages", "requests", "watch", "query"):
        sql = ["SELECT count(*) FROM requests"] if verb == "query" else []
        window = OPEN if verb == "watch" else WINDOW
        for flags in (
            ["--route", next(texts)],
            ["--model", next(texts)],
            ["--segment", f"tenant={next(texts)}"],
            ["--segment", f"{next(texts)}=1"],
        ):
            code, output, errors = run(verb, *sql, *window, *flags, *at, "--json")
            assert (code, output) == (2, ""), (verb, flags)
            assert ": no request has the " in errors
            assert len(errors.splitlines()) == 2
        next(texts)  # or each flag would have the same one in each command
        refused = [["--service", next(texts)], ["--since", next(texts)], ["--limit", next(texts)]]
        for flags in (*refused, *([["--until", next(texts)]] if window is WINDOW else [])):
            code, output, errors = run(verb, *sql, *flags, *at, "--json")
            assert (code, output) == (2, ""), (verb, flags)
            assert 1 <= len(errors.splitlines()) <= 3
    for text in TEXTS:
        for flags in (["--sort", text], ["--top", text], ["--slowest", text]):
            assert run("requests", *flags, *at)[0] == 2
        assert run("trace", text, *at)[0] == 2
        assert run("tail", "--interval", text, *at)[0] == 2
        assert run("stages", "--store", text)[0] == 2
    assert answer(*COMMANDS["requests"], *at) == expected["requests"]
