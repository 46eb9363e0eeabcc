"""`Llama`: each prompt is answered by the tokens of a script, each after its pause."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from llama_cpp import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

pause = time.sleep  # of so many seconds; tests replace it


class Llama:
    """The methods that generate and embed."""

    def __init__(self, model_path: str, script: Sequence[tuple[float, int]] = (), *, fails_at: int | None = None):
        self.model_path = model_path
        self.script = script
        self.fails_at = fails_at
        self._model = SimpleNamespace(vocab="vocab")

    def tokenize(self, text: bytes) -> list[int]:
        return [1, *text]

    def generate(self, tokens: Sequence[int], top_k: int = 40) -> Generator[int, Sequence[int] | None, None]:
        """Generate tokens, without an end of its own."""
        for place, (seconds, token) in enumerate(self.script):
            pause(seconds)
            if place == self.fails_at:
                raise ValueError("llama_decode returned -1")
            yield token

    def _create_completion(self, prompt: str | list[int], max_tokens: int, *, stream: bool) -> Iterator[dict[str, Any]]:
        prompt_tokens = self.tokenize(prompt.encode()) if isinstance(prompt, str) else prompt
        completion_tokens: list[int] = []
        returned = 0
        reason = "length"
        for token in self.generate(prompt_tokens):
            if llama_cpp.llama_vocab_is_eog(self._model.vocab, token):
                reason = "stop"
                break
            completion_tokens.append(token)
            if token >= 128:  # the first byte of a character of two: held back
                continue
            if stream:
                text = bytes(completion_tokens[returned:]).decode("utf-8", "replace")
                returned = len(completion_tokens)
                yield {"choices": [{"text": text, "index": 0, "finish_reason": None}]}
            if len(completion_tokens) >= max_tokens:
                break
        if stream:
            yield {"choices": [{"text": "", "index": 0, "finish_reason": reason}]}
            return
        text = bytes(completion_tokens).decode("utf-8", "replace")
        counts = len(prompt_tokens), len(completion_tokens)
        yield {
            "choices": [{"text": text, "index": 0, "finish_reason": reason}],
            "usage": {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)},
        }

    def create_completion(self, prompt: str | list[int], max_tokens: int | None = 16, stream: bool = False) -> Any:
        completion = self._create_completion(prompt, 999 if max_tokens is None else max_tokens, stream=stream)
        return completion if stream else next(completion)

    def __call__(self, prompt: str, max_tokens: int | None = 16, stream: bool = False) -> Any:
        return self.create_completion(prompt=prompt, max_tokens=max_tokens, stream=stream)

    def create_chat_completion(
        self, messages: list[dict[str, str]], max_tokens: int | None = None, stream: bool = False
    ) -> Any:
        prompt = "".join(one["content"] for one in messages)
        completion: Any = self.create_completion(prompt=prompt, max_tokens=max_tokens, stream=stream)
        if stream:
            return ({"choices": [{"delta": {"content": one["choices"][0]["text"]}}]} for one in completion)
        return {"usage": completion["usage"], "choices": [{"message": {"content": completion["choices"][0]["text"]}}]}

    def embed(
        self, input: str | list[str], normalize: bool = False, truncate: bool = True, return_count: bool = False
    ) -> Any:
        texts = [input] if isinstance(input, str) else input
        pause(0.01)
        vectors = [[float(len(text))] for text in texts]
        found: Any = vectors[0] if isinstance(input, str) else vectors
        return (found, sum(len(text) + 1 for text in texts)) if return_count else found

    def create_embedding(self, input: str | list[str]) -> dict[str, Any]:
        found, count = self.embed(input, return_count=True)
        return {"data": found, "usage": {"prompt_tokens": count, "total_tokens": count}}
