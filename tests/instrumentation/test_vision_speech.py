"""The patches of diffusers, ultralytics, faster-whisper and ctranslate2, by stand-ins: what needs no real model."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import guard
from stagetrace.instrumentation.models import marked
from stagetrace.request.current import current
from stagetrace.request.request import Request
from stagetrace_contrib import ctranslate2, diffusers, faster_whisper, ultralytics

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = ("ml.model.name", "ml.framework", "ml.device", "ml.steps")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "failures", {})


@contextmanager
def request() -> Iterator[list[Any]]:
    """Be within a request; yield what each of its inferences says once it has ended, and its other stages' names."""
    record = Request(start=1)
    record.bound = True
    token = current.set(record)
    stages: list[Any] = []
    try:
        yield stages
    finally:
        current.reset(token)
        for one in record.close(1, 2**62).segments():
            known = tuple(one.attributes.get(name) for name in NAMES)
            stages.append(known if one.stage == "inference" else one.stage)


class Pipeline:
    """As `DiffusionPipeline`."""

    name_or_path = "/models/painter"
    device = "cpu"


class Painter(Pipeline):
    def __call__(self, prompt: str, num_inference_steps: int = 50, *, fail: bool = False) -> str:
        if fail:
            raise LookupError(prompt)
        return prompt * num_inference_steps


class Instant(Pipeline):
    def __call__(self, prompt: str) -> str:
        return prompt


@pytest.mark.parametrize(
    ("call", "steps"),
    [
        (lambda: Painter()("a"), 50),
        (lambda: Painter()("a", 2), 2),
        (lambda: Painter()("a", num_inference_steps=0), 0),
        (lambda: Instant()("a"), None),
    ],
)
def test_a_pipeline_says_how_many_steps_it_was_asked_for(call: Any, steps: int | None) -> None:
    signature, before = inspect.signature(Painter.__call__), call()
    diffusers.patch_pipelines(SimpleNamespace(DiffusionPipeline=Pipeline))  # type: ignore[arg-type]
    with request() as stages:
        assert call() == before
    assert stages == ["preprocess", ("painter", "torch", "cpu", steps), "postprocess"]
    assert inspect.signature(Painter.__call__) == signature
    with request() as stages, pytest.raises(LookupError):
        Painter()("a", fail=True)
    assert guard.failures == {}


def test_a_predictor_knows_what_runs_its_model() -> None:
    class BasePredictor:
        args = SimpleNamespace(model="/weights/best.onnx")
        model = SimpleNamespace(format="onnx")
        device = "cpu"

        def inference(self, image: Any) -> Any:
            return image

        def postprocess(self, image: Any) -> Any:
            return [image]

    class Predictor(BasePredictor):
        def postprocess(self, image: Any) -> Any:
            return super().postprocess(image)

    ultralytics.patch_predictor(SimpleNamespace(BasePredictor=BasePredictor))  # type: ignore[arg-type]
    predictor = Predictor()
    with request() as stages:
        assert [predictor.postprocess(predictor.inference(image)) for image in (1, 2)] == [[1], [2]]
    model = ("best.onnx", "onnxruntime", "cpu", None)
    assert stages == ["preprocess", model, "postprocess", "preprocess", model, "postprocess"]
    assert guard.failures == {}


@pytest.fixture
def speech() -> Any:
    """Return faster-whisper's module, patched; `closed` are the transcriptions that were given up."""
    module: Any = ModuleType("faster_whisper.transcribe")
    module.closed = []

    class WhisperModel:
        def __init__(self, model_size_or_path: str) -> None:
            self.size = model_size_or_path
            self.model = SimpleNamespace(device="cpu")

        def transcribe(self, audio: list[int]) -> Any:
            return self.segments(module.get_speech_timestamps(audio)), "info"

        def segments(self, audio: list[int]) -> Iterator[int]:
            try:
                yield from audio
            finally:
                module.closed.append(marked.inside.get())

    class BatchedInferencePipeline:
        def __init__(self, model: WhisperModel) -> None:
            self.model = model

        def transcribe(self, audio: list[int]) -> Any:
            return self.model.segments(audio), "info"

    module.WhisperModel, module.BatchedInferencePipeline = WhisperModel, BatchedInferencePipeline
    module.get_speech_timestamps = lambda audio: audio
    faster_whisper.patch_transcribe(module)
    return module


def test_each_step_of_the_segments_is_the_inference(speech: Any) -> None:
    model = speech.WhisperModel("small")
    for one in (model, speech.BatchedInferencePipeline(model)):
        with request() as stages:
            segments, info = one.transcribe([1, 2])
            assert (list(segments), info) == ([1, 2], "info")
        assert {stage for stage in stages if type(stage) is tuple} == {("small", "ctranslate2", "cpu", None)}
        assert stages[0] == "preprocess"
    assert guard.failures == {}


def test_a_transcription_given_up_is_closed(speech: Any) -> None:
    with request() as stages:
        segments, _ = speech.WhisperModel("small").transcribe([1, 2])
        assert next(segments) == 1
        segments.close()
    assert speech.closed == [False]
    assert len([stage for stage in stages if type(stage) is tuple]) == 1


def test_outside_a_request_the_segments_are_the_librarys_own(speech: Any) -> None:
    segments, _ = speech.WhisperModel("small").transcribe([1])
    assert segments.gi_code is inspect.unwrap(speech.WhisperModel.segments).__code__


def test_a_result_of_another_form_is_returned_as_it_is(speech: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faster_whisper, "each_step", None)
    with request():
        segments, info = speech.WhisperModel("small").transcribe([1])
        assert (list(segments), info) == ([1], "info")
    assert sum(guard.failures.values()) == 1


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("/models/opus-en-de", "opus-en-de"),
        ("/cache/hub/models--Systran--faster-whisper-tiny/snapshots/9f2c", "Systran/faster-whisper-tiny"),
    ],
)
def test_a_model_of_ctranslate2_has_the_name_of_its_folder(folder: str, name: str) -> None:
    module: Any = ModuleType("ctranslate2")
    for calls in ctranslate2._OF_TEXT:
        methods = dict.fromkeys(calls.names, lambda self, rows: [*rows, self.device])
        setattr(module, calls.owner, type(calls.owner, (), {"__init__": lambda *_: None, "device": "cpu", **methods}))
    ctranslate2.patch_text(module)
    with request() as stages:
        assert module.Translator(folder).translate_batch([["a"]]) == [["a"], "cpu"]
    assert stages == ["preprocess", (name, "ctranslate2", "cpu", None), "postprocess"]
    assert guard.failures == {}
