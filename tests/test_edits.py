"""The worked examples of CONTRIBUTING.md for an attribute, a column, a cause and a verb, added to a copy of the tree.

In that section a block of code belongs into the file whose name ends the line above it: a new one (`FILE`:), or one
that there is (`FILE`, before `LINE`:, or after it). So the files that an addition takes are counted, and the tests of
the copy show that no other one has to be edited: they compare docs, registries, benchmarks and SQL with each other.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from answers.made import Made, lines
from services import PYTHON, clean_environment, run_python, run_service
from sink import run_sink

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
FOLDERS = ("benchmarks", "collector-config", "deploy", "docs", "examples", "native", "src", "tests")
COPIED = (*FOLDERS, "LICENSE", "Makefile", "NOTICE", "docker-compose.yml", "pyproject.toml")
SECTIONS = {
    "attribute": "## Add an attribute",
    "column": "### Give an attribute a column",
    "cause": "## Add a cause",
    "verb": "## Add a verb",
}
PACKAGE = "src/stagetrace/"
# What is edited for each by hand. What these write comes on top.
WRITING = ("tests/cli/reference.py", "tests/cli/golden.py")
FILES = {
    "attribute": {
        "CHANGELOG.md",
        f"{PACKAGE}protocols/http.py",
        f"{PACKAGE}semconv.py",
        "tests/instrumentation/test_load_test.py",
    },
    "column": {"CHANGELOG.md", f"{PACKAGE}columns.py"},
    "cause": {
        "CHANGELOG.md",
        "benchmarks/causes/faults.py",
        f"{PACKAGE}causes/cause.py",
        "tests/causes/test_cause.py",
    },
    "verb": {
        "CHANGELOG.md",
        f"{PACKAGE}cli/failures.py",
        f"{PACKAGE}cli/registry.py",
        f"{PACKAGE}store/sql/failures.clickhouse.sql",
        f"{PACKAGE}store/sql/failures.duckdb.sql",
        "tests/answers/test_failures.py",
        "tests/store/reductions/failures.json",
    },
}
BLOCK = re.compile(r"`([\w./]+)`(?:, (before|after) `([^`\n]+)`)?:\n\n```\w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# The tests that compare the parts of the tree, and those of the examples.
COMPARING = (
    "tests/answers/test_failures.py",
    "tests/cli/test_golden.py::test_each_verb_has_a_file",
    "tests/cli/test_golden.py::test_each_output_is_the_one_that_is_kept[failures]",
    "tests/cli/test_reference.py",
    "tests/instrumentation/test_load_test.py",
    "tests/page/test_board_parts.py::test_each_cause_has_an_icon_and_no_colour",
    "tests/causes/test_cause.py",
    "tests/causes/test_code.py",
    "tests/store/test_columns.py",
    "tests/store/test_reductions.py::test_both_engines_agree[failures]",
    "tests/test_causes_bench.py",
    "tests/test_docs.py",
)
IGNORED = shutil.ignore_patterns("__pycache__", "node_modules", ".*")
NAME = "stagetrace.load_test"
SERVICE = """
import os
from wsgiref.simple_server import make_server


def application(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


make_server("127.0.0.1", int(os.environ["PORT"]), application).serve_forever()
"""


def edit(copy: Path, path: str, where: str, line: str, code: str) -> str:
    """Write a block of an example into its file; return the file's path from the root."""
    path = path if path.startswith(("tests/", "benchmarks/")) else PACKAGE + path
    file = copy / path
    if not line:
        assert not file.exists(), path
        file.write_text(code)
        return path
    source = file.read_text()
    assert source.count(f"\n{line}\n") == 1, (path, line)
    if line.endswith(",") and not code.endswith(",\n"):  # an entry of a list, which the page has as an expression
        code = f"{line[: len(line) - len(line.lstrip())]}{code.rstrip()},\n"
    if where == "after":
        edited = f"\n{line}\n{code}"
    else:
        edited = f"\n{code}{'' if line[:4] not in ('def ', 'asyn') else chr(10) * 2}{line}\n"
    file.write_text(source.replace(f"\n{line}\n", edited))
    return path


@pytest.fixture(scope="module")
def edits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """Return a copy of the tree with all examples in it, and the files that each of them took."""
    copy = tmp_path_factory.mktemp("edits") / "tree"
    copy.mkdir()
    for path in (*(ROOT / name for name in COPIED), *ROOT.glob("*.md")):
        if path.is_dir():
            shutil.copytree(path, copy / path.name, ignore=IGNORED)
        else:
            shutil.copy(path, copy)
    found = {}
    for kind, title in SECTIONS.items():
        section = CONTRIBUTING.partition(f"\n{title}\n")[2].partition("\n#")[0]
        found[kind] = {edit(copy, *block) for block in BLOCK.findall(section)} | {"CHANGELOG.md"}
    for script in WRITING:
        done = run_in(copy, script)
        assert done.returncode == 0, done.stderr
    return copy, found


def run_in(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy, on its sources."""
    env = clean_environment() | {"PYTHONPATH": str(copy / "src")}
    return subprocess.run(
        [PYTHON, *arguments], cwd=copy, env=env, capture_output=True, text=True, timeout=280, check=False
    )


Edits = tuple[Path, dict[str, set[str]]]


@pytest.mark.parametrize(("kind", "most"), [("attribute", 4), ("column", 2), ("cause", 5), ("verb", 7)])
def test_an_addition_takes_few_files(edits: Edits, kind: str, most: int) -> None:
    assert edits[1][kind] == FILES[kind]
    assert len(FILES[kind]) <= most


@pytest.mark.thorough  # it runs tests
def test_no_other_file_has_to_be_edited(edits: Edits) -> None:
    selected = ("-q", "-p", "no:cacheprovider", "-m", "not service and not thorough")
    done = run_in(edits[0], "-m", "pytest", *selected, *COMPARING)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    for tool in (("ruff", "check", "--no-cache"), ("ruff", "format", "--check", "--no-cache")):
        done = run_in(edits[0], "-m", *tool)
        assert done.returncode == 0, done.stdout


def test_a_cause_is_in_the_docs_and_on_the_page(edits: Edits) -> None:
    assert "| `gil_wait` | waiting for the GIL, " in (edits[0] / "docs/causes.md").read_text()
    icon = "from stagetrace.page import templates; print(templates.cause_icon('gil_wait'))"
    assert run_in(edits[0], "-c", icon).stdout.count('#unknown"') == 1  # until somebody draws one


@pytest.mark.usefixtures("services")
def test_the_attribute_is_recorded(edits: Edits, tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    with run_sink() as sink:
        env = sink.environment(PYTHONPATH=str(edits[0] / "src"))
        with run_service(tmp_path, argv=[PYTHON, str(tmp_path / "service.py")], env=env) as service:
            found = []
            for agent in ("k6/1.0", "curl/8.5"):
                trace_id, response = service.call("GET", "/", headers={"User-Agent": agent})
                assert response.content == b"ok"
                found.append(sink.request(trace_id).entry.attributes.get(NAME))
    assert found == [True, None]


def test_the_column_holds_it(edits: Edits, tmp_path: Path) -> None:
    made = [Made(number, attributes={NAME: True} if number == 2 else {}) for number in (1, 2)]
    file = lines(tmp_path / "spans.jsonl", made)
    query = "SELECT load_test FROM requests ORDER BY start_unix_nano"
    arguments = ("-m", "stagetrace.cli.main", "query", query, "--store", file.as_uri(), "--json")
    done = run_python(*arguments, PYTHONPATH=str(edits[0] / "src"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] == [[None], [True]]
