"""Serve the model over gRPC. Its fault: it does not limit the number of items to rank at once."""

from __future__ import annotations

import json
import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor
from operator import mul
from typing import Any

import grpc
from sklearn.base import BaseEstimator

draw = random.Random(7)
ITEMS = [[draw.random() for _ in range(8)] for _ in range(200_000)]


class Ranker(BaseEstimator):  # type: ignore[misc]
    """Score each item by the best match with one of a user's eight tastes."""

    def predict(self, rows: list[list[float]], features: list[float]) -> list[float]:
        tastes = [features[turn:] + features[:turn] for turn in range(8)]
        return [max(sum(map(mul, row, taste)) for taste in tastes) for row in rows]


ranker = Ranker()


def score(asked: Any, _: grpc.ServicerContext) -> dict[str, int]:
    """Return the best of the first `items` items for the features of a user."""
    scores = ranker.predict(ITEMS[: asked["items"]], asked["features"])
    return {"best": scores.index(max(scores))}


def encoded(message: Any) -> bytes:
    return json.dumps(message).encode()


methods = {"Score": grpc.unary_unary_rpc_method_handler(score, json.loads, encoded)}
server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Scorer", methods),))
server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
signal.signal(signal.SIGTERM, lambda *_: server.stop(5))
server.start()
server.wait_for_termination()
