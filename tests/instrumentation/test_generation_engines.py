"""vLLM and SGLang, by stand-ins: each output is counted, what the engines measure is taken; and faults of ours."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING, Any

import pytest

from instrumentation.generative import Clock, fresh, llama, request, stand_ins
from stagetrace import guard
from stagetrace.instrumentation.models import marked
from stagetrace.request.generation import active

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def engines() -> Iterator[Any]:
    with stand_ins() as found:
        yield found


@pytest.fixture
def clock(engines: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return fresh(engines, monkeypatch)


def sampled(engines: Any, kind: str = "CUMULATIVE", n: int = 1) -> Any:
    return engines.outputs.SamplingParams(n, engines.outputs.RequestOutputKind[kind])


async def drawn(steps: Any, count: int | None = None) -> int:
    """Return how many outputs came; with `count`, stop after so many."""
    found = 0
    async for _ in steps:
        found += 1
        if found == count:
            await steps.aclose()
            break
    return found


PHASES = [("queue", 0.0, 10.0), ("prefill", 10.0, 30.0)]
LATENCIES = {
    "gen_ai.latency.time_in_queue": 0.01,
    "gen_ai.latency.time_in_model_prefill": 0.02,
    "gen_ai.latency.time_in_model_decode": 0.015,
}


def test_a_batch_of_vllm_takes_over_what_the_engine_measures(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        engines.llm.LLM("org/model", disable_log_stats=False).generate("hello")
    inference = {
        "ml.model.name": "org/model",
        "ml.framework": "vllm",
        "ml.input.size": 5,
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "org/model",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 1,
        "gen_ai.usage.output_tokens": 4,
        "stagetrace.tokens.first_ms": 30.0,
        "stagetrace.tokens.gap.mean_ms": 5.0,
        "stagetrace.tokens.per_second": pytest.approx(4 / 0.045),
        **LATENCIES,
    }
    assert [(stage, took) for stage, took, _ in ran.stages] == [("inference", 45.0)]
    assert ran.inferences == [pytest.approx(inference)]
    assert ran.entry == pytest.approx(inference)
    assert ran.details == [*PHASES, ("decode", 30.0, 45.0)]
    assert guard.failures == {}


def test_without_its_measures_only_the_tokens_of_vllm_are_known(engines: Any, clock: Clock) -> None:
    with request(clock, "* within 10s first_token 1ms per_token 1ms") as ran:
        engines.llm.LLM("org/model").chat([[{"role": "user", "content": "hi"}]] * 3)
    assert (ran.entry["gen_ai.operation.name"], ran.entry["ml.batch.size"]) == ("chat", 3)
    assert (ran.entry["gen_ai.usage.input_tokens"], ran.entry["gen_ai.usage.output_tokens"]) == (6, 12)
    assert "stagetrace.tokens.first_ms" not in ran.entry
    assert ran.details == []
    assert ran.judged is not None
    assert ran.judged.fallback == "first_token not judged, per_token not judged: tokens not known"


@pytest.mark.parametrize("kind", ["CUMULATIVE", "DELTA", "FINAL_ONLY"])
@pytest.mark.parametrize("n", [1, 2])
def test_the_outputs_of_vllm_are_counted_whatever_they_hold(engines: Any, clock: Clock, kind: str, n: int) -> None:
    with request(clock, "* within 10s first_token 30ms per_token 5ms") as ran:
        steps = engines.async_llm.AsyncLLM("org/model").generate("hello", sampled(engines, kind, n), "1")
        assert asyncio.run(drawn(steps)) == (1 if kind == "FINAL_ONLY" else 4)
    assert ran.entry["gen_ai.usage.output_tokens"] == 4 * n
    assert ran.entry["gen_ai.usage.input_tokens"] == 5
    is_stream = kind != "FINAL_ONLY"
    assert ran.entry.get("gen_ai.response.time_to_first_chunk") == (0.03 if is_stream else None)
    assert ran.entry.get("gen_ai.request.stream") is (True if is_stream else None)
    assert guard.failures == {}
    if kind == "FINAL_ONLY" and n == 2:
        assert "stagetrace.tokens.first_ms" not in ran.entry  # the engine reports one of the two sequences
        return
    assert ran.entry["stagetrace.tokens.first_ms"] == 30.0
    assert ran.entry["stagetrace.tokens.gap.mean_ms"] == pytest.approx(5.0)
    assert ran.judged is not None
    assert (ran.judged.word, ran.judged.fallback) == ("good", None)
    if kind != "FINAL_ONLY":
        assert {name: ran.entry[name] for name in LATENCIES} == pytest.approx(LATENCIES)
        assert ran.details == PHASES


def test_a_request_of_vllm_that_is_given_up_is_aborted_as_before(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        engine = engines.async_llm.AsyncLLM("org/model")
        asyncio.run(drawn(engine.generate("hello", sampled(engines), "1"), count=2))
    assert engine.aborted == ["1"]
    assert (ran.entry["gen_ai.usage.output_tokens"], ran.entry["stagetrace.tokens.incomplete"]) == (2, True)


def test_a_request_of_vllm_that_is_cancelled_is_incomplete(engines: Any, clock: Clock) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(drawn(engine.generate("hello", sampled(engines), "1")))
        for _ in range(4):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    engine = engines.async_llm.AsyncLLM("org/model")
    with request(clock) as ran:
        asyncio.run(cancelled())
    assert ran.entry["stagetrace.tokens.incomplete"] is True
    assert engine.aborted == ["1"]


def test_errors_of_vllm_pass(engines: Any, clock: Clock) -> None:
    with request(clock) as ran, pytest.raises(RuntimeError, match="EngineCore died"):
        asyncio.run(drawn(engines.async_llm.AsyncLLM("org/model").generate("fail", sampled(engines), "1")))
    assert ran.inferences[0]["stagetrace.tokens.error"] == "RuntimeError"
    with request(clock) as ran, pytest.raises(RuntimeError, match="EngineCore died"):
        engines.llm.LLM("org/model").generate("fail")
    assert ran.inferences[0]["stagetrace.tokens.error"] == "RuntimeError"


def test_embeddings_of_vllm_are_counted_once(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        engines.llm.LLM("org/model").embed(["hello", "hi"])
    assert len(ran.inferences) == 1
    assert (ran.entry["gen_ai.operation.name"], ran.entry["gen_ai.usage.input_tokens"]) == ("embeddings", 7)
    with request(clock) as ran:
        engines.llm.LLM("org/model").classify(["hello", "hi"])
    assert (ran.entry["ml.batch.size"], "gen_ai.operation.name" in ran.entry) == (2, False)
    with request(clock) as ran:
        asyncio.run(drawn(engines.async_llm.AsyncLLM("org/model").encode("hello", None, "1")))
    assert ran.entry["gen_ai.usage.input_tokens"] == 5
    assert "gen_ai.response.time_to_first_chunk" not in ran.entry


# SGLang


def sglang(engines: Any, *, measures: bool = True) -> Any:
    return engines.engine.Engine(model_path="/models/model", enable_metrics=measures)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("measures", [False, True])
@pytest.mark.parametrize("way", ["engine", "async", "server"])
def test_the_requests_of_sglang_are_counted(
    engines: Any, clock: Clock, way: str, *, stream: bool, measures: bool
) -> None:
    """Whether the service has the engine, or is SGLang's own server."""
    io_struct = importlib.import_module("sglang.srt.managers.io_struct")
    engine = sglang(engines, measures=measures)

    async def awaited() -> None:
        found = await engine.async_generate("hello", stream=stream)
        if stream:
            await drawn(found)

    async def served() -> None:
        steps = engine.tokenizer_manager.generate_request(io_struct.GenerateReqInput("hello", stream))
        await (drawn(steps) if stream else anext(steps))

    with request(clock, "* within 10s first_token 30ms per_token 5ms") as ran:
        if way == "engine":
            found = engine.generate("hello", stream=stream)
            list(found)
        else:
            asyncio.run(awaited() if way == "async" else served())
    assert guard.failures == {}
    assert ran.record.generation is not None
    assert len(ran.record.generation.calls) == 1
    assert (ran.entry["gen_ai.provider.name"], ran.entry["gen_ai.request.model"]) == ("sglang", "model")
    assert (ran.entry["gen_ai.usage.input_tokens"], ran.entry["gen_ai.usage.output_tokens"]) == (5, 4)
    assert ran.entry.get("gen_ai.request.stream", False) is stream
    assert "stagetrace.tokens.incomplete" not in ran.entry
    assert ("gen_ai.response.time_to_first_chunk" in ran.entry) is stream
    if stream or measures:
        assert ran.entry["stagetrace.tokens.first_ms"] == pytest.approx(30.0, abs=0.01)
        assert ran.entry["stagetrace.tokens.gap.mean_ms"] == pytest.approx(5.0, abs=0.01)
    else:
        assert "stagetrace.tokens.first_ms" not in ran.entry
    phases = [name for name, _, _ in ran.details]
    assert phases == ([] if not measures else ["queue", "prefill"] if stream else ["queue", "prefill", "decode"])
    if measures:
        assert ran.entry["gen_ai.latency.time_in_queue"] == pytest.approx(0.01, abs=1e-5)
        assert ran.entry["gen_ai.latency.time_in_model_prefill"] == pytest.approx(0.02, abs=1e-5)


def test_batches_and_embeddings_of_sglang(engines: Any, clock: Clock) -> None:
    with request(clock) as ran:
        sglang(engines).generate(["hello", "hi"])
    assert (ran.entry["ml.batch.size"], ran.entry["gen_ai.usage.output_tokens"]) == (2, 8)
    with request(clock) as ran:
        list(sglang(engines).generate(["hello", "hi"], stream=True))
    assert (ran.entry["gen_ai.usage.input_tokens"], ran.entry["gen_ai.usage.output_tokens"]) == (7, 8)
    with request(clock) as ran:
        sglang(engines).encode(["hello", "hi"])
        clock.pause(0.001)
        asyncio.run(sglang(engines).async_encode("hello"))
    assert [one["gen_ai.usage.input_tokens"] for one in ran.inferences] == [7, 5]
    with request(clock) as ran, pytest.raises(ValueError, match="aborted"):
        sglang(engines).generate("fail")
    assert ran.inferences[0]["stagetrace.tokens.error"] == "ValueError"
    assert guard.failures == {}


FAULTS = {
    "models.base.Library.describe": ("stagetrace.instrumentation.models.base", "description"),
    "begin": ("stagetrace.instrumentation.models.generation", "attributes_of_call"),
    "reader": ("stagetrace.request.generation", "_token_attributes"),
    "tokens": ("stagetrace.request.generation", "Call.add"),
    "step": ("stagetrace.instrumentation.models.generation", "INFERENCE"),
    "detail": ("stagetrace.instrumentation.models.generation", "record_detail"),
}
CALLS: dict[str, Any] = {
    "completion": lambda engines: llama(engines)("hello"),
    "stream": lambda engines: list(llama(engines)("hello", stream=True)),
    "vllm": lambda engines: [one.outputs for one in engines.llm.LLM("m", disable_log_stats=False).generate("hello")],
    "vllm-stream": lambda engines: asyncio.run(
        drawn(engines.async_llm.AsyncLLM("m").generate("hello", sampled(engines), "1"))
    ),
    "sglang": lambda engines: list(sglang(engines).generate("hello", stream=True)),
}


def broken(*_: Any, **__: Any) -> None:
    raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_fault_of_ours_harms_no_call(
    engines: Any, clock: Clock, monkeypatch: pytest.MonkeyPatch, fault: str, call: str
) -> None:
    expected = CALLS[call](engines)
    module, name = FAULTS[fault]
    owner: Any = importlib.import_module(module)
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
    monkeypatch.setattr(owner, name.rpartition(".")[2], "nothing" if name == "INFERENCE" else broken)
    with request(clock):
        found = CALLS[call](engines)
    if call.startswith("sglang"):
        expected, found = ([one["text"] for one in items] for items in (expected, found))
    assert found == expected
    assert not marked.inside.get()
    assert active.get() is None
