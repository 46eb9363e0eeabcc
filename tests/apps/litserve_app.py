"""LitServe as people use it; LITSERVE says which APIs with how many workers, and how. Answers say what really happened."""

import os
import time
from typing import Any

import breaking
import litserve as ls
from computing import compute
from fastapi import HTTPException
from opentelemetry import trace
from sklearn.base import BaseEstimator

DECODE_S, INFER_S, ENCODE_S = 0.1, 0.2, 0.12


class Times:
    """What happened to one request, by the app's own clock."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked = asked
        self.truth: dict[str, Any] = {"worker": os.getpid()}

    @property
    def factor(self) -> float:
        return float(self.asked.get("factor", 1.0))

    def spend(self, stage: str, seconds: float) -> None:
        started = time.time_ns()
        time.sleep(seconds * self.factor)
        self.truth[stage] = [started, time.time_ns()]


class BreakableByPath:
    """ASGI middleware: `/break/NAME` and `/mend` of stagetrace, in the process that serves HTTP."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if path.startswith("/break/"):
            breaking.make_broken(path.removeprefix("/break/"))
        elif path == "/mend":
            breaking.mend()
        await self.app(scope, receive, send)


def misbehave(asked: dict[str, Any]) -> None:
    if "exit" in asked:
        time.sleep(asked["exit"])
        os._exit(3)
    if "compute" in asked:
        compute(asked["compute"])
    if "stall" in asked:
        time.sleep(asked["stall"])
    if asked.get("raise"):
        raise HTTPException(418, "as asked") if asked["raise"] == "http" else ValueError("as asked")
    if "break" in asked:
        breaking.make_broken(asked["break"])
    if "mend" in asked:
        breaking.mend()


class Guess(BaseEstimator):
    """A model of a person's own, in scikit-learn's manner: the quickest there is to load."""

    def predict(self, rows: list[list[float]]) -> list[int]:
        return [0 for _ in rows]


class Single(ls.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 -- named by LitServe
        self.model = Guess()

    def decode_request(self, request: dict[str, Any]) -> Times:
        times = Times(request)
        with trace.get_tracer("app").start_as_current_span("parse"):
            times.spend("decode", DECODE_S)
        return times

    def predict(self, times: Times) -> Times:
        misbehave(times.asked)
        started = time.time_ns()
        with trace.get_tracer("app").start_as_current_span("forward"):
            time.sleep(INFER_S * times.factor)
        self.model.predict([[5.1, 3.5, 1.4, 0.2]])
        times.truth["predict"] = [started, time.time_ns()]
        return times

    def encode_response(self, times: Times) -> dict[str, Any]:
        times.spend("encode", ENCODE_S)
        return times.truth


class Batched(Single):
    def predict(self, batch: list[Times]) -> list[Times]:
        for times in batch:
            misbehave(times.asked)
        started = time.time_ns()
        with trace.get_tracer("app").start_as_current_span("forward"):
            time.sleep(INFER_S * max(times.factor for times in batch))
        ended = time.time_ns()
        for times in batch:
            times.truth |= {"predict": [started, ended], "size": len(batch)}
        return batch


class Streaming(Single):
    def predict(self, times: Times) -> Any:
        misbehave(times.asked)
        started = time.time_ns()
        for _ in range(3):
            with trace.get_tracer("app").start_as_current_span("token"):
                time.sleep(INFER_S / 3 * times.factor)
            times.truth["predict"] = [started, time.time_ns()]
            yield times.truth

    def encode_response(self, answers: Any) -> Any:
        yield from answers


class Asynchronous(Single):
    async def decode_request(self, request: dict[str, Any]) -> Times:
        return Single.decode_request(self, request)

    async def predict(self, times: Times) -> Times:
        return Single.predict(self, times)

    async def encode_response(self, times: Times) -> dict[str, Any]:
        return Single.encode_response(self, times)


APIS = {
    "single": lambda: Single(api_path="/single"),
    "batched": lambda: Batched(max_batch_size=4, batch_timeout=0.1, api_path="/batched"),
    "streaming": lambda: Streaming(stream=True, api_path="/streaming"),
    "async": lambda: Asynchronous(enable_async=True, api_path="/async"),
}

if __name__ == "__main__":
    names, *options = os.environ["LITSERVE"].split()
    workers = {name: int(count) for name, count in (part.split(":") for part in names.split("+"))}
    server = ls.LitServer(
        [APIS[name]() for name in workers],
        accelerator="cpu",
        workers_per_device={f"/{name}": count for name, count in workers.items()},
        fast_queue="zmq" in options,
        restart_workers="restart" in options,
        timeout=float(os.environ.get("TIMEOUT", "30")),
        middlewares=[BreakableByPath],
    )
    if "untraced" in options:  # its workers, which are started next
        os.environ["STAGETRACE"] = "0"
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        api_server_worker_type="thread" if "threads" in options else "process",
        generate_client_file=False,
        log_level="warning",
    )
