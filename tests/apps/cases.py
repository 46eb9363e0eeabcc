"""Serve calls of models by name: `GET /case/NAME` runs one and answers with what it returned."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from fastapi import FastAPI


def serve(calls: Mapping[str, Callable[[], Any]]) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, bool]:
        return {"ok": True}

    @app.get("/case/{name}")
    def case(name: str) -> Any:
        return np.asarray(calls[name]()).tolist()

    @app.get("/cases")
    def cases() -> list[str]:
        return list(calls)

    return app


def error_of(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # noqa: BLE001
        return [type(error).__name__, str(error)]
