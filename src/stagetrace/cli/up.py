"""`stagetrace up`: run the embedded back end in the foreground."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from stagetrace import config, log, setting_problems
from stagetrace.backend import token_file
from stagetrace.backend.options import BackendError, Limits, Options, Ports, check, host_names, risks, seconds, size
from stagetrace.cli.base import ANSWERED, UsageError
from stagetrace.cli.output.lines import show_json
from stagetrace.installed_from import requirement
from stagetrace.store.url import default_folder

if TYPE_CHECKING:
    from contextlib import ExitStack

    from starlette.routing import BaseRoute

    from stagetrace.store.local import LocalStore

DESCRIPTION: Final = """Run the embedded back end: OTLP in, a local store, Jaeger's query API out. One process.

Runs until Ctrl-C or SIGTERM. A span is acknowledged once it is on disk. Listens on loopback; beyond that only with
a token and TLS.

--retention counts from when a span was received, whatever its own times are, on a clock of the store that goes on with
the time that passes: setting the system's clock changes nothing, and while the store is closed half of AGE counts at
most. --retention-size drops first what was received first. A span that starts more than an hour in the future is
refused. Files of the store are for this user alone."""
EXAMPLE: Final = "stagetrace up --data ./traces --retention 7d"
_NEEDED: Final = ("uvicorn", "starlette", "jinja2", "zstandard", "duckdb", "numpy", "pyarrow")

# flag -> what holds it where it is not given, and how its value is named in the help.
_FLAGS: Final[dict[str, tuple[config.Switch | config.Verbatim, str | None]]] = {
    "--data": (config.DATA, "DIR"),
    "--host": (config.HOST, "HOST"),
    "--grpc-port": (config.GRPC_PORT, "PORT"),
    "--http-port": (config.HTTP_PORT, "PORT"),
    "--query-grpc-port": (config.QUERY_GRPC_PORT, "PORT"),
    "--query-http-port": (config.QUERY_HTTP_PORT, "PORT"),
    "--allow-host": (config.ALLOW_HOST, "NAMES"),
    "--token": (config.TOKEN, "SECRET"),
    "--token-file": (config.TOKEN_FILE, "FILE"),
    "--insecure": (config.INSECURE, None),
    "--tls-cert": (config.TLS_CERT, "FILE"),
    "--tls-key": (config.TLS_KEY, "FILE"),
    "--retention": (config.RETENTION, "AGE"),
    "--retention-size": (config.RETENTION_SIZE, "SIZE"),
    "--max-request": (config.MAX_REQUEST, "SIZE"),
    "--max-in-flight": (config.MAX_IN_FLIGHT, "SIZE"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    for flag, (setting, metavar) in _FLAGS.items():
        shown = f"{setting.about}; default: {setting.default}" if setting.default else setting.about
        form: dict[str, Any] = {"action": "store_true"} if metavar is None else {"metavar": metavar}
        parser.add_argument(flag, help=f"{shown} (${setting.name})", **form)
    parser.add_argument("--json", action="store_true", help="print one JSON object, on one line, once ready")


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    options = _options(args)
    check(options)
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"the back end needs {', '.join(missing)}\npip install {requirement('backend')}")
    from stagetrace.backend.server import serve

    unused = setting_problems.without_switch(config.environment())
    if unused:
        sys.stderr.write(f"stagetrace: {setting_problems.without_switch_text(unused)}\n")
    serve(options, lambda ports: _report_ready(options, ports, as_json=args.json), partial(_page, options))
    return ANSWERED


def _page(options: Options, store: LocalStore, ports: Ports, stack: ExitStack) -> list[BaseRoute]:
    """Return the routes of the page over the open store."""
    from stagetrace.cli.ask import answer_of
    from stagetrace.page.app import page_routes
    from stagetrace.page.base import Site

    site = Site(str(options.data.absolute()), store.reader, answer_of, addresses(options, ports))
    return page_routes(site, stack)


def _options(args: argparse.Namespace) -> Options:
    def text(flag: str) -> str:
        given: str | None = getattr(args, flag.removeprefix("--").replace("-", "_"))
        return given if given is not None else str(_FLAGS[flag][0].read())

    def parsed(flag: str, parse: Callable[[str], Any]) -> Any:
        found = text(flag)
        try:
            return parse(found) if found else None
        except ValueError as error:
            raise UsageError(f"{flag}: {error}") from None

    return Options(
        data=parsed("--data", Path) or default_folder(),
        host=text("--host"),
        ports=Ports(*(parsed(flag, _port) for flag in _FLAGS if flag.endswith("-port"))),
        token=_token(args),
        insecure=args.insecure or config.INSECURE.read(),
        tls_cert=parsed("--tls-cert", Path),
        tls_key=parsed("--tls-key", Path),
        retention_s=parsed("--retention", seconds),
        retention_bytes=parsed("--retention-size", size),
        limits=Limits(parsed("--max-request", size), parsed("--max-in-flight", size)),
        allowed_hosts=parsed("--allow-host", host_names) or (),
    )


def _token(args: argparse.Namespace) -> str | None:
    token: str | None = args.token if args.token is not None else config.TOKEN.read() or None
    file: str | None = args.token_file if args.token_file is not None else config.TOKEN_FILE.read() or None
    if token is not None and file is not None:
        raise UsageError("both a token and a file of one are given\ngive one: --token-file, or STAGETRACE_TOKEN")
    return token if file is None else token_file.read(Path(file))


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:  # noqa: PLR2004
        raise ValueError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def addresses(options: Options, ports: Ports) -> list[tuple[str, str]]:
    """Return what runs: name and address."""
    scheme = "https" if options.tls_cert is not None else "http"
    return [
        ("OTLP gRPC", options.at(ports.grpc)),
        ("OTLP HTTP", f"{scheme}://{options.at(ports.http)}/v1/traces"),
        ("api_v3 gRPC", options.at(ports.query_grpc)),
        ("api_v3 HTTP", f"{scheme}://{options.at(ports.query_http)}/api/v3"),
        ("page", f"{scheme}://{options.at(ports.query_http)}/"),
    ]


def ready(options: Options, ports: Ports) -> dict[str, Any]:
    """Return the object that `--json` prints."""
    return {
        "ready": True,
        "pid": os.getpid(),
        "data": str(options.data.absolute()),
        "host": options.host,
        "grpc_port": ports.grpc,
        "http_port": ports.http,
        "query_grpc_port": ports.query_grpc,
        "query_http_port": ports.query_http,
        "store": options.store(ports),
        "tls": options.tls_cert is not None,
        "token": options.token is not None,
    }


def _report_ready(options: Options, ports: Ports, *, as_json: bool) -> None:
    for risk in risks(options):
        log.warning(risk)
    if as_json:
        show_json(ready(options, ports))
    else:
        lines = [
            f"stagetrace is ready; spans go to {options.data.absolute()}",
            *(f"  {name:<16} {address}" for name, address in addresses(options, ports)),
            f"Ask it: stagetrace breaches --store {options.data.absolute()}",
        ]
        sys.stdout.write("\n".join([*lines, ""]))
    sys.stdout.flush()
