"""The ticket router of examples/ over real HTTP: without recording, and recorded in the demo."""

from __future__ import annotations

import ast
import re
import shlex
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from backends import CONFIG
from services import PYTHON, Service, clean_environment, run_service
from stagetrace.cli import demo
from stagetrace.cli.ask import BENCH
from stagetrace.cli.demo import service_folder
from stagetrace.cli.registry import ANSWERED, ANSWERS, BAD
from stagetrace.errors import StagetraceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import httpx

EXAMPLES = CONFIG.parent / "examples"
STARTS_WITHIN_S = 240


@pytest.mark.parametrize(
    ("verb", "code", "output"), [("capacity", 1, ""), ("slo", 0, "\n"), ("drift", 0, "no JSON"), ("report", 2, "{}")]
)
def test_what_is_no_answer_ends_the_demo_and_is_shown(
    verb: str, code: int, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"import sys; print('what went wrong', file=sys.stderr); print({output!r}, end=''); sys.exit({code})"
    monkeypatch.setattr(demo, "_STAGETRACE", (PYTHON, "-c", script))
    with pytest.raises(StagetraceError, match=rf"`stagetrace {verb}` ended with {code} .*:\nwhat went wrong"):
        demo._ask(verb, "--json")


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[Service]:
    """Run the service as a user would, with uvicorn; its log names each module that its process has imported."""
    uvicorn = ("uvicorn", "app:app", "--app-dir", str(EXAMPLES / "service"), "--port", "{port}")
    argv = [PYTHON, "-X", "importtime", "-m", *uvicorn, "--log-level", "warning"]
    with run_service(folder, argv=argv, within_s=STARTS_WITHIN_S) as service:
        yield service


@pytest.fixture
def router(running: Service) -> httpx.Client:
    return running.client


TICKETS = {
    "billing": "Hello, you took 49.90 EUR from my card twice this month. I need the second payment back on my invoice.",
    "delivery": "My parcel should have come on Friday, but the tracking page has not changed. Where is the courier?",
    "returns": "The jacket is the wrong size, please send me a return label for an exchange.",
    "account": "I cannot log in: the mail with the new password never arrives.",
    "technical": "Since the last update the app crashes with error 502 when I open the search.",
}


def test_health(router: httpx.Client) -> None:
    """The service reports that it is up."""
    assert router.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(("team", "text"), TICKETS.items())
def test_message_goes_to_the_right_team(team: str, text: str, router: httpx.Client) -> None:
    """Messages outside the training data are routed, with one probability for each team."""
    answer = router.post("/predict", json={"text": text}).json()
    assert answer["team"] == team
    assert sorted(answer["probabilities"]) == sorted(TICKETS)
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=0.001)


def test_batch_answers_as_single_messages_do(router: httpx.Client) -> None:
    """The batch returns the same results, in order."""
    single = [router.post("/predict", json={"text": text}).json() for text in TICKETS.values()]
    assert router.post("/predict/batch", json={"texts": list(TICKETS.values())}).json() == single


def test_quotes_and_signatures_do_not_count(router: httpx.Client) -> None:
    """Quoted text, and text below the signature line, changes nothing."""
    text = TICKETS["account"]
    around = (
        f"> my parcel has not arrived, where is the courier?\n{text}\n-- \nACME parcel delivery and courier services"
    )
    alone, quoted = (router.post("/predict", json={"text": each}).json() for each in (text, around))
    assert alone == quoted


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"text": ""}),
        ("/predict", {}),
        ("/predict/batch", {"texts": []}),
        ("/predict/batch", {"texts": "x"}),
    ],
)
def test_nonsense_is_refused(path: str, body: object, router: httpx.Client) -> None:
    """The error is FastAPI's own, not a failure of the model."""
    assert router.post(path, json=body).status_code == 422


def test_service_knows_nothing_of_tracing() -> None:
    """The source imports neither stagetrace nor OpenTelemetry."""
    tree = ast.parse((EXAMPLES / "service" / "app.py").read_text("utf-8"))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    imported += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert "fastapi" in imported
    assert [name for name in imported if name and name.startswith(("stagetrace", "opentelemetry"))] == []


def test_without_the_variables_nothing_records(running: Service) -> None:
    lines = [line for line in running.log.splitlines() if line.startswith("import time:")]
    loaded = [line.rpartition("|")[2].strip() for line in lines]
    assert "sklearn.pipeline" in loaded
    # FastAPI itself imports OpenTelemetry's API.
    assert [name for name in loaded if name.startswith(("stagetrace.request", "opentelemetry.sdk"))] == []


def processes_below(folder: Path) -> list[str]:
    """Return the command lines of running processes that name the folder, or work in it."""
    done = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if str(folder) in line]


def run_demo(folder: Path) -> subprocess.Popen[str]:
    """Start the demo with its temporary files in `folder`."""
    return subprocess.Popen(
        [PYTHON, "-m", "stagetrace.cli.main", "demo"],
        env=clean_environment() | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def longest_ms(output: str, stage: str) -> float:
    """Return the longest time of a stage, of any route, that the table of stages shows."""
    rows = re.findall(rf" {re.escape(stage)} +\d+ .*? ([\d.]+) ms +[\d.]+ %$", output, re.MULTILINE)
    return max(map(float, rows))


@pytest.mark.usefixtures("services")
def test_demo_shows_the_breaches(tmp_path: Path) -> None:
    """Each fault of an unchanged service shows in its stage."""
    process = run_demo(tmp_path)
    output, errors = process.communicate(timeout=480)
    assert process.returncode == 0, errors
    (kept,) = tmp_path.iterdir()
    assert f"What was recorded is in {kept}, " in output
    check_second_act(output, kept)
    check_commands(output)
    assert output.count("BREACH ticket-router POST /predict") >= 1
    longest = {stage: longest_ms(output, stage) for stage in ("inference", "queue", "network.receive")}
    assert min(longest.values()) > 50, longest
    breach = r"^\S+ +POST /\S+ +[\d.]+ ms( +\d+ ms)? +[\d.]+ ms +[\w.]+( \(\w+\))?.* +[0-9a-f]{8,}$"
    assert len(re.findall(breach, output, re.MULTILINE)) == 10
    # The sums are over all judged requests, not only those listed.
    judged, missed = re.findall(r"judged (\d+) requests, (\d+) missed their objective", output)[0]
    summary = rf"^{missed} of {judged} judged requests missed their objective, [\d.]+ s over in all: [\w.]+/\w+ \d+ %"
    assert re.search(summary, output, re.MULTILINE)
    assert int(missed) > 10
    assert f"These are the newest 10 of {missed}; --limit {missed} shows all." in output
    assert re.search(r"stage: inference", output)
    assert "ExtraTreesClassifier" in output
    assert re.search(r"^\$ stagetrace trace [0-9a-f]{32} ", output, re.MULTILINE)
    # The lines of code of the slow model and of the handler that blocks the event loop.
    source = (service_folder() / "app.py").read_text().splitlines()
    (slow,) = (number for number, line in enumerate(source, 1) if "predict_proba([text])" in line)
    (blocking,) = (number for number, line in enumerate(source, 1) if "predict_proba([" in line and "*without" in line)
    assert f"; at app.py:{slow} in predict" in output
    assert f"; at app.py:{blocking} in explain" in output
    assert processes_below(tmp_path) == []


def check_second_act(output: str, folder: Path) -> None:
    """Check that each question is answered in a sentence, and all on a page."""
    answered = dict(re.findall(r"^\$ stagetrace (\w+).*\n  (\S.*)$", output, re.MULTILINE))
    assert {*ANSWERS, BENCH} <= answered.keys()
    assert all(answered.values())
    report = folder / "report.html"
    assert f"on one page: {report}" in output
    page = report.read_text()
    assert page.count("<section") == len(ANSWERS) + 1
    assert page.count("<svg") >= 5
    # The next release serves another model, of which each inference takes longer.
    assert "2026.11" in answered["compare"]


def check_commands(output: str) -> None:
    """Check that each command can be run again, but the benchmark of a service that has ended."""
    printed = re.findall(r"^(?:\$|Next:) stagetrace (.+)$", output, re.MULTILINE)
    assert len(printed) > len(ANSWERS)
    for command in printed:
        verb, *options = shlex.split(command)
        if verb != BENCH:
            argv = [PYTHON, "-m", "stagetrace.cli.main", verb, *options]
            done = subprocess.run(argv, env=clean_environment(), capture_output=True, text=True, check=False)
            assert done.returncode in (ANSWERED, BAD), (command, done.stderr)
            assert done.stdout, command


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_demo_leaves_nothing_behind(ending: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C and kill stop the processes and remove the files."""
    process = run_demo(tmp_path)
    assert process.stdout
    for line in process.stdout:
        if line.startswith("sending"):
            break
    else:
        pytest.fail(f"the demo ended: {process.communicate(timeout=120)[1]}")
    assert processes_below(tmp_path)
    process.send_signal(ending)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert output.endswith("interrupted; everything is stopped\n")
    assert processes_below(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
