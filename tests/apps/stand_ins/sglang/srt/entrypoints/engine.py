"""The engine of a service's own."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput
from sglang.srt.managers.tokenizer_manager import TokenizerManager

if TYPE_CHECKING:
    from collections.abc import Iterator


class Engine:
    """It runs an event loop of its own in its synchronous methods."""

    def __init__(self, *, model_path: str, tokens: int = 4, enable_metrics: bool = False) -> None:
        self.tokenizer_manager = TokenizerManager(model_path, tokens, enable_metrics=enable_metrics)
        self.server_args = self.tokenizer_manager.server_args
        self.loop = asyncio.new_event_loop()
        # It holds the loop: as a part of a cycle, its sockets would be closed before the loop.
        weakref.finalize(self, self.loop.close)

    def generate(
        self, prompt: Any = None, sampling_params: Any = None, input_ids: Any = None, stream: bool = False
    ) -> Any:
        generator = self.tokenizer_manager.generate_request(GenerateReqInput(prompt, stream), None)
        if not stream:
            return self.loop.run_until_complete(anext(generator))

        def generator_wrapper() -> Iterator[Any]:
            while True:
                try:
                    chunk = self.loop.run_until_complete(anext(generator))
                    yield chunk
                except StopAsyncIteration:
                    break

        return generator_wrapper()

    async def async_generate(
        self, prompt: Any = None, sampling_params: Any = None, input_ids: Any = None, stream: bool = False
    ) -> Any:
        generator = self.tokenizer_manager.generate_request(GenerateReqInput(prompt, stream), None)
        if stream is True:
            return generator
        return await anext(generator)

    def encode(self, prompt: Any, dimensions: int | None = None) -> Any:
        generator = self.tokenizer_manager.generate_request(EmbeddingReqInput(prompt), None)
        return self.loop.run_until_complete(anext(generator))

    async def async_encode(self, prompt: Any, dimensions: int | None = None) -> Any:
        return await anext(self.tokenizer_manager.generate_request(EmbeddingReqInput(prompt), None))
