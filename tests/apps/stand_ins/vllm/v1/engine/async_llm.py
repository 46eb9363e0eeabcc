"""The engine that serves requests."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from vllm.entrypoints import llm
from vllm.outputs import (
    CompletionOutput,
    PoolingRequestOutput,
    RequestOutput,
    RequestOutputKind,
    RequestStateStats,
    SamplingParams,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class AsyncLLM:
    """`tokens`: how many to generate for each sequence. `aborted`: the requests that were left half way."""

    def __init__(self, model: str, tokens: int = 4, log_stats: bool = True) -> None:
        self.model_config = SimpleNamespace(model=model)
        self._tokens = tokens
        self._measures = log_stats
        self.aborted: list[str] = []

    async def generate(
        self, prompt: Any, sampling_params: SamplingParams, request_id: str, *, trace_headers: Any = None
    ) -> AsyncGenerator[RequestOutput, None]:
        try:
            async for output in self._outputs(prompt, sampling_params, request_id):
                yield output
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted.append(request_id)
            raise

    async def _outputs(self, prompt: str, params: SamplingParams, name: str) -> AsyncGenerator[RequestOutput, None]:
        stats = RequestStateStats(queued_ts=llm.monotonic())
        await asyncio.sleep(0)
        llm.pause(llm.QUEUED)
        stats.scheduled_ts = llm.monotonic()
        if prompt == "fail":
            raise RuntimeError("EngineCore died")
        for count in range(1, self._tokens + 1):
            await asyncio.sleep(0)
            llm.pause(llm.PREFILL if count == 1 else llm.TOKEN)
            stats.last_token_ts = llm.monotonic()
            stats.first_token_ts = stats.first_token_ts or stats.last_token_ts
            stats.num_generation_tokens = count
            is_last = count == self._tokens
            if params.output_kind is RequestOutputKind.FINAL_ONLY and not is_last:
                continue
            fresh = [count - 1] if params.output_kind is RequestOutputKind.DELTA else list(range(count))
            sequences = [CompletionOutput(one, "x", fresh) for one in range(params.n)]
            measured = stats if self._measures else None
            yield RequestOutput(name, list(range(len(prompt))), sequences, is_last, measured, 0)

    async def encode(
        self, prompt: str, pooling_params: Any, request_id: str
    ) -> AsyncGenerator[PoolingRequestOutput, None]:
        await asyncio.sleep(0)
        llm.pause(llm.PREFILL)
        yield PoolingRequestOutput(request_id, [1.0], list(range(len(prompt))))
