"""Count the calls that recording makes for each kind of request, in a process of its own: `test_call_budget.py` reads.

Python calls of this package, calls into C that these make, and operations on context variables among the latter, in all
threads that serve. Of many requests the one at the lower quartile counts: some move a timer, or are learned from.

    STAGETRACE=1 python tests/e2e/count_calls.py [breaches | --list KIND]
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stagetrace

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
BREACHES = sys.argv[1:] == ["breaches"]
os.environ["STAGETRACE_SLA"] = f"* within {'1us' if BREACHES else '60s'}"
os.environ.setdefault("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS = str(Path(stagetrace.__file__).parent)
WARM_UP, COUNTED = 200, 41
LIMITS = {"DIVIDED_NS", "EVERY_NS", "RECENT_NS", "NEAR_NS", "SLOW"}
SHOWN = sys.argv[2] if sys.argv[1:2] == ["--list"] else None
PARENT = ("traceparent", f"00-{7:032x}-{7:016x}-01")
UNSAMPLED = ("traceparent", f"00-{7:032x}-{7:016x}-00")

_profiles: list[cProfile.Profile] = []


def follow(*_: Any) -> None:
    """Count the calls of this thread from now on, unless it serves nothing."""
    sys.setprofile(None)
    if not threading.current_thread().name.startswith("stagetrace"):
        _profiles.append(cProfile.Profile())
        _profiles[-1].enable()


def calls_of(ask: Callable[[], object]) -> Counter[tuple[str, str]]:
    """Return what one request calls: how often, by kind and name."""
    for profile in _profiles:
        profile.clear()
    ask()
    found: Counter[tuple[str, str]] = Counter()
    for profile in _profiles:
        for entry in profile.getstats():
            code = entry.code
            if isinstance(code, str) or not code.co_filename.startswith(OURS):
                continue
            name = f"{code.co_filename[len(OURS) + 1 :]}:{code.co_firstlineno} {code.co_name}"
            found["python", name] += entry.callcount
            for inner in entry.calls or ():
                if isinstance(inner.code, str):
                    found["c", inner.code] += inner.callcount
                    if "Context" in inner.code:
                        found["context", inner.code] += inner.callcount
    return found


def budget(kind: str, ask: Callable[[], object]) -> dict[str, int]:
    """Return the calls of one request of this kind."""
    for _ in range(WARM_UP):
        ask()
    each = [calls_of(ask) for _ in range(COUNTED)]
    one = sorted(each, key=lambda one: sum(number for (of, _), number in one.items() if of == "python"))[COUNTED // 4]
    if kind == SHOWN:
        for (of, name), number in sorted(one.items()):
            sys.stderr.write(f"{of:8}{number:4}  {name}\n")
    return {of: sum(number for (at, _), number in one.items() if at == of) for of in ("python", "c", "context")}


def model() -> Any:
    """Return a small model, fitted."""
    from sklearn.linear_model import LinearRegression

    return LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])


def asgi_app() -> Any:
    """Return the application."""
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app, fitted = FastAPI(), model()

    @app.get("/async")
    async def with_model() -> dict[str, float]:
        return {"y": float(fitted.predict([[1.0]])[0])}

    @app.get("/sync")
    def by_the_pool() -> dict[str, float]:
        return {"y": float(fitted.predict([[1.0]])[0])}

    @app.get("/none")
    async def without_model() -> dict[str, float]:
        return {"y": 1.0}

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        async def chunks() -> Any:
            for _ in range(100):
                yield b"x"

        return StreamingResponse(chunks())

    return app


def of_asgi() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each kind of request by ASGI."""
    from benchmarks.asgi import Exchange, scope_of

    class Open(Exchange):
        async def receive(self) -> Any:
            if self._sent:
                await loop.create_future()  # the client stays
            return await super().receive()

    app, loop = asgi_app(), asyncio.new_event_loop()
    ready = threading.Event()

    async def serve() -> None:
        """Be the task by which the loop runs: anyio keeps its threads for as long as that does."""
        follow()
        asked: asyncio.Queue[Any] = asyncio.Queue()
        sent: asyncio.Queue[Any] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
        running = asyncio.ensure_future(app(scope, asked.get, sent.put))
        await asked.put({"type": "lifespan.startup"})
        await sent.get()
        ready.set()
        await running

    threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True).start()
    ready.wait(20)

    def ask(path: str, *headers: tuple[str, str]) -> Callable[[], object]:
        def once() -> None:
            exchange = Open()
            scope = {**scope_of(path), "method": "GET"}
            scope["headers"] = [*scope["headers"], *((name.encode(), value.encode()) for name, value in headers)]
            asyncio.run_coroutine_threadsafe(app(scope, exchange.receive, exchange.send), loop).result(20)
            if exchange.status != 200 or not exchange.complete:
                raise SystemExit(f"{path}: {exchange.status}")

        return once

    if BREACHES:
        yield "breach", ask("/none")
        return
    yield "async", ask("/async")
    yield "pool", ask("/sync")
    yield "no model", ask("/none")
    yield "with a parent", ask("/async", PARENT)
    yield "sampled out", ask("/async", UNSAMPLED)
    yield "stream of 100", ask("/stream")


def of_wsgi() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each kind of request by WSGI."""
    from io import BytesIO

    from flask import Flask

    app, fitted = Flask("app"), model()

    @app.get("/predict")
    def predict() -> dict[str, float]:
        return {"y": float(fitted.predict([[1.0]])[0])}

    environ = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/predict",
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000",
        "HTTP_HOST": "bench:8000",
        "HTTP_USER_AGENT": "bench",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }

    def once() -> None:
        body = app({**environ, "wsgi.input": BytesIO(b"")}, lambda *_: len)
        for _ in body:
            pass
        if hasattr(body, "close"):
            body.close()

    follow()
    yield "flask", once


GRPC_CLIENT = """
import sys, grpc
call = grpc.insecure_channel(sys.argv[1]).unary_unary("/ml.Scorer/Score")
for _ in sys.stdin:
    call(b"x", timeout=20)
    print(flush=True)
"""


def of_grpc() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield each kind of request by gRPC."""
    import subprocess

    import grpc
    import grpc.aio

    fitted = model()

    def score(_request: bytes, _context: Any) -> bytes:
        return str(fitted.predict([[1.0]])[0]).encode()

    async def score_async(request: bytes, context: Any) -> bytes:
        return score(request, context)

    def asking(port: int) -> tuple[Any, Callable[[], object]]:
        client = subprocess.Popen(
            [sys.executable, "-c", GRPC_CLIENT, f"127.0.0.1:{port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "STAGETRACE": "0"},
        )

        def once() -> None:
            client.stdin.write(b"\n")  # type: ignore[union-attr]
            client.stdin.flush()  # type: ignore[union-attr]
            client.stdout.readline()  # type: ignore[union-attr]
            time.sleep(0.003)  # the request ends when the response is out

        return client, once

    threading.setprofile(follow)
    server = grpc.server(ThreadPoolExecutor(1))
    handlers = {"Score": grpc.unary_unary_rpc_method_handler(score)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ml.Scorer", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    client, once = asking(port)
    yield "grpc threads", once
    client.kill()
    server.stop(None)

    ports: list[int] = []
    ready = threading.Event()

    async def serve() -> None:
        follow()
        aio = grpc.aio.server()
        handlers = {"Score": grpc.unary_unary_rpc_method_handler(score_async)}
        aio.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ml.Scorer", handlers),))
        ports.append(aio.add_insecure_port("127.0.0.1:0"))
        await aio.start()
        ready.set()
        await aio.wait_for_termination()

    threading.Thread(target=asyncio.run, args=(serve(),), daemon=True).start()
    ready.wait(20)
    client, once = asking(ports[0])
    yield "grpc asyncio", once
    client.kill()


def stretch_time() -> None:
    """Let no section be long, no reading old, no request slow: counting slows it down, and the machine is busy."""
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("stagetrace."):
            vars(module).update(dict.fromkeys(LIMITS & vars(module).keys(), 10**15))


def main() -> None:
    """Print the budget of each kind as JSON."""
    threading.setprofile(follow)
    found = {}
    for kinds in (of_asgi,) if BREACHES else (of_asgi, of_wsgi, of_grpc):
        for kind, ask in kinds():
            stretch_time()
            found[kind] = budget(kind, ask)
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
