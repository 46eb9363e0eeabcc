"""The engine for batches."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

from vllm.entrypoints.pooling.offline import PoolingOfflineMixin
from vllm.outputs import CompletionOutput, RequestOutput, RequestStateStats

pause = time.sleep
monotonic = time.monotonic
QUEUED, PREFILL, TOKEN = 0.01, 0.02, 0.005  # seconds


class LLM(PoolingOfflineMixin):
    """`tokens`: how many to generate for each prompt."""

    def __init__(self, model: str, tokens: int = 4, disable_log_stats: bool = True) -> None:
        self.model_config = SimpleNamespace(model=model)
        self._tokens = tokens
        self._measures = not disable_log_stats

    def generate(
        self, prompts: Any, sampling_params: Any = None, *, use_tqdm: bool = True, lora_request: Any = None
    ) -> list[RequestOutput]:
        if prompts == "fail":
            pause(QUEUED)
            raise RuntimeError("EngineCore died")
        return self._run(prompts if isinstance(prompts, list) else [prompts], getattr(sampling_params, "n", 1))

    def chat(self, messages: Any, sampling_params: Any = None, use_tqdm: bool = True) -> list[RequestOutput]:
        conversations = messages if isinstance(messages[0], list) else [messages]
        return self._run(["".join(one["content"] for one in chat) for chat in conversations], 1)

    def _run(self, prompts: list[str], count: int) -> list[RequestOutput]:
        stats = RequestStateStats(self._tokens, queued_ts=monotonic())
        pause(QUEUED)
        stats.scheduled_ts = monotonic()
        pause(PREFILL)
        stats.first_token_ts = monotonic()
        pause(TOKEN * (self._tokens - 1))
        stats.last_token_ts = monotonic()
        return [
            RequestOutput(
                str(place),
                list(range(len(prompt))),
                [CompletionOutput(one, "x", list(range(self._tokens)), "length") for one in range(count)],
                finished=True,
                metrics=stats if self._measures else None,
                num_cached_tokens=1,
            )
            for place, prompt in enumerate(prompts)
        ]
