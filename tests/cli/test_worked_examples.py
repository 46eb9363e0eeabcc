"""The worked example of CONTRIBUTING.md for a store, taken from there and read by the command line."""

from __future__ import annotations

import json
import re
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from answers.made import Made, lines, messages
from cli.running import answered, cli, refused
from stagetrace import store as store_package
from stagetrace.store.base import SCHEMES, Scheme

CONTRIBUTING = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
REQUESTS = [
    Made(number, within_ms=50, stages={"inference": number}, status=500 if number % 10 == 0 else 200)
    for number in range(1, 101)
]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add the file of the example to its package, and run the line of the registry."""
    section = CONTRIBUTING.partition("\n## Add a store\n")[2].partition("\n## ")[0]
    code, line = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/sqlite.py").write_text(code)
    monkeypatch.setattr(store_package, "__path__", [*store_package.__path__, str(tmp_path / "store")])
    monkeypatch.delitem(sys.modules, "stagetrace.store.sqlite", raising=False)
    monkeypatch.setitem(SCHEMES, "sqlite", None)  # so that the line below is undone afterwards
    exec(line, {"SCHEMES": SCHEMES, "Scheme": Scheme})  # noqa: S102


@pytest.fixture
def both(tmp_path: Path) -> tuple[str, str]:
    """Return the URLs of the example's store and of a file, with the same spans in them."""
    with closing(sqlite3.connect(tmp_path / "spans.db")) as database, database:
        database.execute("CREATE TABLE spans (otlp BLOB)")
        database.executemany("INSERT INTO spans VALUES (?)", [(one.SerializeToString(),) for one in messages(REQUESTS)])
    return f"sqlite://{tmp_path / 'spans.db'}", lines(tmp_path / "spans.jsonl", REQUESTS).as_uri()


WHEN = ("--since", "2026-01-01", "--until", "2026-03-02")


@pytest.mark.usefixtures("example")
@pytest.mark.parametrize("verb", ["services", "breaches", "stages", "requests", "tail", "slo", "bottleneck"])
def test_every_verb_reads_the_store_like_a_file_of_the_same_spans(verb: str, both: tuple[str, str]) -> None:
    options = {"services": (), "tail": WHEN[:2]}.get(verb, WHEN)
    mine, file = (cli(verb, "--store", url, *options, "--json") for url in both)
    assert (mine.returncode, mine.stderr) == (file.returncode, file.stderr)
    assert json.loads(mine.stdout) == json.loads(file.stdout)


@pytest.mark.usefixtures("example")
def test_the_store_draws_a_trace_and_refuses_what_it_does_not_have(both: tuple[str, str]) -> None:
    url, _ = both
    trace_id = answered("breaches", "--each", "--store", url, *WHEN)["breaches"][0]["trace_id"]
    assert answered("trace", trace_id, "--store", url)["trace_id"] == trace_id
    unknown = refused("breaches", "--each", "--store", url, *WHEN, "--route", "/nowhere")
    assert "no request has the route '/nowhere'\nthere are /predict" in unknown
    assert "there is no such file" in refused("services", "--store", f"{url}.gone")
