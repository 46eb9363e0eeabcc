"""The page of the query port for browsers: what runs here, and how to query it. It loads nothing."""

from __future__ import annotations

import shlex
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Final

from starlette.responses import HTMLResponse
from starlette.routing import Route

from stagetrace import __version__
from stagetrace.hosts import is_loopback

if TYPE_CHECKING:
    from starlette.requests import Request

    from stagetrace.backend.options import Options, Ports

_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 -- addresses that no client can use
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>stagetrace</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem }}
:root {{ color-scheme: light dark }}
td {{ padding: 0 1.5rem 0 0; vertical-align: top }}
pre {{ padding: .7rem; border: 1px solid; overflow-x: auto }}
</style>
</head>
<body>
<h1>stagetrace {version}</h1>
<p>Which stage of which request missed its latency objective, and why. This is <code>stagetrace up</code>: it receives
spans by OTLP, stores them, and answers the commands and Jaeger's query API. There is no page to look at traces on yet.
</p>
<h2>What runs here</h2>
<table>
{rows}
</table>
<h2>Send it spans</h2>
<pre>{send}</pre>
<h2>Ask it</h2>
<pre>{ask}</pre>
<p>Or by its query port: <code>{remote}</code></p>
</body>
</html>
"""


def page_route(options: Options, ports: Ports) -> Route:
    """Return the route of the page."""
    html = page(options, ports)

    async def respond(_request: Request) -> HTMLResponse:
        return HTMLResponse(html, headers=_HEADERS)

    return Route("/", respond, methods=["GET"])


def page(options: Options, ports: Ports) -> str:
    """Return the page."""
    shown = replace(options, host="HOST") if options.host in _EVERYWHERE else options
    scheme = "http" if options.tls_cert is None else "https"
    store = shlex.quote(str(options.data.absolute()))
    rows = {
        "OTLP over gRPC": shown.at(ports.grpc),
        "OTLP over HTTP": f"{scheme}://{shown.at(ports.http)}/v1/traces",
        "jaeger.api_v3 over gRPC": shown.at(ports.query_grpc),
        "jaeger.api_v3 over HTTP": f"{scheme}://{shown.at(ports.query_http)}/api/v3",
        "health, metrics": f"{scheme}://{shown.at(ports.query_http)}/health, /metrics",
        "local store": str(options.data.absolute()),
    }
    send = [
        "STAGETRACE=1",
        'STAGETRACE_SLA="POST /predict within 50ms for 99%"',
        "OTEL_SERVICE_NAME=my-service",
        f"OTEL_EXPORTER_OTLP_ENDPOINT={scheme}://{shown.at(ports.grpc)}",
        *(["OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer TOKEN'"] if options.token is not None else []),
        "uvicorn app:app",
    ]
    ask = [f"stagetrace {rest} --store {store}" for rest in ("breaches", "stages", "requests", "tail -f", "services")]
    token = "" if options.token is None else "STAGETRACE_STORE_TOKEN=TOKEN "
    if token and options.tls_cert is None and not is_loopback(options.host):
        token = f"STAGETRACE_STORE_INSECURE=1 {token}"
    lines = [f"<tr><td>{escape(name)}</td><td><code>{escape(what)}</code></td></tr>" for name, what in rows.items()]
    return _PAGE.format(
        version=escape(__version__),
        rows="\n".join(lines),
        send=escape(" \\\n  ".join(send)),
        ask=escape("\n".join(ask)),
        remote=escape(f"{token}stagetrace breaches --store {shown.store(ports)}"),
    )
