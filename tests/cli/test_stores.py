"""Each command over each store that holds the same spans: the same answer, whichever way they are kept."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from cli.running import time_of
from stagetrace.cli.main import main
from store import members
from store.test_contract import AGAIN, ALL, BASE, END, NASTY

if TYPE_CHECKING:
    from collections.abc import Iterator
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


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what each command says of the Collector's own file."""
    with members.member("file-json", tmp_path_factory.mktemp("expected"), ALL, AGAIN) as url:
        return {name: answer(*command, "--store", url) for name, command in COMMANDS.items()}


@pytest.fixture(scope="module", params=[name for name in members.ALL if name != "file-json"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with members.member(request.param, tmp_path_factory.mktemp(request.param), ALL, AGAIN) as url:
        yield url


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
def test_each_store_gives_the_same_answer(store: str, expected: dict[str, Any], name: str) -> None:
    assert answer(*COMMANDS[name], "--store", store) == expected[name]
    assert expected[name]["complete"]


def test_a_limit_that_no_store_reaches_is_none(store: str) -> None:
    for name in ("breaches", "requests", "tail"):
        assert answer(*COMMANDS[name], "--limit", "9" * 30, "--store", store)["complete"], name
    assert answer("requests", *WINDOW, "--sort", "duration", "--top", "9" * 30, "--store", store)["complete"]


def test_services_and_export(store: str, tmp_path: Path) -> None:
    services = answer("services", "--store", store)["services"]
    assert [name for name in services if name != "feed"] == [
        "contract-0",
        "contract-1",
        "contract-back",
        "contract-odd",
    ]
    for suffix in (".parquet", ".jsonl", ".pb"):
        target = tmp_path / f"out{suffix}"
        assert answer("export", str(target), *WINDOW, "--store", store)["spans"] >= len(ALL)
        stages = [answer(*COMMANDS["stages"], "--store", url) for url in (store, str(target))]
        assert stages[0] == stages[1]


@pytest.mark.parametrize(
    "text",
    ["'; DROP TABLE loaded; --", "x' OR '1'='1", "1); DELETE FROM requests; --", "../../etc/passwd"],
)
def test_whatever_a_flag_holds_is_data(store: str, expected: dict[str, Any], text: str) -> None:
    """An injection through a flag finds what it says literally, which is nothing, or is refused; nothing changes."""
    at = ("--store", store)
    for verb in ("breaches", "stages", "requests", "watch", "query"):
        sql = ["SELECT count(*) FROM requests"] if verb == "query" else []
        window = OPEN if verb == "watch" else WINDOW
        for flags in (
            ["--route", text],
            ["--model", text],
            ["--segment", f"tenant={text}"],
            ["--segment", f"{text}=1"],
        ):
            found = answer(verb, *sql, *window, *flags, *at)
            rest = {key: value for key, value in found.items() if key not in ("complete", "total", "columns")}
            assert found["complete"]
            assert all(value in ([], [[0]]) for value in rest.values()), (verb, flags, found)
        refused = [["--service", text], ["--since", text], ["--limit", text]]
        for flags in (*refused, *([["--until", text]] if window is WINDOW else [])):
            code, output, errors = run(verb, *sql, *flags, *at, "--json")
            assert (code, output) == (2, ""), (verb, flags)
            assert 1 <= len(errors.splitlines()) <= 3
    for flags in (["--sort", text], ["--top", text], ["--slowest", text]):
        assert run("requests", *flags, *at)[0] == 2
    assert run("trace", text, *at)[0] == 2
    assert run("tail", "--interval", text, *at)[0] == 2
    assert run("stages", "--store", text)[0] == 2
    assert answer(*COMMANDS["requests"], *at) == expected["requests"]
