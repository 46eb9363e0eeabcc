"""Serves the page alone, on one port, over a store that it does not write to."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final

from stagetrace.backend.access import Access
from stagetrace.backend.counters import PAGE_PORT, Counters
from stagetrace.backend.descriptors import connections_of_ports
from stagetrace.backend.http_server import HttpServer, limit_logs_of_libraries
from stagetrace.backend.sockets import check_tls, listen
from stagetrace.backend.web import application, json_fault
from stagetrace.page.app import Page
from stagetrace.page.login import Login

if TYPE_CHECKING:
    import socket

    from stagetrace.backend.options import Listening
    from stagetrace.page.base import Site

_GRACE_S: Final = 0.2  # nothing is lost where a browser gets no response


def serve(site: Site, options: Listening, port: int, on_ready: Callable[[int], None]) -> None:
    """Serve until SIGINT or SIGTERM; call `on_ready` with the port. Raise BackendError where it cannot start."""
    limit_logs_of_libraries()
    counters = Counters()
    with ExitStack() as stack:
        check_tls(options)
        bound = listen(options.host, port, "--port")
        stack.callback(bound.close)
        port = bound.getsockname()[1]
        page = Page(site, Login(options, port, counters), stack)
        app = application((), json_fault, Access.of(options), partial(counters.text, {}), counters, page)
        most = connections_of_ports().http
        server = HttpServer(app, options, PAGE_PORT, counters, most=most, grace_s=_GRACE_S)
        asyncio.run(_run(server, bound, partial(on_ready, port)))


async def _run(server: HttpServer, bound: socket.socket, on_ready: Callable[[], None]) -> None:
    def stop() -> None:
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    await server.up.wait()
    on_ready()
    await serving
