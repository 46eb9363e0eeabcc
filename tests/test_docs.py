"""README and docs are true: their code runs, and their lists match the code."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services import PYTHON, asgi_command, run_service
from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sink import Sink

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def sources() -> Iterator[str]:
    for path in (ROOT / "src").rglob("*.py"):
        yield path.read_text()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) < 120


def test_each_claim_of_the_readme_has_a_command_that_exists() -> None:
    page = (ROOT / "docs/proof.md").read_text()
    rows = re.findall(r'^\| "(.+)" \| `(.+)` \|$', page.partition("## What the README claims")[2], re.MULTILINE)
    assert rows
    flowing = " ".join(README.split())
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for claim, command in rows:
        assert claim in flowing
        program, *arguments = shlex.split(command.replace("FILES=", ""))
        modules = [one.replace(".", "/") + ".py" for one in arguments if one.startswith("benchmarks.")]
        assert program != "make" or arguments[0] in targets
        for path in [*modules, *(one for one in arguments if "/" in one)]:
            assert (ROOT / path).exists(), path


@pytest.mark.smoke
@pytest.mark.usefixtures("services")
def test_the_readme_service_runs_as_the_readme_says(sink: Sink, tmp_path: Path) -> None:
    """Its own command line, with a port added; then one request, whose stages and verdict arrive."""
    (tmp_path / "app.py").write_text(blocks(README, "python")[0])
    line = next(line for line in README.splitlines() if line.startswith("STAGETRACE=1 "))
    words = shlex.split(line.removesuffix("&"))
    env = dict(word.split("=", 1) for word in words[: words.index("uvicorn")])
    argv = [PYTHON, "-m", *words[words.index("uvicorn") :], "--port", "{port}", "--app-dir", str(tmp_path)]
    env |= {"OTEL_EXPORTER_OTLP_ENDPOINT": sink.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with run_service(tmp_path, argv=argv, env=env, ready="/docs") as service:
        body = json.loads(re.findall(r"^curl .*-d '(.*)'$", README, re.MULTILINE)[0])
        request, response = sink.traced(service, "POST", "/predict", json=body)
    assert response.json() == {"species": 0}
    assert "inference" in request.names
    assert request.entry.attributes["sla.objective"] == "POST /predict within 50ms"
    assert request.entry.service == "flowers"


@pytest.mark.usefixtures("services")
def test_the_service_that_marks_by_hand_runs_as_its_page_says(sink: Sink, tmp_path: Path) -> None:
    """The span of the stage, the model on it and on the request, and the segment arrive."""
    (tmp_path / "marking.py").write_text(blocks((ROOT / "docs/marking.md").read_text(), "python")[0])
    argv = [*asgi_command("uvicorn", "marking"), "--app-dir", str(tmp_path)]
    with run_service(tmp_path, argv=argv, env=sink.environment(), ready="/docs") as service:
        asked = {"params": {"text": "A refund for my order"}, "headers": {"tenant": "acme"}}
        request, response = sink.traced(service, "POST", "/urgency", **asked)
    assert response.json() == {"urgency": 5}
    (inference,) = [stage for stage in request.stages if stage.name == "inference"]
    model = {semconv.ML_MODEL_NAME: "urgency", semconv.ML_MODEL_VERSION: "2026-11"}
    assert inference.attributes == {semconv.ML_STAGE: "inference", **model}
    assert request.entry.attributes.items() >= {**model, "tenant": "acme"}.items()
    assert "tokenize" in request.names


def test_the_readme_set_up_of_ones_own_runs(tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        blocks(README, "python")[1]
        + "from opentelemetry.trace import SpanKind\n"
        + "span = provider.get_tracer('x').start_span('x', kind=SpanKind.SERVER, start_time=10**18)\n"
        + "span.end(10**18 + 2 * 10**9)\nprovider.shutdown()\n"
    )
    done = subprocess.run([PYTHON, str(script)], capture_output=True, text=True, timeout=60, check=True)
    assert '"sla.objective": "* within 1s"' in done.stdout


@pytest.mark.parametrize("command", re.findall(r"^make (\w[\w-]*)", README, re.MULTILINE))
def test_each_make_target_of_the_readme_exists(command: str) -> None:
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_each_attribute_is_described_and_documented() -> None:
    kinds = ["CALLEE", "CPU", "DETAIL", "DEVICE", "GC", "HTTP", "ML", "NETWORK", "QUEUE", "SLA", "STAGETRACE"]
    kinds += ["STALL", "TOKENS"]
    names = {
        value
        for name, value in vars(semconv).items()
        if name.partition("_")[0] in kinds and isinstance(value, str) and value not in (*semconv.STAGES, semconv.STALL)
    }
    assert set(semconv.ATTRIBUTES) == names
    text = (ROOT / "docs/attributes.md").read_text()
    for one in semconv.ATTRIBUTES.values():
        assert f"| `{one.name}` | {one.kind} | {one.description} |" in text


def test_attribute_names_are_written_in_one_place() -> None:
    """Both sides import them from semconv."""
    for path in (ROOT / "src").rglob("*.py"):
        if path.name != "semconv.py":
            literals = re.findall(r"\"((?:sla|ml)\.[a-z_.]+)\"", path.read_text())
            assert not [name for name in literals if name in semconv.ATTRIBUTES], path


def test_contributing_lists_each_module_and_folder() -> None:
    """The tables of CONTRIBUTING.md list the modules and folders of src/stagetrace, and nothing else."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Where things are")[2].partition("\n## ")[0]
    cells = " ".join(re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE))
    listed = set(re.findall(r"`(.+?)`", cells))
    entries = {path for path in (ROOT / "src/stagetrace").iterdir() if any(path.glob("*.py")) or path.suffix == ".py"}
    assert listed == {f"{path.name}/" if path.is_dir() else path.name for path in entries} - {"__init__.py"}


LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LEAST_WORDS = 80  # five lines: a page of less was emptied, or is none


def words(page: str) -> int:
    """Return how many words the text of a page has, headings and comments aside."""
    lines = [line for line in page.splitlines() if not line.startswith(("#", "<!--"))]
    return len(re.findall(r"\w+", "\n".join(lines)))


def linked_from(start: Path) -> set[Path]:
    """Return the pages that a reader reaches from one by links; a linked folder shows what is in it."""
    found: set[Path] = set()
    left = [start]
    while left:
        page = left.pop()
        for target in LINK.findall(page.read_text()):
            path = (page.parent / target).resolve()
            new = {*path.glob("*.md")} if path.is_dir() else {path} if path.suffix == ".md" and path.exists() else set()
            left += new - found
            found |= new
    return found


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in PAGES])
def test_no_page_of_the_docs_is_empty(page: str) -> None:
    assert words((ROOT / page).read_text()) >= LEAST_WORDS


def test_a_page_without_text_counts_as_empty() -> None:
    assert words("# `stagetrace capacity`: how much load?\n\n<!-- begin -->\n\n```\n```\n") == 0


def test_each_page_is_reached_from_the_readme_and_from_the_index() -> None:
    for start in (ROOT / "README.md", ROOT / "docs/README.md"):
        reached = linked_from(start) | {start}
        assert not [page.relative_to(ROOT) for page in PAGES if page not in reached], start
    assert len(PAGES) > 50


def test_the_index_names_each_page_itself() -> None:
    """Pages of a folder by the folder's index."""
    index = (ROOT / "docs/README.md").read_text()
    named = {(ROOT / "docs" / target).resolve() for target in LINK.findall(index)}
    assert not [page for page in (ROOT / "docs").glob("*.md") if page not in named and page.name != "README.md"]


@pytest.mark.parametrize("record", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda path: path.stem[:3])
def test_decision_records_have_one_form_and_fit_on_a_page(record: Path) -> None:
    text = record.read_text()
    assert re.match(rf"# {record.name[:3]} \S", text)
    assert re.findall(r"^\*\*(Context|Decision|Consequences)\.\*\*", text, re.MULTILINE) == [
        "Context",
        "Decision",
        "Consequences",
    ]
    assert not re.search(r"^##", text, re.MULTILINE)
    assert len(text.splitlines()) <= 70
    assert len(text.split()) <= 1250


def test_each_decision_that_code_names_has_a_record() -> None:
    """The others were folded into the docstrings of their modules."""
    records = {path.name[:3] for path in (ROOT / "docs/decisions").glob("*.md")}
    files = [
        path
        for root in ("src", "native", "tests")
        for path in (ROOT / root).rglob("*")
        if path.suffix in {".py", ".c", ".h"}
    ]
    named = {one for path in files for one in re.findall(r"[Dd]ecisions?[/ ](\d{3})", path.read_text())}
    assert {"002", "011"} <= named <= records


def test_links_in_the_docs_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_links_to_a_section_lead_to_one() -> None:
    """By the anchor that GitHub makes of its heading, or one of its own."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target, anchor in re.findall(r"\]\(([\w./-]*)#([^)]+)\)", page.read_text()):
            text = (page.parent / target if target else page).read_text()
            headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            anchors.update(re.findall(r'<a id="(.+?)">', text))
            assert anchor in anchors, (page.name, target, anchor)


def test_files_that_the_docs_name_exist() -> None:
    """Reader and code find each other by file names: those of how-it-works.md above all."""
    roots = ("src", "tests", "benchmarks", "native", "examples", "collector-config")
    paths = [f"/{path.relative_to(ROOT).as_posix()}" for root in roots for path in (ROOT / root).rglob("*")]
    paths += [f"/{root}" for root in roots]
    for page in (ROOT / "docs").glob("*.md"):
        for name in re.findall(r"`([\w./*-]+(?:\.py|\.c|\.sql|/))`", page.read_text()):
            pattern = f"*/{name.replace('../', '').rstrip('/')}"
            assert any(fnmatchcase(path, pattern) for path in paths), (page.name, name)
