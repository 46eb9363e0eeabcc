"""The patches of transformers' generation, by a stand-in: a streamer's request, batches, models' own methods."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace import guard
from stagetrace.patches import transformers
from stagetrace.request.current import current
from stagetrace.request.request import Request

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = SimpleNamespace(shape=(1, 3))


@pytest.fixture(scope="module")
def library() -> Any:
    """Return modules of the library as one, patched."""
    module: Any = ModuleType("transformers.generation")

    class BaseStreamer:
        def put(self, value: Any) -> None:
            pass

        def end(self) -> None:
            pass

    class GenerationMixin:
        config = SimpleNamespace(is_encoder_decoder=False)

        def generate(self, inputs: Any = None, streamer: Any = None) -> Any:  # noqa: ARG002
            return SimpleNamespace(shape=(1, 5)) if inputs is ROWS else inputs

    class ContinuousMixin:
        def generate_batch(self, inputs: list[list[int]]) -> dict[str, Any]:
            return {str(at): SimpleNamespace(generated_tokens=[7, 7]) for at in range(len(inputs))}

    class DirectStreamer:
        put, end = BaseStreamer.put, BaseStreamer.end

    for cls in (BaseStreamer, DirectStreamer, GenerationMixin, ContinuousMixin):
        setattr(module, cls.__name__, cls)
    transformers.patch_streamers(module)
    transformers.patch_serving(module)
    transformers.patch_generation(module)
    transformers.patch_continuous_batching(module)

    class Streamer(BaseStreamer):
        def __init__(self) -> None:
            self.text = ""

    class Model(GenerationMixin, ContinuousMixin):
        pass

    class Own(Model):
        def generate(self, inputs: Any = None, streamer: Any = None) -> Any:
            return super().generate(inputs, streamer)

    module.Streamer, module.Model, module.Own = Streamer, Model, Own
    return module


@contextmanager
def request(stages: list[Any] | None = None) -> Iterator[list[dict[str, Any]]]:
    """Be within a request; yield the attributes of its inferences once it has ended, and add its stages."""
    record = Request(start=1)
    record.bound = True
    token = current.set(record)
    inferences: list[dict[str, Any]] = []
    try:
        yield inferences
    finally:
        current.reset(token)
        segments = record.close(1, 2**62).segments()
        if stages is not None:
            stages += segments
        inferences += [dict(one.attributes) for one in segments if one.stage == "inference"]


def in_a_thread(call: Any) -> list[Any]:
    """Return what a thread without a context has found: what the call returns, and the request after it."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend((call(), current.get())))
    thread.start()
    thread.join()
    return found


def test_a_streamer_brings_the_request_into_a_thread(library: Any) -> None:
    with request() as inferences:
        streamer = library.Streamer()
        assert in_a_thread(lambda: library.Model().generate(ROWS, streamer=streamer))[1:] == [None]
    assert [one["gen_ai.request.stream"] for one in inferences] == [True]
    assert streamer.text == ""
    assert guard.failures == {}


def test_a_stream_of_transformers_serve_has_waited_for_its_thread(library: Any) -> None:
    """Whose context may still have the batch that it has worked for before."""
    batch = Request(start=1)
    batch.is_batch = True
    found: list[Any] = []

    def generate() -> Any:
        current.set(batch)
        return library.Model().generate(ROWS, streamer=streamer)

    with request(found) as inferences:
        streamer = library.DirectStreamer()
        assert in_a_thread(generate)[1:] == [batch]
    assert [one["gen_ai.request.stream"] for one in inferences] == [True]
    assert [(one.stage, one.attributes) for one in found if one.stage == "queue"] == [
        ("queue", {"queue.reason": "consumer"})
    ]
    assert guard.failures == {}


def test_no_other_thread_works_for_a_request(library: Any) -> None:
    """Not without a streamer, with one that no request has made, or after the request has ended."""
    before = library.Streamer()
    with request() as inferences:
        after = library.Streamer()
        for given in ({}, {"streamer": before}):
            assert in_a_thread(lambda given=given: library.Model().generate(3, **given)) == [3, None]
    assert in_a_thread(lambda: library.Model().generate(3, streamer=after)) == [3, None]
    assert inferences == []


def test_a_request_keeps_its_own_generation_whoever_made_the_streamer(library: Any) -> None:
    with request() as first:
        streamer = library.Streamer()
        with request() as second:
            library.Model().generate(ROWS, streamer=streamer)
    assert (len(first), len(second)) == (0, 1)


def test_tokens_of_a_models_own_method_are_not_known(library: Any) -> None:
    with request() as inferences:
        library.Model().generate(ROWS)
        library.Own().generate(ROWS)
    assert [one.get("gen_ai.usage.output_tokens") for one in inferences] == [2, None]
    assert [one["ml.model.name"] for one in inferences] == ["Model", "Own"]


def test_a_batch_is_one_inference(library: Any) -> None:
    with request() as inferences:
        assert len(library.Model().generate_batch([[1, 2], [3]])) == 2
    (one,) = inferences
    names = ("ml.batch.size", "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
    assert tuple(map(one.get, names)) == (2, 3, 4)


def test_an_injected_fault_changes_no_result(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "failures", {})
    monkeypatch.setattr(transformers, "_made_in", None)
    with request():
        streamer = library.Streamer()
        assert in_a_thread(lambda: library.Model().generate(3, streamer=streamer)) == [3, None]
        assert library.Model().generate(ROWS).shape == (1, 5)
    assert sum(guard.failures.values()) == 2
