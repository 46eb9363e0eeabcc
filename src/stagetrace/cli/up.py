"""`stagetrace up`: run the embedded back end in the foreground."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace import settings
from stagetrace.backend.alerts import notify
from stagetrace.backend.options import Alerting, Limits, Options, Ports, check_back_end, seconds, size
from stagetrace.cli.listening import (
    ACCESS,
    HOST,
    PAGE,
    READY,
    jaeger_ui,
    listening,
    of_setting,
    parse_flag,
    port,
    report_ready,
    require,
    source,
)
from stagetrace.cli.registry import ANSWERED, UsageError
from stagetrace.output.objectives import requests
from stagetrace.policy.followed_file import FollowedFile
from stagetrace.policy.policy import Policy, file_named
from stagetrace.rules.alerts import watched
from stagetrace.rules.burn import judged
from stagetrace.store.base import default_folder
from stagetrace.system import setting_problems
from stagetrace.system.access import is_loopback

if TYPE_CHECKING:
    from contextlib import ExitStack

    from starlette.routing import BaseRoute

    from stagetrace.backend.alerts.watcher import Watcher
    from stagetrace.backend.counters import Counters
    from stagetrace.page.app import Page
    from stagetrace.page.source import Source
    from stagetrace.store.local import LocalStore

# --- The options of `stagetrace up` by which it evaluates the alerts of a policy, and posts them.

ALERTING: Final = (
    of_setting("--sla TEXT|FILE", settings.SLA_ALERTS),
    of_setting("--webhook URL", settings.WEBHOOK),
    of_setting("--alertmanager URL", settings.ALERTMANAGER),
)


def alerting(args: argparse.Namespace) -> Alerting | None:
    """Return which objectives are watched; None without any. Raise UsageError, PolicyError or RulesError."""
    text: str = args.sla if args.sla is not None else settings.SLA_ALERTS.read()
    webhook, alertmanager = args.webhook or settings.WEBHOOK.read(), args.alertmanager or settings.ALERTMANAGER.read()
    if not text.strip():
        if args.webhook or args.alertmanager:
            raise UsageError('alerts have a receiver, and no objectives\nadd --sla sla.yaml, or --sla "* within 1s"')
        return None
    policy, renewed = _policy(text)
    watched(policy)  # here is where an alert that could never fire is reported
    tokens = settings.WEBHOOK_TOKEN.read(), settings.ALERTMANAGER_TOKEN.read()
    return Alerting(
        policy,
        renewed,
        _checked("--webhook", webhook or policy.alerts.webhook, tokens[0]),
        tokens[0],
        settings.WEBHOOK_SECRET.read(),
        _checked("--alertmanager", alertmanager or policy.alerts.alertmanager, tokens[1]),
        tokens[1],
        tuple(settings.NOTIFY.read().split()),
    )


def _policy(text: str) -> tuple[Policy, Callable[[], Policy]]:
    """Return a policy, and a function for what its file has become. Raise PolicyError."""
    policy, path = Policy.load(text), file_named(text)
    if path is None:
        return policy, lambda: policy
    followed = FollowedFile(path)
    followed.read()

    def renewed() -> Policy:
        followed.look()
        return followed.policy or policy

    return followed.policy or policy, renewed


def _checked(flag: str, url: str, token: str) -> str:
    try:
        return notify.check_url(url, token) if url else ""
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def posted_to(found: Alerting) -> list[str]:
    """Return where alerts go, without paths and secrets."""
    posted = [notify.Target(url).shown for url in (found.webhook, found.alertmanager) if url]
    return [*posted, *(f"{url.partition('://')[0]}://..." for url in found.notify)]


DESCRIPTION: Final = """Run the embedded back end: OTLP in, a local store, Jaeger's query API out. One process.

Runs until Ctrl-C or SIGTERM. A span is acknowledged once it is on disk. Listens on loopback; beyond that only with
a token and TLS.

--retention counts from when a span was received, whatever its own times are, on a clock of the store that goes on with
the time that passes: setting the system's clock changes nothing, and while the store is closed half of AGE counts at
most. --retention-size drops first what was received first. A span that starts more than an hour in the future is
refused. Files of the store are for this user alone.

--archive copies each file of the store to a bucket of S3 once no more spans come into it, an hour after its first, and
before retention drops it as long as the bucket can be reached; `--store s3://BUCKET/PREFIX` reads it there. The
credentials are those of AWS's variables.

--sla evaluates the alerts of a policy every 30 seconds, without Prometheus, and posts them to --webhook, in the form of
Alertmanager's webhooks, or to --alertmanager."""
EXAMPLE: Final = "stagetrace up --data ./traces --retention 7d"
_EVERYWHERE: Final = ("0.0.0.0", "::")  # noqa: S104 -- addresses that no client can use
_NEEDED: Final = ("uvicorn", "starlette", "jinja2", "zstandard", "duckdb", "numpy", "pyarrow")

_PORTS: Final = {
    "--grpc-port": settings.GRPC_PORT,
    "--http-port": settings.HTTP_PORT,
    "--query-grpc-port": settings.QUERY_GRPC_PORT,
    "--query-http-port": settings.QUERY_HTTP_PORT,
}
OPTIONS: Final = (
    of_setting("--data DIR", settings.DATA),
    HOST,
    *(of_setting(f"{flag} PORT", setting) for flag, setting in _PORTS.items()),
    PAGE,
    *ACCESS,
    of_setting("--retention AGE", settings.RETENTION),
    of_setting("--retention-size SIZE", settings.RETENTION_SIZE),
    of_setting("--archive URL", settings.ARCHIVE),
    of_setting("--max-request SIZE", settings.MAX_REQUEST),
    of_setting("--max-in-flight SIZE", settings.MAX_IN_FLIGHT),
    *ALERTING,
    READY,
)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    options = _options(args)
    check_back_end(options)
    require("the back end", *_NEEDED)
    from stagetrace.backend.server import serve

    unused = setting_problems.without_switch(settings.environment())
    if unused:
        sys.stderr.write(f"stagetrace: {setting_problems.without_switch_text(unused)}\n")
    page = partial(_page, options, jaeger_ui(args), source(options.host))

    def report(ports: Ports) -> None:
        report_ready(options, ready(options, ports), _ready_lines(options, ports), as_json=args.json)

    serve(options, report, page)
    return ANSWERED


def _page(
    options: Options,
    jaeger: str,
    lines: Source,
    store: LocalStore,
    ports: Ports,
    counters: Counters,
    watcher: Watcher | None,
    stack: ExitStack,
) -> Page:
    """Return the page over the open store."""
    from stagetrace.cli.ask import answer_of, options_of
    from stagetrace.page.app import Page
    from stagetrace.page.base import Site
    from stagetrace.page.login import Login

    url = str(options.data.absolute())
    site = Site(
        url,
        store.reader,
        partial(answer_of, url, policy=lambda: None if watcher is None else watcher.policy),
        [
            *addresses(options, ports),
            ("health, metrics", "/health and /metrics of both HTTP ports"),
            *_store_facts(options),
        ],
        options=options_of,
        source=lines,
        jaeger_ui=jaeger,
        figures=lambda: counters.figures({f"store_{name}": value for name, value in store.stats().items()}),
        send=to_send(options, ports),
        alerts=None if watcher is None else watcher.alerts,
        silences=(lambda: ()) if watcher is None else watcher.silences,
        silence=None if watcher is None else watcher.silence,
        commands=to_ask(options, ports),
    )
    return Page(site, Login(options, ports.query_http, counters), stack, _for_agents(url, store, stack))


def _for_agents(url: str, store: LocalStore, stack: ExitStack) -> list[BaseRoute]:
    """Return the route of agents, where what it needs is installed."""
    if find_spec("mcp") is None:
        return []
    from stagetrace.cli.agents import Agents
    from stagetrace.mcp.route import route_of

    agents = Agents(url, store.reader, [Path.cwd()])
    stack.callback(agents.close)
    return [route_of(agents.tools)]


def _options(args: argparse.Namespace) -> Options:
    def given(flag: str, setting: settings.Verbatim, parse: Callable[[str], Any]) -> Any:
        return parse_flag(args, flag, setting, parse)

    return Options(
        data=given("--data", settings.DATA, Path) or default_folder(),
        ports=Ports(*(given(flag, setting, port) for flag, setting in _PORTS.items())),
        retention_s=given("--retention", settings.RETENTION, seconds),
        retention_bytes=given("--retention-size", settings.RETENTION_SIZE, size),
        archive=given("--archive", settings.ARCHIVE, _archive),
        limits=Limits(
            given("--max-request", settings.MAX_REQUEST, size), given("--max-in-flight", settings.MAX_IN_FLIGHT, size)
        ),
        alerting=alerting(args),
        **listening(args),
    )


def _archive(text: str) -> str:
    """Return the URL of an archive. Raise ValueError."""
    from stagetrace.store.s3.archive import place

    return f"s3://{place(text)}"


def addresses(options: Options, ports: Ports) -> list[tuple[str, str]]:
    """Return what runs: name and address."""
    return [
        ("OTLP gRPC", options.at(ports.grpc)),
        ("OTLP HTTP", f"{options.url(ports.http)}/v1/traces"),
        ("api_v3 gRPC", options.at(ports.query_grpc)),
        ("api_v3 HTTP", f"{options.url(ports.query_http)}/api/v3"),
        ("page", f"{options.url(ports.query_http)}/"),
    ]


def _store_facts(options: Options) -> Iterator[tuple[str, str]]:
    age = "" if options.retention_s is None else f"spans received up to {options.retention_s / 3600:g} hours ago"
    most = "" if options.retention_bytes is None else f"at most {options.retention_bytes:,} bytes"
    yield "local store", str(options.data.absolute())
    yield (
        "retention",
        ", ".join(one for one in (age, most) if one) or "all spans are kept (--retention)",
    )
    if options.archive is not None:
        yield "archive", options.archive


def to_send(options: Options, ports: Ports) -> list[str]:
    """Return the lines of a command with which a service sends its spans here."""
    shown = _for_clients(options)
    scheme = shown.url(0).partition(":")[0]
    variables = [
        "STAGETRACE=1",
        'STAGETRACE_SLA="POST /predict within 50ms for 99%"',
        "OTEL_SERVICE_NAME=my-service",
        f"OTEL_EXPORTER_OTLP_ENDPOINT={scheme}://{shown.at(ports.grpc)}",
        *(["OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer TOKEN'"] if options.token is not None else []),
    ]
    return [*(f"{one} \\" for one in variables), "  uvicorn app:app"]


def to_ask(options: Options, ports: Ports) -> list[str]:
    """Return commands that ask the store here, and last one that asks from another machine."""
    store = shlex.quote(str(options.data.absolute()))
    token = "" if options.token is None else "STAGETRACE_STORE_TOKEN=TOKEN "
    if token and options.tls_cert is None and not is_loopback(options.host):
        token = f"STAGETRACE_STORE_INSECURE=1 {token}"
    here = [f"stagetrace {rest} --store {store}" for rest in ("breaches", "stages", "requests", "tail -f", "services")]
    return [*here, f"{token}stagetrace breaches --store {_for_clients(options).store(ports)}"]


def _for_clients(options: Options) -> Options:
    """Return the options with an address that a client can use."""
    return replace(options, host="HOST") if options.host in _EVERYWHERE else options


def ready(options: Options, ports: Ports) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {
        "ready": True,
        "pid": os.getpid(),
        "data": str(options.data.absolute()),
        "archive": options.archive,
        "host": options.host,
        "grpc_port": ports.grpc,
        "http_port": ports.http,
        "query_grpc_port": ports.query_grpc,
        "query_http_port": ports.query_http,
        "store": options.store(ports),
        "tls": options.tls_cert is not None,
        "token": options.token is not None,
        "objectives": 0 if options.alerting is None else len(judged(options.alerting.policy)),
        "alerts_to": [] if options.alerting is None else posted_to(options.alerting),
    }


def _ready_lines(options: Options, ports: Ports) -> Iterator[str]:
    yield f"stagetrace is ready; spans go to {options.data.absolute()}"
    yield from (f"  {name:<16} {address}" for name, address in addresses(options, ports))
    if options.alerting is not None:
        to = posted_to(options.alerting)
        where = f"are posted to {' and '.join(to)}" if to else "are shown on the page, and posted nowhere (--webhook)"
        yield f"Alerts of {requests(len(judged(options.alerting.policy)), 'objective')} {where}"
    if options.archive is not None:
        yield f"Files are copied to {options.archive} once they are closed, an hour after their first span"
    yield f"Ask it: stagetrace breaches --store {options.data.absolute()}"
