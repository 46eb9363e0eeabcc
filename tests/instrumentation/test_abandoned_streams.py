"""Streams of a model's responses that the server abandons: they are closed at once, as untraced."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace_contrib import litserve, mlserver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class MLModel:
    async def predict_stream(self: Any, noted: list[str]) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            noted.append("closed")


def _of_mlserver() -> Any:
    class Base:
        pass

    mlserver.patch_model(SimpleNamespace(MLModel=Base))  # type: ignore[arg-type]

    class Tokens(Base):
        predict_stream = MLModel.predict_stream

    assert Tokens.predict_stream is not MLModel.predict_stream
    return Tokens().predict_stream


def _of_litserve() -> Any:
    worker: Any = SimpleNamespace(inferring=nullcontext)
    return litserve._predicting(MLModel().predict_stream, worker)


@pytest.mark.parametrize("traced", [_of_mlserver, _of_litserve])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_an_abandoned_stream_is_closed_at_once(traced: Any, chunks: int) -> None:
    async def run(predict_stream: Any) -> tuple[list[int], list[str]]:
        noted: list[str] = []
        stream = predict_stream(noted)
        taken = []
        async for chunk in stream:
            taken.append(chunk)
            if len(taken) == chunks:
                break
        await stream.aclose()
        return taken, list(noted)

    assert asyncio.run(run(traced())) == asyncio.run(run(MLModel().predict_stream))
