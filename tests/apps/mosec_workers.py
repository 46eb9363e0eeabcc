"""Workers of mosec's: a request goes through one that prepares, and one with a model that takes batches."""

import time

import numpy as np
import onnxruntime as ort
from mosec import Server, ValidationError, Worker
from onnx import TensorProto, helper

shape = ["rows", 1]
graph = helper.make_graph(
    [helper.make_node("Neg", ["x"], ["y"])],
    "negative",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
)


class Prepare(Worker):
    def forward(self, data: dict[str, float]) -> float:
        if data["value"] > 100:
            raise ValidationError("too large")
        return data["value"]


class Model(Worker):
    def __init__(self) -> None:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        self.session = ort.InferenceSession(model.SerializeToString())

    def forward(self, data: list[float]) -> list[float]:
        time.sleep(0.2)  # so that the next batch has several
        rows = np.array(data, np.float32).reshape(-1, 1)
        return [float(one) for one in self.session.run(["y"], {"x": rows})[0].ravel()]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Prepare)
    server.append_worker(Model, max_batch_size=4, max_wait_time=50)
    server.run()
