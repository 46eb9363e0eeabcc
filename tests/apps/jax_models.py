"""Functions of JAX, and models of Keras on it: `GET /case/NAME` runs one call."""

import os
from collections.abc import Callable
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import jax.numpy as jnp
import keras
import numpy as np
from cases import error_of, serve

import stagetrace

keras.utils.set_random_seed(0)
rows = np.arange(12, dtype="float32").reshape(3, 4) / 10
weights = jnp.ones((4, 2)) / 3
flowers = keras.Sequential(
    [keras.Input((4,), name="rows"), keras.layers.Dense(3), keras.layers.Dense(2)], name="flowers"
)


def dense(data: Any) -> Any:
    return jnp.tanh(data @ weights)


jitted = jax.jit(dense)
instrumented = stagetrace.instrument(jitted, model="dense", framework="jax")


@stagetrace.instrument(model="dense", framework="jax")
def ready(data: Any) -> Any:
    """Wait for the result: a jitted function returns when its work is queued."""
    return jax.block_until_ready(jitted(data))


CASES: dict[str, Callable[[], Any]] = {
    "jitted": lambda: jitted(rows),
    "instrumented": lambda: instrumented(rows),
    "instrumented-first": lambda: stagetrace.instrument(jax.jit(dense), model="dense", framework="jax")(rows),
    "ready": lambda: ready(rows),
    "raises": lambda: error_of(lambda: instrumented(np.ones((3, 5), "float32")))[0],
    "keras-call": lambda: flowers(rows),
    "keras-predict": lambda: flowers.predict(rows, verbose=0),
}

app = serve(CASES)
