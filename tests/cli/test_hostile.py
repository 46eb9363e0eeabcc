"""Spans whose every text is hostile: no command writes a character that controls a terminal, in whichever form."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING

import pytest

from answers.made import MS, NOON, Made, store
from cli.running import cli
from stagetrace import semconv
from stagetrace.cli import main
from stagetrace.cli.console import unescaped
from stagetrace.cli.registry import VERBS
from stagetrace.text import spreadsheet_cell
from test_printable import HIDDEN

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.thorough

# ruff: noqa: S608 -- SQL of a user

HOSTILE = f"=a\x1b[2J\x1b]0;x\x07\r\n\t{HIDDEN.replace(chr(0xD800), '')}z"
EVER = ("--since", "1970-01-01")
LONG = "\x1b" * 100_000
STAGE = "in\x1b\u202e\x9bference"
ANSWERS = ("bottleneck", "capacity", "causes", "compare", "cost", "drift", "report", "slo")
COMMANDS = {
    **{verb: [verb, *EVER] for verb in (*ANSWERS, "breaches", "requests", "stages")},
    "report-all": ["report", "--all", *EVER, "--format", "html"],
    "segments": ["segments", "--by", HOSTILE, *EVER],
    "replay": ["replay", f"{1:032x}", "--against", "http://127.0.0.1:9"],
    "replay-body": ["replay", f"{1:032x}", "--against", "http://127.0.0.1:9", "--body", f"/{HOSTILE}=@{HOSTILE}"],
    "requests-sorted": ["requests", "--sort", STAGE, *EVER],
    "services": ["services"],
    "why": ["why", *EVER],
    "why-trace": ["why", f"{1:032x}"],
    "breaches-each": ["breaches", "--each", *EVER],
    "sla-explain": ["sla explain", f"{1:032x}", "--policy", "* within 5ms"],
    "what-if": ["what-if", *EVER, "--workers", "2"],
    "what-if-service": ["what-if", *EVER, "--service", HOSTILE, "--move", f"{HOSTILE} off the loop"],
    "sla-replay": ["sla replay", *EVER, "--policy", "* within 5ms"],
    "sla-suggest": ["sla suggest", *EVER, "--target", "1%"],
    "tail": ["tail", *EVER],
    "trace": ["trace", f"{1:032x}"],
    "watch": ["watch", *EVER],
    "query": ["query", "SELECT * FROM spans", *EVER],
    "query-named": ["query", f'SELECT name AS "{HOSTILE}" FROM spans', *EVER],
    "unknown-service": ["stages", *EVER, "--service", HOSTILE],
    "unknown-route": ["stages", *EVER, "--route", f"{HOSTILE}2"],
    "unknown-attribute": ["stages", *EVER, "--segment", f"{HOSTILE}={HOSTILE}2"],
    "wrong-sort": ["requests", "--sort", f"{HOSTILE}2", *EVER],
    "wrong-sql": ["query", f"SELECT '{HOSTILE}'::INTEGER", *EVER],
    "unknown-column": ["query", f'SELECT "{HOSTILE}" FROM spans', *EVER],
    "wrong-option": ["stages", f"--{HOSTILE}"],
    "wrong-verb": [HOSTILE],
    "wrong-choice": ["report", "--format", HOSTILE],
    "wrong-time": ["stages", "--since", HOSTILE],
    "wrong-trace": ["trace", HOSTILE],
    "long-argument": ["stages", *EVER, "--route", LONG],
    "long-option": ["stages", f"--{LONG}"],
    "import": ["import", f"/nowhere/{HOSTILE.replace(chr(0), '')}"],
}
# Verbs that read no store, or start a service, whose own tests look at what they print.
OTHERS = {"bench", "clickhouse init", "completion", "demo", "doctor", "export", "inject", "page", "prune", "run"}
OTHERS |= {"mark", "mcp", "silence", "sla check", "sla rules", "up"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store of breaches and good requests, of two values of each name."""
    requests = [
        Made(
            number,
            NOON + number * 250 * MS,
            {STAGE: 10.0 + number % 7, semconv.INFERENCE: 5.0},
            service=HOSTILE,
            route=HOSTILE,
            name=HOSTILE,
            model=HOSTILE,
            version=f"{HOSTILE}{number % 2}",
            within_ms=20.0,
            objective=f"{HOSTILE} within 20ms",
            cause=HOSTILE,
            with_stage_spans=True,
            attributes={
                HOSTILE: f"{HOSTILE}{number % 2}",
                semconv.SLA_BREACH_EVIDENCE: HOSTILE,
                semconv.SLA_SEVERITY: HOSTILE,
                "exception.message": HOSTILE,
                "url.path": HOSTILE,
            },
            resource={"deployment.environment.name": HOSTILE, "service.instance.id": HOSTILE},
        )
        for number in range(1, 60)
    ]
    return store(tmp_path_factory.mktemp("hostile") / "store", requests)


def test_every_verb_is_tried() -> None:
    assert {command[0] for command in COMMANDS.values()} - {HOSTILE} == {*VERBS} - OTHERS


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_controls_the_terminal(name: str, folder: Path) -> None:
    verb, *rest = COMMANDS[name]
    at = ["--store", str(folder)] if verb in VERBS else []
    forms = [[]] if "--format" in rest else [[], ["--json"]]
    forms += [["--csv"]] if verb == "query" else []
    for form in forms:
        done = cli(verb, *rest, *at, *form)
        for stream in (done.stdout, done.stderr):
            assert stream.replace("\n", "").replace("\t", "").isprintable(), (form, stream)
        assert "fault of stagetrace" not in done.stderr, done.stderr
        if done.returncode == 2:
            assert len(done.stderr.splitlines()) <= 3
            assert len(done.stderr) < 1200
        elif form == ["--json"]:
            assert json.loads(done.stdout)


def test_both_streams_escape_whatever_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verb that forgets to; lines and tabs stay, and colours of our own, which go around it."""

    def run(given: list[str]) -> int:
        for stream in (sys.stdout, sys.stderr):
            stream.write(f"{given[0]}\n")
            stream.writelines(["\ta\x1b\n"])
            unescaped(stream).write("\x1b[K")
        return 0

    monkeypatch.setattr(main, "_run", run)
    done = cli("\x9b\u202e")
    assert done.stdout == done.stderr == "\\x9b\\u202e\n\ta\\x1b\n\x1b[K"


def test_json_has_the_texts_as_they_are(folder: Path) -> None:
    done = cli("query", "SELECT DISTINCT route FROM requests", *EVER, "--store", str(folder), "--json")
    assert json.loads(done.stdout)["rows"] == [[HOSTILE]]


@pytest.mark.parametrize("relation", ["spans", "requests"])
def test_no_cell_of_csv_is_a_formula(relation: str, folder: Path, tmp_path: Path) -> None:
    """Printed or in a file, which a spreadsheet reads; numbers stay numbers, negative ones too."""
    sql = f"SELECT *, -1.5 AS less, '-2' AS text FROM {relation}"
    printed = cli("query", sql, *EVER, "--store", str(folder), "--csv").stdout
    path = tmp_path / "spans.csv"
    assert cli("export", str(path), "--relation", relation, *EVER, "--store", str(folder)).returncode == 0
    written = path.read_text("utf-8")
    for text in (printed, written):
        names, *rows = csv.reader(text.splitlines())
        assert len(rows) >= 59
        assert {row[names.index("route")] for row in rows} <= {"", spreadsheet_cell(HOSTILE)}
        for row in rows:
            assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row if not cell.startswith(("-1.5", "-2")))
            assert all(map(str.isprintable, row))
    assert ",-1.5,-2\n" in printed
