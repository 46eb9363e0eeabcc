"""A WSGI application with stages; `/break/NAME` makes one part of stagetrace raise."""

import time
from typing import Any

import breaking

import stagetrace


def app(environ: Any, start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    if path.startswith("/break/"):
        breaking.make_broken(path.removeprefix("/break/"))
    with stagetrace.stage("inference"):
        time.sleep(0.005)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
