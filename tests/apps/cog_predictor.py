"""Predictors of cog's, of each kind."""

import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import onnxruntime as ort
from cog import BaseRunner, Input
from onnx import TensorProto, helper

shape = ["rows", 1]
graph = helper.make_graph(
    [helper.make_node("Neg", ["x"], ["y"])],
    "negative",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
)


class Base(BaseRunner):
    def setup(self) -> None:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        self.session = ort.InferenceSession(model.SerializeToString())

    def negative(self, value: float) -> float:
        return float(self.session.run(["y"], {"x": np.array([[value]], np.float32)})[0][0, 0])


class Plain(Base):
    def run(self, value: float = Input(default=7.0), wait: float = 0.0) -> float:
        if value > 100:
            raise ValueError("too large")
        time.sleep(wait)
        return self.negative(value)


class Awaited(Base):
    async def run(self, value: float = Input(default=7.0)) -> float:
        return self.negative(value)


class Generated(Base):
    def run(self, value: float = Input(default=7.0)) -> Iterator[str]:
        for one in range(3):
            yield str(self.negative(value + one))


class Streamed(Base):
    async def run(self, value: float = Input(default=7.0)) -> AsyncIterator[str]:
        for one in range(3):
            yield str(self.negative(value + one))
