"""A script that serves in a thread, `python in_a_thread.py SERVER WAIT`, while its main thread waits and nobody handles SIGTERM."""

import hashlib
import os
import sys
import threading
import time
from typing import Any


def plain(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("content-type", "text/plain")])
    return [b"plain"]


def serve_uvicorn(port: int) -> Any:
    import uvicorn
    from ml import app

    return uvicorn.Server(uvicorn.Config(app, port=port)).run


def serve_wsgiref(port: int) -> Any:
    from wsgiref.simple_server import make_server

    return make_server("127.0.0.1", port, plain).serve_forever


def serve_one_by_one(port: int) -> Any:
    from wsgiref.simple_server import make_server

    server = make_server("127.0.0.1", port, plain)

    def serve() -> None:
        while True:
            server.handle_request()

    return serve


def serve_grpc_beside_wsgiref(port: int) -> Any:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    server = grpc.server(ThreadPoolExecutor(1))
    server.add_insecure_port("127.0.0.1:0")
    server.start()
    return serve_wsgiref(port)


SERVERS = {
    "uvicorn": serve_uvicorn,
    "wsgiref": serve_wsgiref,
    "handle_request": serve_one_by_one,
    "grpc beside": serve_grpc_beside_wsgiref,
}

if __name__ == "__main__":
    serve = SERVERS[sys.argv[1]](int(os.environ["PORT"]))
    thread = threading.Thread(target=serve, daemon=True)
    if sys.argv[2] == "serve":
        serve()
    thread.start()
    if sys.argv[2] == "join":
        thread.join()
    elif sys.argv[2] == "event":
        threading.Event().wait()
    elif sys.argv[2] == "sleep":
        while True:
            time.sleep(0.1)
    elif sys.argv[2] == "compute":
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)  # many minutes in C, without the GIL
    print("went on", flush=True)  # noqa: T201
