"""Runtimes as people write them for MLServer. Their answers say what really happened, by the app's own clock."""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import breaking
import numpy as np
from computing import compute
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec, decode_args
from mlserver.types import InferenceRequest, InferenceResponse, RequestOutput
from opentelemetry import trace
from sklearn.base import BaseEstimator

DECODE_S, INFER_S, ENCODE_S = 0.1, 0.2, 0.12
STALL, STALL_S = 5, 0.6  # and this one blocks the thread
COMPUTE, COMPUTE_S = 6, 0.4
OUTLAST, OUTLAST_S = 4, 1  # this order is to take so much longer than a client has patience for


class Asked(NumpyCodec):
    """Rows of a flower's measures, of which the first may be an order: how long to take, or what to do wrong."""

    @classmethod
    def decode_input(cls, request_input: Any) -> Any:
        rows = NumpyCodec.decode_input(request_input)
        time.sleep(DECODE_S * rows[0][0])
        return rows


class Told(StringCodec):
    """The truth, once for each row."""

    @classmethod
    def encode_output(cls, name: str, payload: Any, **kwargs: Any) -> Any:
        truth, rows = payload
        started = time.time_ns()
        time.sleep(ENCODE_S * rows[0][0])
        truth["encode"] = [started, time.time_ns()]
        return StringCodec.encode_output(name, [json.dumps(truth)] * len(rows), **kwargs)


def misbehave(order: int) -> None:
    if order == 1:
        raise ValueError("as asked")
    if order == 2:
        os._exit(3)
    if order == 3:
        breaking.mend()
    if order == COMPUTE:
        compute(COMPUTE_S)
    if order == STALL:
        time.sleep(STALL_S)
    if order >= 10:
        breaking.make_broken(os.environ["PARTS"].split()[order - 10])


class Guess(BaseEstimator):
    """A model of a person's own, in scikit-learn's manner: the quickest there is to load."""

    def predict(self, rows: Any) -> Any:
        return rows[:, 0]


class Flowers(MLModel):
    """Decodes by MLModel's own method, asks scikit-learn, encodes by MLModel's own method.

    A row is: the factor of all times, and what to do besides.
    """

    async def load(self) -> bool:
        self.model = Guess()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        started = time.time_ns()
        rows = self.decode(payload.inputs[0], default_codec=Asked)
        truth: dict[str, Any] = {"worker": os.getpid(), "decode": [started, time.time_ns()], "size": len(rows)}
        started = time.time_ns()
        misbehave(int(rows[:, 1].max()))
        with trace.get_tracer("app").start_as_current_span("forward"):
            await asyncio.sleep(INFER_S * rows[0][0] + OUTLAST_S * (rows[0][1] == OUTLAST))
        self.model.predict(np.ones((len(rows), 4)))
        truth["predict"] = [started, time.time_ns()]
        output = self.encode((truth, rows), RequestOutput(name="truth"), default_codec=Told)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])


class Annotated(MLModel):
    """Lets MLServer decode and encode by the annotations."""

    @decode_args
    async def predict(self, rows: np.ndarray) -> np.ndarray:
        started = time.time_ns()
        await asyncio.sleep(INFER_S)
        return np.array([[started, time.time_ns()]] * len(rows))


class Tokens(MLModel):
    """Answers one request with several answers, each with the time since the first began."""

    async def predict_stream(self, payloads: AsyncIterator[InferenceRequest]) -> AsyncIterator[InferenceResponse]:
        started = time.time_ns()
        async for _ in payloads:
            for _ in range(3):
                with trace.get_tracer("app").start_as_current_span("token"):
                    await asyncio.sleep(INFER_S / 3)
                output = NumpyCodec.encode_output("times", np.array([[started, time.time_ns()]]))
                yield InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
