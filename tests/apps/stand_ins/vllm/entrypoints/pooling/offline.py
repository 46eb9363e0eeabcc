"""Embeddings of batches."""

from __future__ import annotations

from typing import Any

from vllm.outputs import PoolingRequestOutput


class PoolingOfflineMixin:
    """What `LLM` inherits."""

    def encode(self, prompts: Any, pooling_params: Any = None, *, use_tqdm: bool = True) -> list[PoolingRequestOutput]:
        from vllm.entrypoints import llm

        llm.pause(llm.PREFILL)
        return [PoolingRequestOutput("0", [1.0], list(range(len(prompt)))) for prompt in prompts]

    def embed(self, prompts: Any, *, use_tqdm: bool = True) -> list[PoolingRequestOutput]:
        return self.encode(prompts, use_tqdm=use_tqdm)

    def classify(self, prompts: Any, *, use_tqdm: bool = True) -> list[PoolingRequestOutput]:
        return self.encode(prompts, use_tqdm=use_tqdm)
