"""`stagetrace report --all`: the ten answers to one selection, in each form."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest

from answers.made import Made, store
from answers.test_bad_input import EVER, many, run
from stagetrace.cli.ask import BENCH
from stagetrace.cli.registry import ANSWERS

DOCS: Final = Path(__file__).parents[2] / "docs/answers"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    requests = [
        Made(one.number, one.start_unix_nano, one.stages, within_ms=45.0, model="churn", version="23"[one.number % 2])
        for one in many(400)
    ]
    return store(tmp_path_factory.mktemp("every") / "store", requests)


@pytest.mark.thorough
def test_all_ten_as_json(folder: Path) -> None:
    """Each verb's keys are those that it prints by itself, for options given to it too."""
    command = ("report", "--all", *EVER, "--store", str(folder), "--with", "segments --by model_version", "--json")
    code, output, errors = run(*command)
    assert (code, errors) == (1, "")  # an objective is missed
    found = json.loads(output)
    assert set(found["answers"]) == {*ANSWERS, BENCH}
    assert found["sentence"] == found["answers"]["slo"]["sentence"]
    for verb, options in (("bottleneck", []), ("segments", ["--by", "model_version"]), ("compare", [])):
        _, alone, _ = run(verb, *options, *EVER, "--store", str(folder), "--json")
        assert close(found["answers"][verb], json.loads(alone)), verb
    assert {one["segment"] for one in found["answers"]["segments"]["segments"]} == {"2", "3"}


def close(one: Any, other: Any) -> bool:
    """Tell whether two answers are the same: sums are made in any order, so that their last digit may differ."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return bool(one == pytest.approx(other)) if isinstance(one, float) else bool(one == other)


@pytest.mark.thorough
def test_one_page(folder: Path, tmp_path: Path) -> None:
    """The page has a heading for each answer, pictures, and needs nothing else."""
    bench = tmp_path / "bench.json"
    stages = {"queue": {"p50": 1.0, "p99": 30.0}, "inference": {"p50": 9.0, "p99": 12.0}}
    sentence = "at 40 requests/s p99 breaks the objective"
    told = {"complete": True, "sentence": sentence, "valid": True, "quantiles": {"p50": 10.0, "p99": 41.0}}
    bench.write_text(json.dumps(told | {"stages": stages}))
    command = ("report", "--all", *EVER, "--store", str(folder), "--bench", str(bench), "--format", "html")
    code, page, errors = run(*command)
    assert (code, errors) == (1, "")
    assert page.count("<section") == len(ANSWERS) + 1
    assert page.count("<svg") >= 5
    assert sentence in page
    assert "41.00 ms" in page
    assert "<script" not in page
    for known in ("http://www.w3.org/2000/svg", "http://HOST:PORT", "http."):  # a namespace, a command, attributes
        page = page.replace(known, "")
    assert "http" not in page


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["text", "markdown"])
def test_one_after_the_other(form: str, folder: Path) -> None:
    code, output, errors = run("report", "--all", *EVER, "--store", str(folder), "--format", form)
    assert (code, errors) == (1, "")
    assert "No load was put on the service" in output
    assert output.count("inference") > 5


@pytest.mark.thorough
def test_each_page_of_the_docs_names_the_keys_that_its_verb_prints(folder: Path) -> None:
    """An emptied page has none of them."""
    code, output, _ = run("report", "--all", *EVER, "--store", str(folder), "--json")
    assert code == 1
    for verb, answer in json.loads(output)["answers"].items():
        if verb != BENCH:
            page = re.sub(r"^```.*?^```$", "", (DOCS / f"{verb}.md").read_text(), flags=re.DOTALL | re.MULTILINE)
            words = set(re.findall(r"\w+", " ".join(re.findall(r"`[^`]+`", page))))
            assert not {*answer} - {"complete", "reason", "sentence"} - words, verb
