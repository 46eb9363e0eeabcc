"""An application of Gradio's with functions that its queue runs: alone, as a generator, and in batches."""

import os
import time
from collections.abc import Iterator

import gradio as gr
import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

shape = ["rows", 1]
graph = helper.make_graph(
    [helper.make_node("Neg", ["x"], ["y"])],
    "negative",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
session = ort.InferenceSession(model.SerializeToString())


def predict(values: list[float]) -> list[float]:
    rows = np.array(values, np.float32).reshape(-1, 1)
    return session.run(["y"], {"x": rows})[0].ravel().tolist()


def negative(value: float) -> float:
    return predict([value])[0]


def slow(value: float) -> float:
    time.sleep(0.3)
    return negative(value)


def count(value: float) -> Iterator[float]:
    for one in range(int(value)):
        yield negative(one)


def fails(value: float) -> float:
    raise ValueError("no such value")


def batched(values: list[float]) -> list[list[float]]:
    time.sleep(0.2)  # so that the next batch has several
    return [predict(values)]


with gr.Blocks() as demo:
    given, result = gr.Number(), gr.Number()
    for function in (negative, slow, count, fails):
        gr.Button(function.__name__).click(function, given, result, api_name=function.__name__)
    gr.Button("batched").click(batched, given, result, api_name="batched", batch=True, max_batch_size=4)
demo.queue(default_concurrency_limit=1)
demo.launch(server_name="127.0.0.1", server_port=int(os.environ["PORT"]), prevent_thread_lock=False)
