"""Models of Keras, TensorFlow and LiteRT: `GET /case/NAME` runs one call and answers with what it returned."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_litert.interpreter import Interpreter
from cases import error_of, serve

FOLDER = Path(tempfile.mkdtemp())
keras.utils.set_random_seed(0)
tf_keras.utils.set_random_seed(0)


class Own(keras.Model):
    """A class of one's own, whose model lies within another's."""

    def __init__(self) -> None:
        super().__init__(name="own")
        self.inner = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)], name="inner")

    def call(self, rows: Any) -> Any:
        return self.inner(rows) * 2


class Module(tf.Module):
    """A model of TensorFlow's alone."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = tf.Variable(2.0)

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "rows")])
    def __call__(self, rows: Any) -> Any:
        return rows * self.weight

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "rows")])
    def score(self, rows: Any) -> Any:
        return tf.reduce_sum(rows, 1) * self.weight


rows = np.arange(12, dtype="float32").reshape(3, 4) / 10
tensor = tf.constant(rows)
flowers = keras.Sequential(
    [keras.Input((4,), name="rows"), keras.layers.Dense(3), keras.layers.Dense(2)], name="flowers"
)
two = [keras.Input((4,), name="left"), keras.Input((4,), name="right")]
both = keras.Model(two, keras.layers.Dense(2)(keras.layers.Concatenate()(two)), name="both")
own = Own()
normal = keras.layers.Normalization()
normal.adapt(rows)
old = tf_keras.Sequential([tf_keras.Input((4,)), tf_keras.layers.Dense(2)], name="old")

flowers.export(str(FOLDER / "flowers" / "7"), verbose=False)
served = tf.saved_model.load(str(FOLDER / "flowers" / "7"))
module = Module()
tf.saved_model.save(module, str(FOLDER / "plain"), signatures=module.score)
plain = tf.saved_model.load(FOLDER / "plain")
(FOLDER / "small.tflite").write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(FOLDER / "plain")).convert())


@tf.function
def mine(given: Any) -> Any:
    return flowers(given) + plain(given)[:, :2]


@tf.function
def preprocessed(given: Any) -> Any:
    return given / 2


def invoked(interpreter: Any) -> Any:
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], rows.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], rows)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


small = str(FOLDER / "small.tflite")
lite, edge = tf.lite.Interpreter(small), Interpreter(small)
content = tf.lite.Interpreter(model_content=Path(small).read_bytes())

CASES: dict[str, Callable[[], Any]] = {
    "call": lambda: flowers(tensor),
    "predict": lambda: flowers.predict(rows, verbose=0),
    "predict-on-batch": lambda: flowers.predict_on_batch(rows),
    "several-inputs": lambda: both.predict([rows, rows], verbose=0),
    "named-inputs": lambda: both({"left": tensor, "right": tensor}),
    "own": lambda: own(tensor),
    "own-predict": lambda: own.predict(rows, verbose=0),
    "compiled": lambda: [own.compile(jit_compile=True), own.predict(rows, verbose=0)][1],
    "old": lambda: old.predict(rows, verbose=0),
    "old-call": lambda: old(tensor),
    "layer-first": lambda: flowers(normal(tensor)),
    "raises": lambda: error_of(lambda: flowers(tf.ones((3, 5)))),
    "restored": lambda: plain(tensor),
    "restored-function": lambda: plain.score(rows=tensor),
    "served": lambda: served.serve(tensor),
    "signature": lambda: next(iter(plain.signatures["serving_default"](rows=tensor).values())),
    "restored-raises": lambda: error_of(lambda: plain(tf.ones((3, 5))))[0],
    "lite": lambda: invoked(lite),
    "lite-content": lambda: invoked(content),
    "lite-signature": lambda: next(iter(lite.get_signature_runner()(rows=rows).values())),
    "litert": lambda: invoked(edge),
    "layer": lambda: normal(tensor),
    "function": lambda: preprocessed(tensor),
    "models-in-a-function": lambda: mine(tensor),
}

app = serve(CASES)
