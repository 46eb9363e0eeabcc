"""What the engine and the server both call."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sglang.srt.managers.io_struct import EmbeddingReqInput, GenerateReqInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pause = time.sleep
wall = time.time
QUEUED, PREFILL, TOKEN = 0.01, 0.02, 0.005  # seconds


class TokenizerManager:
    """`tokens`: how many to generate for each prompt."""

    def __init__(self, model_path: str, tokens: int, *, enable_metrics: bool) -> None:
        self.server_args = SimpleNamespace(model_path=model_path, served_model_name=None)
        self._tokens = tokens
        self._measures = enable_metrics

    async def generate_request(
        self, obj: GenerateReqInput | EmbeddingReqInput, request: Any = None
    ) -> AsyncIterator[Any]:
        received = wall()
        await asyncio.sleep(0)
        if isinstance(obj, EmbeddingReqInput):
            pause(PREFILL)
            texts = obj.text if isinstance(obj.text, list) else [obj.text]
            items = [{"embedding": [1.0], "meta_info": {"id": t, "prompt_tokens": len(t)}} for t in texts]
            yield items if isinstance(obj.text, list) else items[0]
            return
        pause(QUEUED)
        begun = wall()
        if obj.text == "fail":
            raise ValueError("the request was aborted")
        prompts = obj.text if isinstance(obj.text, list) else [obj.text]
        filled = 0.0
        for count in range(1, self._tokens + 1):
            pause(PREFILL if count == 1 else TOKEN)
            filled = filled or wall()
            is_last = count == self._tokens
            known = {"finish_reason": {"type": "length"} if is_last else None, "completion_tokens": count}
            if self._measures:
                known |= {"queue_time": QUEUED, "forward_entry_time": begun, "prefill_finished_time": filled}
            if self._measures and is_last:
                known |= {"request_received_ts": received, "first_token_latency": filled - received}
                known["request_finished_ts"] = wall()
            items = [
                {"text": "x" * count, "meta_info": {"id": one, "prompt_tokens": len(one), "cached_tokens": 0, **known}}
                for one in prompts
            ]
            if obj.stream:
                for item in items:
                    yield item
            elif is_last:
                yield items if isinstance(obj.text, list) else items[0]
