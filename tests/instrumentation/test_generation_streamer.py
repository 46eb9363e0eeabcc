"""transformers' `generate`, by a stand-in: its streamer's first call is the prompt, and it stays the service's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from instrumentation.generative import START, Clock, request
from stagetrace import guard
from stagetrace.instrumentation.models import generation, marked
from stagetrace.instrumentation.models.base import Library
from stagetrace.patches import transformers
from stagetrace.patches.transformers import generating_by_streamer

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY = Library(transformers.__name__, "torch", library="transformers", rows=lambda *_: None)
PROMPT, BATCH = (1, 3), (2, 3)


class Tensor:
    """As torch's, as far as `generate` and what watches it look."""

    def __init__(self, *shape: int) -> None:
        self.shape = shape

    def numel(self) -> int:
        return self.shape[0] * self.shape[1]


class Streamer:
    """A streamer of the service's own."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def put(self, value: Tensor) -> None:
        if value.shape == (1, 13):
            raise LookupError("the service's own")
        self.got.append(value.shape)

    def end(self) -> None:
        self.got.append("end")


class Slotted:
    """One that takes no attribute of ours."""

    __slots__ = ("got",)
    put, end = Streamer.put, Streamer.end
    __init__: Callable[..., None] = Streamer.__init__


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in (generation, transformers):
        monkeypatch.setattr(module, "time_ns", made.time_ns)
    monkeypatch.setattr(generation, "sample", lambda _: None)
    monkeypatch.setattr(marked, "_called", {"Model"})
    monkeypatch.setattr(guard, "failures", {})
    return made


def model(
    clock: Clock, parts: tuple[int, ...] = (1, 1, 2), *, encodes: bool = False, library: Library = LIBRARY
) -> Any:
    """Return a model that generates so many tokens at a time, each after 10 ms."""

    class Model:
        config = SimpleNamespace(is_encoder_decoder=encodes)

        def generate(
            self,
            inputs: Any = None,
            generation_config: Any = None,
            streamer: Any = None,
            **kwargs: Any,
        ) -> Any:
            given: Any = kwargs.get("input_ids") if inputs is None else inputs
            length = 1 if encodes else given.shape[1]
            if streamer is not None:
                streamer.put(Tensor(1, length))
            for count in parts:
                clock.pause(0.01)
                if streamer is not None:
                    streamer.put(Tensor(1, count))
            if streamer is not None:
                streamer.end()
            sequences = Tensor(given.shape[0], length + sum(parts))
            return SimpleNamespace(sequences=sequences) if generation_config else sequences

    Model.generate = generating_by_streamer(Model.generate, library)  # type: ignore[method-assign]
    return Model()


@pytest.mark.parametrize("by", ["name", "place"])
def test_tokens_are_what_follows_the_prompt(clock: Clock, by: str) -> None:
    streamed = Streamer()
    with request(clock, "* within 1s first_token 10ms per_token 7ms") as ran:
        if by == "name":
            model(clock).generate(input_ids=Tensor(*PROMPT), streamer=streamed)
        else:
            model(clock).generate(Tensor(*PROMPT), None, streamed)
    assert streamed.got == [(1, 3), (1, 1), (1, 1), (1, 2), "end"]
    assert vars(streamed).keys() == {"got"}
    known = {name: ran.entry[name] for name in ran.entry if name.startswith(("gen_ai.", "stagetrace.tokens"))}
    assert known == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "transformers",
        "gen_ai.request.model": "Model",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.01,
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 4,
        "stagetrace.tokens.first_ms": 10.0,
        "stagetrace.tokens.gap.max_ms": 10.0,
        "stagetrace.tokens.gap.mean_ms": pytest.approx(20 / 3),
        "stagetrace.tokens.per_second": pytest.approx(4 / 0.03),
    }
    assert ran.judged is not None
    assert (ran.judged.word, ran.judged.fallback) == ("good", None)
    assert guard.failures == {}


def test_a_stream_is_complete_with_its_end_though_the_call_has_not_returned(clock: Clock) -> None:
    """The response ends then, and the request may end before `generate` does, in another thread."""
    known: list[dict[str, Any]] = []
    streamed = Streamer()
    with request(clock) as ran:
        streamed.end = lambda: known.append(ran.record.generation.attributes(START, clock.now))  # type: ignore[method-assign,union-attr]
        model(clock).generate(Tensor(*PROMPT), None, streamed)
    assert known[0]["stagetrace.tokens.incomplete"] is None
    assert (known[0]["gen_ai.usage.input_tokens"], known[0]["gen_ai.usage.output_tokens"]) == (3, 4)
    assert guard.failures == {}


@pytest.mark.parametrize("as_output", [None, "dictionary"])
@pytest.mark.parametrize("encodes", [False, True])
def test_without_a_streamer_the_tokens_of_one_sequence_are_known(
    clock: Clock, as_output: str | None, *, encodes: bool
) -> None:
    with request(clock) as ran:
        model(clock, encodes=encodes).generate(Tensor(*PROMPT), as_output)
    assert (ran.entry["gen_ai.usage.input_tokens"], ran.entry["gen_ai.usage.output_tokens"]) == (3, 4)
    assert "stagetrace.tokens.first_ms" not in ran.entry
    assert "gen_ai.request.stream" not in ran.entry


def test_of_a_padded_batch_no_tokens_are_known(clock: Clock) -> None:
    with request(clock) as ran:
        model(clock).generate(Tensor(*BATCH))
    assert not {"gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"} & ran.entry.keys()
    assert guard.failures == {}


def test_a_streamer_keeps_a_method_that_it_was_given(clock: Clock) -> None:
    streamed: Any = Streamer()
    got: list[Any] = []
    streamed.put = got.append
    with request(clock):
        model(clock).generate(Tensor(*PROMPT), None, streamed)
    assert len(got) == 4
    assert streamed.put == got.append


def test_a_streamer_that_raises_or_takes_no_attribute_works_as_before(clock: Clock) -> None:
    streamed = Streamer()
    with request(clock) as ran, pytest.raises(LookupError, match="the service's own"):
        model(clock, (1, 13)).generate(Tensor(*PROMPT), None, streamed)
    assert vars(streamed).keys() == {"got"}
    assert ran.inferences[0]["stagetrace.tokens.error"] == "LookupError"
    slotted = Slotted()
    with request(clock) as ran:
        model(clock).generate(Tensor(*PROMPT), None, slotted)
    assert slotted.got == [(1, 3), (1, 1), (1, 1), (1, 2), "end"]
    assert ran.entry["gen_ai.usage.output_tokens"] == 4
    assert guard.failures == {}


def test_outside_a_request_the_streamer_is_not_touched(clock: Clock) -> None:
    streamed = Streamer()
    seen = []
    streamed.end = lambda: seen.append(dict(vars(streamed)))  # type: ignore[method-assign]
    model(clock).generate(Tensor(*PROMPT), None, streamed)
    assert "put" not in seen[0]


def test_a_device_is_timed_from_the_begin_of_the_call_to_its_end(clock: Clock) -> None:
    noted: list[Any] = []

    class Timing:
        def __init__(self, attributes: dict[str, Any], _record: Any) -> None:
            noted.append((attributes["ml.framework"], clock.now - START))

        def stop(self) -> None:
            noted.append(clock.now - START)

        def end(self, _record: Any, ended: int) -> None:
            noted.append(ended - START)

    timed = Library(transformers.__name__, "torch", library="transformers", rows=lambda *_: None, timer=Timing)
    with request(clock):
        model(clock, library=timed).generate(Tensor(*PROMPT))
    assert noted == [("torch", 0), 30_000_000, 30_000_000]
    assert guard.failures == {}
