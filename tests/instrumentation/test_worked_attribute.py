"""The worked example of CONTRIBUTING.md: an attribute, and a column for it, added to a copy of the sources and used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from answers.made import Made, lines
from services import PYTHON, run_python, run_service
from sink import run_sink
from stagetrace.columns import GENERATION

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add an attribute")[2].partition("\n## ")[0]
NAME = "stagetrace.load_test"
SERVICE = """
import os
from wsgiref.simple_server import make_server


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


make_server("127.0.0.1", int(os.environ["PORT"]), application).serve_forever()
"""


def put(path: Path, text: str, before: str) -> None:
    """Write lines of the example into a file, before another line."""
    source = path.read_text()
    assert source.count(before) == 1, (path, before)
    path.write_text(source.replace(before, text + before))


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources with the example's lines where it says that they belong."""
    constant, recorded, column = re.findall(r"^```python\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
    folder = tmp_path_factory.mktemp("copy")
    package = folder / "stagetrace"
    shutil.copytree(ROOT / "src/stagetrace", package, ignore=shutil.ignore_patterns("__pycache__"))
    put(package / "semconv.py", constant, "\n# fmt: on\n")
    attributes = package / "instrumentation/http/attributes.py"
    put(attributes, "from stagetrace.semconv import LOAD_TEST\n", "\nif TYPE_CHECKING:\n")
    before, function, after = attributes.read_text().partition("def agent_attributes(")
    attributes.write_text(
        before + function + after.replace("    return attributes\n", f"{recorded}    return attributes\n", 1)
    )
    since = re.sub(r"since=\d+", f"since={GENERATION + 1}", column)  # whatever columns were added meanwhile
    put(package / "columns.py", f"    {since.strip()},\n", ")\nGENERATION: Final")
    return folder


@pytest.mark.usefixtures("services")
def test_the_attribute_is_recorded(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    with run_sink() as sink:
        env = sink.environment(PYTHONPATH=str(copy))
        with run_service(tmp_path, argv=[PYTHON, str(tmp_path / "service.py")], env=env) as service:
            found = []
            for agent in ("k6/1.0", "curl/8.5"):
                trace_id, response = service.call("GET", "/", headers={"User-Agent": agent})
                assert response.content == b"ok"
                found.append(sink.request(trace_id).entry.attributes.get(NAME))
    assert found == [True, None]


def test_the_column_holds_it(copy: Path, tmp_path: Path) -> None:
    made = [Made(number, attributes={NAME: True} if number == 2 else {}) for number in (1, 2)]
    file = lines(tmp_path / "spans.jsonl", made)
    query = "SELECT load_test FROM requests ORDER BY start_unix_nano"
    arguments = ("-m", "stagetrace.cli.main", "query", query, "--store", file.as_uri(), "--json")
    done = run_python(*arguments, PYTHONPATH=str(copy))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == [[None], [True]]
