"""`stagetrace page`: serve the page over any store, in the foreground."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from functools import partial
from typing import Any, Final

from stagetrace.backend.options import Listening, check
from stagetrace.cli.arguments import STORE, is_file, store_url
from stagetrace.cli.ask import answer_of, options_of
from stagetrace.cli.console import leave
from stagetrace.cli.listening import (
    ACCESS,
    HOST,
    PAGE,
    READY,
    jaeger_ui,
    listening,
    port,
    report_ready,
    require,
    source,
)
from stagetrace.cli.registry import ANSWERED, Option
from stagetrace.store import open_store

DESCRIPTION: Final = """Serve the page that people look at in a browser, as `stagetrace up` does, over any store.

Runs until Ctrl-C or SIGTERM, and only reads. Listens on loopback; beyond that only with a token and TLS. A browser logs
in with the token."""
EXAMPLE: Final = "stagetrace page --store jaeger://localhost:16685"
PORT: Final = 16_688  # those before it are Jaeger's, and of `stagetrace up`
_NEEDED: Final = ("uvicorn", "starlette", "jinja2", "duckdb", "numpy", "pyarrow")
_EVER: Final = "1970-01-01"
OPTIONS: Final = (
    STORE,
    HOST,
    Option("--port PORT", f"HTTP; 0 takes a free port; default: {PORT}", port, PORT),
    PAGE,
    *ACCESS,
    READY,
)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    options = Listening(**listening(args))
    check(options)
    require("the page", *_NEEDED)
    from stagetrace.page.app import serve
    from stagetrace.page.base import Site

    url = store_url(args)
    open_store(url).close()  # a URL that is wrong is reported now, not to a browser
    ask = partial(answer_of, url)
    site = Site(
        url, partial(open_store, url), ask, options=options_of, source=source(options.host), jaeger_ui=jaeger_ui(args)
    )
    if is_file(url):  # a recording, to which the last hour means nothing
        site = replace(site, since=_EVER)

    def report(port: int) -> None:
        lines = (f"stagetrace shows {url}", f"  {options.url(port)}/")
        report_ready(options, ready(url, options, port), lines, as_json=args.json)

    serve(site, options, args.port, report)
    leave(ANSWERED)  # a thread may still read a file, and would be waited for


def ready(url: str, options: Listening, port: int) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {
        "ready": True,
        "pid": os.getpid(),
        "store": url,
        "host": options.host,
        "port": port,
        "url": f"{options.url(port)}/",
        "tls": options.tls_cert is not None,
        "token": options.token is not None,
    }
