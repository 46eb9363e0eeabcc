# ruff: noqa: ARG002
"""Services whose requests are full of what must not leave the process: each text `canary-*` is in one place.

`canaries.py asgi`: FastAPI under uvicorn, and gRPC at GRPC_PORT; `canaries.py wsgi`: Flask under waitress; at PORT.
"""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flask
import grpc
import httpx
import uvicorn
import waitress
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from grpc_parts import dump, load
from opentelemetry import trace

PORT = int(os.environ["PORT"])
MODEL = (
    "http://canary-call-user_:canary-call-password_@127.0.0.1:{}/v1/{}?api_key=canary-call-secret_&q=canary-call-query_"
)

app = FastAPI()
client = httpx.Client()


class OddError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise TypeError("canary-str_")


def fail(text: str) -> None:
    """Raise an exception whose message has data and a credential, as has that of its cause."""
    try:
        open_database("canary-local_")
    except OSError as error:
        raise ValueError(f"{text} canary-message_ Bearer canary-message-secret_") from error


def open_database(password: str) -> None:
    raise OSError(f"https://bob:{password}canary-cause-secret_@db/?token=canary-cause-token_ canary-cause_")


@app.get("/health")
def health() -> bool:
    return True


@app.post("/v1/chat/completions")
def complete() -> dict[str, Any]:
    message = {"role": "assistant", "content": "canary-completion_"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "1", "model": "m", "choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


@app.post("/items/{item}")
async def item(item: str, request: Request, tasks: BackgroundTasks) -> str:
    await request.body()
    tasks.add_task(fail, "canary-background_")
    return "canary-response_"


@app.get("/call")
def call() -> int:
    messages = [{"role": "user", "content": "canary-prompt_"}]
    headers = {"authorization": "Bearer canary-call-header_", "cookie": "a=canary-call-cookie_"}
    body = {"model": "m", "messages": messages}
    return client.post(MODEL.format(PORT, "chat/completions"), json=body, headers=headers).status_code


@app.get("/call-fails")
def call_fails() -> int:
    return client.get(MODEL.format(1, "canary-call-path_")).status_code


@app.get("/raise")
def raise_() -> None:
    fail("canary-handler_")


@app.get("/odd")
def odd() -> None:
    raise OddError


@app.get("/own-span")
def own_span() -> None:
    with trace.get_tracer("own").start_as_current_span("work"):
        raise ValueError("canary-own-span_")


@app.websocket("/talk")
async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text(await socket.receive_text())
    fail("canary-websocket-handler_")


wsgi = flask.Flask("canaries")


@wsgi.get("/health")
def is_healthy() -> str:
    return "ok"


@wsgi.post("/items/<item>")
def posted(item: str) -> str:
    return str(len(flask.request.get_data()))


@wsgi.get("/raise")
def raised() -> str:
    fail("canary-handler_")
    return ""


class Rpcs(grpc.GenericRpcHandler):
    """The methods of a gRPC service."""

    def service(self, call: Any) -> Any:
        kinds = {"Abort": self.abort, "Raise": self.raise_}
        return grpc.unary_unary_rpc_method_handler(kinds[call.method.rpartition("/")[2]], load, dump)

    def abort(self, request: Any, context: Any) -> Any:
        context.set_trailing_metadata((("kept", "canary-trailing_"),))
        context.abort(grpc.StatusCode.INTERNAL, "canary-details_ password=canary-details-secret_")

    def raise_(self, request: Any, context: Any) -> Any:
        fail("canary-rpc-handler_")


def serve_grpc() -> Any:
    server = grpc.server(ThreadPoolExecutor(2), handlers=(Rpcs(),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['GRPC_PORT']}")
    server.start()
    return server


if __name__ == "__main__":
    if sys.argv[1] == "wsgi":
        waitress.serve(wsgi, host="127.0.0.1", port=PORT)
    else:
        rpcs = serve_grpc()
        uvicorn.run(app, port=PORT, log_level="warning")
        rpcs.stop(0).wait()
