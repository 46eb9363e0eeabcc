"""A WSGI application without a framework, on the standard library's server when it is run."""

import os
from typing import Any
from wsgiref.simple_server import make_server

from work import WORK


def app(environ: Any, start_response: Any) -> list[bytes]:
    """Answer as `WORK` does, and echo what is posted."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    if environ["REQUEST_METHOD"] == "GET":
        body = WORK[environ["PATH_INFO"]]()
    start_response("200 OK", [("X-App", "wsgi"), ("Content-Length", str(len(body)))])
    return [body]


if __name__ == "__main__":
    make_server("127.0.0.1", int(os.environ["PORT"]), app).serve_forever()
