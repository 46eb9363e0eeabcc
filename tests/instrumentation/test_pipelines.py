"""Pipelines of large libraries, split into their stages: exact trees, faults, and many requests at once."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from environments import interpreter_with
from services import Service, run_service

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Sink

pytestmark = [
    *(pytest.mark.usefixtures("services"), pytest.mark.heavy),
    pytest.mark.xdist_group("large libraries"),  # each application is started once, one at a time
]

READY_WITHIN_S = 300  # importing these takes a minute on a cold disk
# By application, what it needs besides FastAPI.
NEEDS = {
    "pipelines": ("torch", "transformers", "sentence-transformers", "catboost"),  # as test_large_libraries.py
    "vision_speech": ("torch", "transformers", "sentence-transformers", "ultralytics", "diffusers", "faster-whisper"),
}
STAGES = ("preprocess", "inference", "postprocess", "handler")
# Of an inference, which other attributes are its own each time.
VARYING = ("ml.cold_start", "ml.stage", "gen_ai.response.time_to_first_chunk")
VARYING_PREFIXES = ("stagetrace.cpu.", "stagetrace.tokens.", "ml.stage.coalesced")

Stage = tuple[str, dict[str, Any]]
Tree = tuple[Stage, ...]


BERT, GPT = "BertForSequenceClassification", "GPT2LMHeadModel"


def inferred(model: str, rows: int | None = None, size: int | None = None, more: Any = None) -> Stage:
    known = {"ml.batch.size": rows, "ml.input.size": size}
    attributes = {"ml.model.name": model, "ml.framework": "torch", "ml.device": "cpu", **(more or {})}
    return "inference", attributes | {name: value for name, value in known.items() if value is not None}


OF_SENTENCES = {"ml.framework": "sentence_transformers"}


def generated(rows: int, size: int, model: str = GPT, more: Any = None) -> Stage:
    known = {"operation.name": "text_completion", "provider.name": "transformers", "request.model": model}
    return inferred(model, rows, size, {**{f"gen_ai.{name}": known[name] for name in known}, **(more or {})})


def yolo(rows: int) -> Stage:
    return inferred("yolov8n.yaml", rows, rows * 3 * 64 * 64)


TOKENS = {"gen_ai.usage.input_tokens": 2, "gen_ai.usage.output_tokens": 5}
STREAM = {"gen_ai.request.stream": True, **TOKENS}
CTRANSLATE2 = {"ml.framework": "ctranslate2"}
WHISPER = inferred("tiny-whisper", more=CTRANSLATE2)
WRITER = inferred("tiny-writer", 1, 4, CTRANSLATE2)
PRE: Stage = ("preprocess", {})
POST: Stage = ("postprocess", {})
HANDLER: Stage = ("handler", {})
# Of each application's cases the stages from the handler's begin to the response.
TREES: dict[str, dict[str, Tree]] = {
    "pipelines": {
        "one": (PRE, inferred("classifier", 1, 2), POST),
        "list": (
            *(PRE, inferred("classifier", 1, 2), POST),
            *(PRE, inferred("classifier", 1, 1), POST),
            *(PRE, inferred("classifier", 1, 3), POST),
        ),
        **dict.fromkeys(
            ("batches", "loader-process"),
            (PRE, inferred("classifier", 2, 4), POST, PRE, inferred("classifier", 2, 6), POST),
        ),
        "generator": (PRE, inferred("classifier", 1, 2), POST, PRE, inferred("classifier", 1, 1), POST),
        "abandoned": (PRE, inferred("classifier", 1, 2), POST),
        "chunks": (PRE, inferred(BERT, 1, 7), PRE, inferred(BERT, 1, 7), POST),
        # A model that postprocessing calls is an inference, one that another model calls is none.
        "own": (PRE, inferred(BERT, 1, 2), POST, inferred("BertForMaskedLM", 1, 2), POST),
        "nested": (PRE, inferred(BERT, 1, 2), POST),
        "raises-preprocess": (HANDLER,),
        **dict.fromkeys(("raises-forward", "raises-postprocess"), (PRE, inferred(BERT, 1, 2), POST)),
        **dict.fromkeys(("generate", "write"), (PRE, generated(1, 2, more=TOKENS), POST)),
        **dict.fromkeys(("streamed", "streamed-from-a-thread"), (PRE, generated(1, 2, more=STREAM), POST)),
        "generate-raises": (PRE, generated(1, 1, more={"stagetrace.tokens.error": "ValueError"}), POST),
        "in-a-copied-context": (PRE, generated(1, 1, more={**TOKENS, "gen_ai.usage.input_tokens": 1}), POST),
        "generate-rows": (PRE, generated(2, 4), POST),
        "generate-own": (PRE, generated(1, 2, "OwnWriter"), POST),
        "encode": (PRE, inferred("sentences", 2, 11, OF_SENTENCES), POST),
        **dict.fromkeys(("encode-text", "encode-query"), (PRE, inferred("sentences", None, 8, OF_SENTENCES), POST)),
        "encode-batches": (
            PRE,
            inferred("sentences", 4, 24, OF_SENTENCES),
            PRE,
            inferred("sentences", 4, 24, OF_SENTENCES),
            POST,
        ),
        "encode-raises": (HANDLER,),
        "predict": (PRE, inferred("pairs", 2, more=OF_SENTENCES), POST),
        "rank": (PRE, inferred("pairs", 4, more=OF_SENTENCES), POST),
        "sparse": (PRE, inferred("sparse", 2, 11, OF_SENTENCES), POST),
        "vectors": (PRE, inferred("vectors", 1, 8, OF_SENTENCES), POST),
    },
    "vision_speech": {
        "predict": (PRE, yolo(1), POST),
        "predict-batch": (PRE, yolo(2), POST),
        **dict.fromkeys(("predict-files", "predict-stream"), (PRE, yolo(1), POST, PRE, yolo(1), POST)),
        "predict-abandoned": (PRE, yolo(1), POST),
        "predict-raises": (HANDLER,),
        "paint": (PRE, inferred("DDPMPipeline", more={"ml.steps": 3}), POST),
        "paint-own": (PRE, inferred("Own", 2, 2), POST),
        "paint-raises": (PRE, inferred("DDPMPipeline", more={"ml.steps": 11}), POST),
        # The last step of each finds that there are no more segments.
        **dict.fromkeys(("transcribe", "transcribe-language"), (PRE, WHISPER, PRE, WHISPER, POST)),
        "transcribe-batched": (PRE, WHISPER, PRE, WHISPER, PRE, WHISPER, POST),
        **dict.fromkeys(("transcribe-speech", "transcribe-abandoned"), (PRE, WHISPER, POST)),
        "not-iterated": (HANDLER,),
        "encode": (PRE, WHISPER, POST),
        "write": (PRE, inferred("tiny-writer", 2, more=CTRANSLATE2), POST),
        "write-tokens": (*(PRE, WRITER) * 3, POST),
        "write-raises": (PRE, inferred("tiny-writer", 1, more=CTRANSLATE2), POST),
    },
}
# Of each application, which parts are broken, and cases that need them ten times; below, whose parts these are.
BROKEN = {
    "pipelines": (
        (
            "stagetrace.patches.transformers:_generates",
            "stagetrace.patches.transformers:no_description",
            "stagetrace.instrumentation.models.preparing:Visit",
        ),
        ("one", "batches", "own", "raises-forward", "abandoned", "encode", "rank", "encode-batches"),
    ),
    "vision_speech": (
        (
            "stagetrace_contrib.ultralytics:description",
            "stagetrace_contrib.diffusers:_given",
            "stagetrace_contrib.ctranslate2:name_in",
            "stagetrace_contrib.faster_whisper:steps_of",
        ),
        (
            *("predict", "predict-files", "paint", "paint-own", "paint-raises"),
            *("write", "write-tokens", "transcribe", "transcribe-batched", "transcribe-abandoned"),
        ),
    ),
}
PATCHES_BROKEN = {
    "pipelines": {"transformers", "preparing"},
    "vision_speech": {"ultralytics", "diffusers", "ctranslate2", "faster_whisper"},
}


class Both(NamedTuple):
    """One application, twice."""

    name: str
    argv: list[str]
    traced: Service
    untraced: Service

    def expected(self, case: str) -> bytes:
        """Return how the application responds without stagetrace."""
        return self.untraced.call("GET", f"/case/{case}")[1].content


@pytest.fixture(scope="module")
def both(request: pytest.FixtureRequest, sink: Sink, folder: Path) -> Iterator[Both]:
    name = request.param
    argv = [interpreter_with((*NEEDS[name], "fastapi", "uvicorn")), "-m", "uvicorn", f"{name}:app", "--port", "{port}"]
    with (
        run_service(folder, argv=argv, env=sink.environment(), within_s=READY_WITHIN_S) as traced,
        run_service(folder, argv=argv, within_s=READY_WITHIN_S) as untraced,
    ):
        yield Both(name, argv, traced, untraced)
        assert "fault of stagetrace" not in traced.log


def tree_of(trace_id: str, sink: Sink) -> Tree:
    """Return the stages of a request from the handler's begin to the response."""
    stages = sink.tiled(trace_id).stages
    ends = next(at for at, one in enumerate(stages) if one.name == "network.send")
    tree = [(one.name, _own(one.attributes)) for one in stages[:ends] if one.name in STAGES]
    return tuple(one for one, _ in groupby(tree))  # waits for the thread pool are between some


def _own(attributes: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in attributes.items()
        if name == "stagetrace.tokens.error" or not (name in VARYING or name.startswith(VARYING_PREFIXES))
    }


CASES = [(app, case) for app in TREES for case in TREES[app]]


@pytest.mark.parametrize(("both", "case"), CASES, indirect=["both"])
def test_each_call_is_split_into_its_stages(case: str, both: Both, sink: Sink) -> None:
    trace_id, response = both.traced.call("GET", f"/case/{case}")
    assert response.status_code == 200
    assert response.content == both.expected(case)
    assert tree_of(trace_id, sink) == TREES[both.name][case]


@pytest.mark.parametrize("both", TREES, indirect=True)
def test_requests_at_once_have_the_stages_of_their_own_calls(both: Both, sink: Sink) -> None:
    cases = [case for case in TREES[both.name] if case != "loader-process"] * 2
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda case: both.traced.call("GET", f"/case/{case}"), cases))
    for case, (trace_id, response) in zip(cases, found, strict=True):
        assert response.content == both.expected(case)
        assert (case, tree_of(trace_id, sink)) == (case, TREES[both.name][case])


@pytest.mark.parametrize("both", BROKEN, indirect=True)
def test_injected_faults_are_logged_once_each_and_change_no_response(both: Both, tmp_path: Path) -> None:
    parts, cases = BROKEN[both.name]
    broken = ",".join(parts)
    env = {"STAGETRACE": "1", "APP": both.name, "BREAK": broken}
    argv = [one.replace(f"{both.name}:app", "broken:app") for one in both.argv]
    with run_service(tmp_path, argv=argv, env=env, within_s=READY_WITHIN_S) as service:
        for case in cases:
            assert [service.call("GET", f"/case/{case}")[1].content for _ in range(4)] == [both.expected(case)] * 4
        patches = PATCHES_BROKEN[both.name]
        assert service.log.count("injected fault") == len(patches)
        assert service.log.count("failed 10 times: its patch is switched off") == len(patches)
        assert all(re.search(rf"\.{name}[. ]", service.log) for name in patches)


@pytest.mark.parametrize("both", TREES, indirect=True)
def test_each_case_of_the_app_is_tested(both: Both) -> None:
    assert set(both.untraced.call("GET", "/cases")[1].json()) == set(TREES[both.name])
