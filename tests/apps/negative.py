"""The smallest model of onnxruntime's: it negates rows of four numbers."""

import base64

import numpy as np
import onnxruntime
from fastapi import FastAPI

# onnx.helper.make_model of one node, Neg.
MODEL = "CAgSADo9CgsKAXgSAXkiA05lZxIIbmVnYXRpdmVaEQoBeBIMCgoIARIGCgAKAggEYhEKAXkSDAoKCAESBgoACgIIBEIECgAQDQ=="

app = FastAPI()
session = onnxruntime.InferenceSession(base64.b64decode(MODEL))


@app.get("/health")
async def health() -> dict[str, bool]:
    return {"ok": True}


@app.get("/negative")
def negative() -> list[list[float]]:
    rows = np.ones((5, 4), np.float32)
    negated: list[list[float]] = session.run(["y"], {"x": rows})[0].tolist()
    return negated
