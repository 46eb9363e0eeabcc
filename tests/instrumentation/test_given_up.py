"""Streams of models' answers that somebody gives up: they are closed at once, as untraced."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from stagetrace.instrumentation.model_servers import litserve_worker, mlserver_model

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

    mlserver_model.patch_model(SimpleNamespace(MLModel=Base))  # type: ignore[arg-type]

    class Tokens(Base):
        predict_stream = MLModel.predict_stream

    assert Tokens.predict_stream is not MLModel.predict_stream
    return Tokens().predict_stream


def _of_litserve() -> Any:
    worker: Any = SimpleNamespace(begin=lambda: None)
    return litserve_worker._predicting(MLModel().predict_stream, worker)


@pytest.mark.parametrize("traced", [_of_mlserver, _of_litserve])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_stream_that_is_given_up_is_closed_at_once(traced: Any, pieces: int) -> None:
    async def run(predict_stream: Any) -> tuple[list[int], list[str]]:
        noted: list[str] = []
        stream = predict_stream(noted)
        taken = []
        async for piece in stream:
            taken.append(piece)
            if len(taken) == pieces:
                break
        await stream.aclose()
        return taken, list(noted)

    assert asyncio.run(run(traced())) == asyncio.run(run(MLModel().predict_stream))
