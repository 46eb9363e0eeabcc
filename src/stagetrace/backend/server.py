"""Runs the back end: opens the store, then four servers, until a signal; then closes them in order."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from stagetrace.backend import query_grpc, receivers
from stagetrace.backend.alerts import saved
from stagetrace.backend.alerts.watcher import watch
from stagetrace.backend.archiver import Archiver
from stagetrace.backend.commands import command_server
from stagetrace.backend.counters import HTTP_PORTS, Counters
from stagetrace.backend.grpc_port import GrpcPort, grpc_server
from stagetrace.backend.http_limits import Threads
from stagetrace.backend.http_port import HttpServer, limit_logs_of_libraries
from stagetrace.backend.intake import Intake
from stagetrace.backend.jaeger_query import Queries
from stagetrace.backend.options import Options, Ports
from stagetrace.backend.ports import Access, check_tls, connections_of_ports, listen
from stagetrace.backend.query_grpc import query_handlers
from stagetrace.backend.query_http import query_app
from stagetrace.backend.receivers import receiver_app, receiver_handlers
from stagetrace.store.local import LocalStore
from stagetrace.store.s3.archive import Archive

if TYPE_CHECKING:
    import grpc

    from stagetrace.backend.alerts.watcher import Watcher
    from stagetrace.backend.web import Pages

    # The page over an open store, at these ports, with the alerts if there are any; the stack closes what it holds.
    MakePages = Callable[[LocalStore, Ports, Counters, Watcher | None, ExitStack], Pages]

# Requests of one moment share one fsync, so receiving wants more threads than there are cores.
_RECEIVING: Final = 16
_HEAVY: Final = 2  # JSON, each of which may take hundreds of megabytes, and large requests
_QUERYING: Final = 4
_GRACE_S: Final = 3
_SWITCH_S: Final = 0.001


@dataclass
class _Servers:
    """The servers and their ports."""

    intake: Intake
    grpc: list[grpc.Server]
    http: list[tuple[HttpServer, socket.socket]]
    ports: Ports


def serve(options: Options, on_ready: Callable[[Ports], None], pages: MakePages) -> None:
    """Serve until SIGINT or SIGTERM; call `on_ready` with the ports. Acknowledged spans are always on disk.

    `pages`: makes what browsers are served.

    Raise BackendError or StoreError where it cannot start.
    """
    limit_logs_of_libraries()
    with ExitStack() as stack:
        check_tls(options)
        store = LocalStore.open(
            options.data,
            retention_s=options.retention_s,
            retention_bytes=options.retention_bytes,
            archived=options.archive is not None,
        )
        stack.callback(store.close)
        servers = _open(options, store, pages, stack)
        # Threads that decode take turns with those that respond, which hold the interpreter many times for a moment.
        sys.setswitchinterval(_SWITCH_S)
        asyncio.run(_run(servers, on_ready))


def _open(options: Options, store: LocalStore, pages: MakePages, stack: ExitStack) -> _Servers:
    counters = Counters()
    if options.archive is not None:
        archiver = Archiver(store, Archive(options.archive, attempts=1))
        stack.callback(archiver.close)
        counters.gauges |= archiver.gauges
    intake = Intake(store, counters, options.limits)
    queries = Queries(store, counters)
    stack.callback(queries.close)
    asked = options.ports
    most = connections_of_ports()
    grpc_ports = (
        GrpcPort("--grpc-port", asked.grpc, receiver_handlers(intake), receivers.THREADS, options.limits.request),
        GrpcPort("--query-grpc-port", asked.query_grpc, query_handlers(queries), query_grpc.THREADS),
    )
    (receiver, grpc_port), (query, query_port) = (grpc_server(options, one, most.grpc, stack) for one in grpc_ports)
    sockets = []
    for port, flag in ((asked.http, "--http-port"), (asked.query_http, "--query-http-port")):
        sockets.append(listen(options.host, port, flag))
        stack.callback(sockets[-1].close)
    ports = Ports(grpc_port, sockets[0].getsockname()[1], query_port, sockets[1].getsockname()[1])
    watcher = None
    if options.alerting is None:
        saved.keep(store.folder, None)
    else:
        watcher = watch(options.alerting, f"{options.url(ports.query_http)}/", store, counters, stack)
    access = Access.of(options)
    # Threads apart from each other and from gRPC's: slow queries delay no spans.
    counts = (_RECEIVING, _HEAVY, _QUERYING)
    # A port is never full of requests in work, so it can respond to /health.
    receiving, heavy, querying = (stack.enter_context(Threads(count, most.http // 4)) for count in counts)
    apps = (
        receiver_app(intake, access, receiving, heavy),
        query_app(queries, counters, access, querying, intake.metrics, pages(store, ports, counters, watcher, stack)),
    )
    web = [HttpServer(app, options, port, counters, most=most.http) for port, app in zip(HTTP_PORTS, apps, strict=True)]
    http = [*zip(web, sockets, strict=True), command_server(store, intake, stack)]
    return _Servers(intake, [receiver, query], http, ports)


async def _run(servers: _Servers, on_ready: Callable[[Ports], None]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    for server in servers.grpc:
        server.start()
    serving = [asyncio.create_task(server.serve(sockets=[bound])) for server, bound in servers.http]
    await asyncio.gather(*(server.up.wait() for server, _ in servers.http))
    on_ready(servers.ports)
    waiting = asyncio.create_task(stop.wait())
    # A server that ends by itself ends the back end: a part of it would look like all of it.
    await asyncio.wait([waiting, *serving], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    servers.intake.stopping.set()
    ended = [one.stop(_GRACE_S) for one in servers.grpc]
    for web, _ in servers.http:
        web.should_exit = True
    await asyncio.gather(*serving, *(loop.run_in_executor(None, one.wait) for one in ended))
