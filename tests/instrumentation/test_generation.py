"""Generative models: tokens are counted and timed, in calls of every kind, given up, broken, and several at once."""

from __future__ import annotations

import inspect
import pickle
import threading
from typing import TYPE_CHECKING, Any

import pytest

import stagetrace
from instrumentation.generative import SCRIPT, Clock, fresh, llama, request, stand_ins
from stagetrace import guard
from stagetrace.api import tokens
from stagetrace.instrumentation.models import marked
from stagetrace.request.generation import active

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = {
    "ml.model.name": "tiny.gguf",
    "ml.framework": "llama_cpp",
    "gen_ai.provider.name": "llama_cpp",
    "gen_ai.request.model": "tiny.gguf",
}


@pytest.fixture(scope="module")
def engines() -> Iterator[Any]:
    with stand_ins() as found:
        yield found


@pytest.fixture
def clock(engines: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return fresh(engines, monkeypatch)


def test_a_completion_is_described_by_its_tokens(engines: Any, clock: Clock) -> None:
    """From the call for the stage, from the request's start for the entry span."""
    with request(clock) as ran:
        clock.pause(0.05)
        result = llama(engines)("hello")
        clock.pause(0.01)
    assert result["choices"][0]["text"] == "abc"
    tokens = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.output_tokens": 3,
        "stagetrace.tokens.per_second": pytest.approx(3 / 0.16),
        "stagetrace.tokens.gap.mean_ms": 25.0,
        "stagetrace.tokens.gap.max_ms": 30.0,
    }
    inference = {**MODEL, **tokens, "ml.input.size": 5, "stagetrace.tokens.first_ms": 100.0}
    assert ran.stages == [("preprocess", 50.0, {}), ("inference", 160.0, inference), ("postprocess", 10.0, {})]
    assert ran.entry == {**inference, "stagetrace.tokens.first_ms": 150.0}
    assert guard.failures == {}


def test_each_step_of_a_stream_is_the_inference(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        clock.pause(0.05)
        for _ in llama(engines)("hello", stream=True):
            clock.pause(0.001)  # the service sends it
    assert [(stage, took) for stage, took, _ in ran.stages if stage == "inference"] == [
        ("inference", took) for took in (100.0, 20.0, 30.0, 10.0)
    ]
    (described,) = {tuple(sorted(one.items())) for one in ran.inferences}
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.1,
        "gen_ai.usage.input_tokens": 6,
        "gen_ai.usage.output_tokens": 3,
        "ml.input.size": 5,
        "stagetrace.tokens.first_ms": 100.0,
        "stagetrace.tokens.gap.max_ms": 31.0,
        "stagetrace.tokens.gap.mean_ms": 26.0,
        "stagetrace.tokens.per_second": pytest.approx(3 / 0.164),
    }
    assert dict(described) == {**MODEL, **expected}
    assert ran.entry["stagetrace.tokens.first_ms"] == 150.0
    assert ran.entry["gen_ai.response.time_to_first_chunk"] == pytest.approx(0.15)
    assert guard.failures == {}


def test_the_first_token_may_be_held_back_from_the_first_chunk(engines: Any, clock: Clock) -> None:
    """A character of two bytes is two tokens and one chunk."""
    with request(clock) as ran:
        list(llama(engines, ((0.1, 0xC3), (0.02, 0x29), (0.01, 2)))("hello", stream=True))
    assert ran.entry["stagetrace.tokens.first_ms"] == 100.0
    assert ran.entry["gen_ai.response.time_to_first_chunk"] == 0.12
    assert ran.entry["gen_ai.usage.output_tokens"] == 2


def test_a_chat_is_one_call_of_its_own_kind(engines: Any, clock: Clock) -> None:
    for stream in (False, True):
        with request(clock) as ran:
            result = llama(engines).create_chat_completion([{"role": "user", "content": "hi"}], stream=stream)
            list(result)
        assert (ran.entry["gen_ai.operation.name"], ran.entry["gen_ai.usage.output_tokens"]) == ("chat", 3)
        assert ran.record.generation is not None
        assert len(ran.record.generation.calls) == 1
    assert guard.failures == {}


def test_embeddings_generate_nothing(engines: Any, clock: Clock) -> None:
    with request(clock, "* within 10s first_token 1ms") as ran:
        assert llama(engines).create_embedding(["a", "bc"])["usage"]["total_tokens"] == 5
    assert ran.entry == {
        **MODEL,
        "gen_ai.operation.name": "embeddings",
        "gen_ai.usage.input_tokens": 5,
        "ml.batch.size": 2,
        "ml.input.size": 3,
    }
    assert ran.record.generation is None
    assert ran.judged is not None
    assert ran.judged.fallback == "first_token not judged: tokens not known"


def test_tokens_drawn_by_hand_are_a_call_that_ends_where_its_caller_stops(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        model = llama(engines)
        for token in model.generate(model.tokenize(b"hello")):
            if token == 98:
                break
        clock.pause(1)
    assert ran.entry["gen_ai.usage.output_tokens"] == 2
    assert ran.entry["stagetrace.tokens.per_second"] == pytest.approx(2 / 0.12)
    assert "stagetrace.tokens.incomplete" not in ran.entry


def test_a_stream_given_up_half_way_is_marked(engines: Any, clock: Clock) -> None:
    """Its tokens are those until then, and its rate is that until its last token."""
    with request(clock) as ran:
        steps = llama(engines)("hello", stream=True)
        next(steps)
        next(steps)
        steps.close()
        clock.pause(1)
    assert ran.entry["stagetrace.tokens.incomplete"] is True
    assert all(one["stagetrace.tokens.incomplete"] for one in ran.inferences)
    assert ran.entry["gen_ai.usage.output_tokens"] == 2
    assert ran.entry["stagetrace.tokens.per_second"] == pytest.approx(2 / 0.12)
    assert not marked.inside.get()
    assert active.get() is None


def test_a_stream_that_goes_on_after_the_request_is_marked_and_harms_nothing(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        steps = llama(engines)("hello", stream=True)
        next(steps)
    before = [dict(one) for one in ran.inferences]
    assert len(list(steps)) == 3
    assert ran.entry["stagetrace.tokens.incomplete"] is True
    assert ran.inferences == before
    assert guard.failures == {}


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_that_raises_is_marked_and_its_exception_passes(engines: Any, clock: Clock, *, stream: bool) -> None:
    with request(clock) as ran, pytest.raises(ValueError, match="llama_decode returned -1"):
        list(llama(engines, fails_at=1)("hello", stream=stream))
    assert ran.entry["gen_ai.usage.output_tokens"] == 1
    assert {one["stagetrace.tokens.error"] for one in ran.inferences} == {"ValueError"}
    assert not marked.inside.get()


def test_several_calls_of_a_request_are_summed_on_its_entry_span(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        llama(engines)("hello")
        clock.pause(1)
        engines.llama.Llama("/models/other.gguf", ((0.2, 97), (0.05, 98)))("hi")
    one, two = ran.inferences
    assert (one["gen_ai.usage.output_tokens"], two["gen_ai.usage.output_tokens"]) == (3, 2)
    summed = {name: ran.entry[name] for name in ran.entry if name.startswith(("gen_ai", "stagetrace.tokens"))}
    assert summed == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "llama_cpp",
        "gen_ai.request.model": "tiny.gguf",  # of the first one
        "gen_ai.usage.input_tokens": 9,
        "gen_ai.usage.output_tokens": 5,
        "stagetrace.tokens.calls": 2,
        "stagetrace.tokens.first_ms": 100.0,
        "stagetrace.tokens.gap.max_ms": 50.0,
        "stagetrace.tokens.gap.mean_ms": pytest.approx(100 / 3),
        "stagetrace.tokens.per_second": pytest.approx(5 / 0.41),
    }


def test_calls_at_once_count_their_own_tokens(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        one, two = (llama(engines)("hello", stream=True) for _ in range(2))
        for _ in zip(one, two, strict=True):
            pass
    assert ran.record.generation is not None
    assert [call.output for call in ran.record.generation.calls] == [3, 3]


def test_a_thread_of_the_request_counts_for_it(engines: Any, clock: Clock) -> None:
    """As a server iterates a stream in threads: each step in a context of its own."""
    import contextvars

    with request(clock) as ran:
        steps = llama(engines)("hello", stream=True)
        for _ in range(4):
            thread = threading.Thread(target=contextvars.copy_context().run, args=(next, steps))
            thread.start()
            thread.join()
    assert ran.entry["gen_ai.usage.output_tokens"] == 3
    assert guard.failures == {}


def test_tokens_may_be_noted_by_hand(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "time_ns", clock.time_ns)
    stagetrace.note_tokens()  # outside a request
    with request(clock, "* within 10s first_token 100ms per_token 20ms") as ran:
        stagetrace.note_tokens(0, prompt=7)
        for seconds, count in ((0.1, 1), (0.02, 1), (0.04, 2)):
            clock.pause(seconds)
            stagetrace.note_tokens(count)
        clock.pause(1)
    assert ran.entry == {
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 4,
        "stagetrace.tokens.first_ms": 100.0,
        "stagetrace.tokens.gap.max_ms": 40.0,
        "stagetrace.tokens.gap.mean_ms": 20.0,
    }
    assert ran.judged is not None
    assert (ran.judged.word, ran.judged.fallback) == ("good", None)
    assert guard.failures == {}


def test_tokens_noted_inside_an_engine_that_counts_itself_are_not_counted_twice(engines: Any, clock: Clock) -> None:
    class Noting(engines.llama.Llama):  # type: ignore[misc]
        def tokenize(self, text: bytes) -> Any:
            stagetrace.note_tokens(100)
            return super().tokenize(text)

    with request(clock) as ran:
        Noting("/models/tiny.gguf", SCRIPT)("hello")
    assert ran.entry["gen_ai.usage.output_tokens"] == 3


def test_outside_a_request_nothing_is_noted(engines: Any, clock: Clock) -> None:
    assert len(list(llama(engines)("hello", stream=True))) == 4
    assert llama(engines)("hello")["usage"]["completion_tokens"] == 3
    assert clock.now
    assert guard.failures == {}


def test_methods_stay_what_they_are(engines: Any) -> None:
    own = engines.llama.Llama
    assert list(inspect.signature(own.create_completion).parameters) == ["self", "prompt", "max_tokens", "stream"]
    assert inspect.isgeneratorfunction(own.generate)
    assert inspect.isasyncgenfunction(engines.async_llm.AsyncLLM.generate)
    assert inspect.iscoroutinefunction(engines.engine.Engine.async_generate)
    assert inspect.isgenerator(llama(engines)("hello", stream=True))
    assert pickle.loads(pickle.dumps(llama(engines)))("hello")["usage"]["completion_tokens"] == 3  # noqa: S301


@pytest.mark.parametrize(
    ("rule", "judged"),
    [
        ("* within 10s first_token 100ms per_token 25ms", ("good", None)),
        (
            "* within 10s first_token 99ms per_token 24ms",
            ("breach", "first_token: 100 ms, 99 ms allowed; per_token: 25 ms, 24 ms allowed"),
        ),
        ("* within 100ms per_token 1ms", ("breach", "within: 160 ms, 100 ms allowed; per_token: 25 ms, 1 ms allowed")),
    ],
)
def test_objectives_are_judged_by_the_tokens(
    engines: Any, clock: Clock, rule: str, judged: tuple[str, str | None]
) -> None:
    with request(clock, rule) as ran:
        llama(engines)("hello")
    assert ran.judged is not None
    assert (ran.judged.word, ran.judged.missed and ran.judged.missed.text) == judged
    assert ran.judged.fallback is None
