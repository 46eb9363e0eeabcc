"""The options of verbs that serve: where they listen, the token, TLS. Each flag has a variable in its place."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from stagetrace import settings
from stagetrace.backend import options
from stagetrace.backend.options import BackendError, host_names
from stagetrace.cli.registry import UsageError
from stagetrace.system.packages import requirement

# flag -> what holds it where it is not given, and how its value is named in the help.
Flags: TypeAlias = "Mapping[str, tuple[settings.Switch | settings.Text, str | None]]"
HOST: Final[Flags] = {"--host": (settings.HOST, "HOST")}
PAGE: Final[Flags] = {"--jaeger-ui": (settings.JAEGER_UI, "URL")}
ACCESS: Final[Flags] = {
    "--allow-host": (settings.ALLOW_HOST, "NAMES"),
    "--token": (settings.TOKEN, "SECRET"),
    "--token-file": (settings.TOKEN_FILE, "FILE"),
    "--insecure": (settings.INSECURE, None),
    "--tls-cert": (settings.TLS_CERT, "FILE"),
    "--tls-key": (settings.TLS_KEY, "FILE"),
}


def add_flags(parser: argparse.ArgumentParser, flags: Flags) -> None:
    """Add options that have variables."""
    for flag, (setting, metavar) in flags.items():
        shown = f"{setting.about}; default: {setting.default}" if setting.default else setting.about
        form: dict[str, Any] = {"action": "store_true"} if metavar is None else {"metavar": metavar}
        parser.add_argument(flag, help=f"{shown} (${setting.name})", **form)


def add_ready(parser: argparse.ArgumentParser) -> None:
    """Add `--json` of a verb that serves."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, on one line, once ready")


def parsed(args: argparse.Namespace, flag: str, setting: settings.Text, parse: Callable[[str], Any]) -> Any:
    """Return the value of a flag, or of its variable; None where both are empty. Raise UsageError."""
    given: str | None = getattr(args, flag.removeprefix("--").replace("-", "_"))
    found = given if given is not None else str(setting.read())
    try:
        return parse(found) if found else None
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def listening(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `Listening` that the flags of `HOST` and `ACCESS` give. Raise UsageError."""
    return {
        "host": args.host if args.host is not None else settings.HOST.read(),
        "token": _token(args),
        "insecure": args.insecure or settings.INSECURE.read(),
        "tls_cert": parsed(args, "--tls-cert", settings.TLS_CERT, Path),
        "tls_key": parsed(args, "--tls-key", settings.TLS_KEY, Path),
        "allowed_hosts": parsed(args, "--allow-host", settings.ALLOW_HOST, host_names) or (),
    }


def jaeger_ui(args: argparse.Namespace) -> str:
    """Return what `--jaeger-ui` or its variable gives; empty where neither does. Raise UsageError."""
    return parsed(args, "--jaeger-ui", settings.JAEGER_UI, _web_address) or ""


def _web_address(text: str) -> str:
    """Return the address of a web page, or a template of one. Raise ValueError."""
    if urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).netloc:
        raise ValueError(f"{text!r} is no address of a web page: write http://jaeger:16686")
    return text


def port(text: str) -> int:
    """Return the number of a port. Raise ValueError."""
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:  # noqa: PLR2004
        raise ValueError(f"{text!r} is not a port (0 to 65535)")
    return int(text)


def require(what: str, *libraries: str) -> None:
    """Raise BackendError where one of the libraries that `what` needs is not installed."""
    missing = [name for name in libraries if importlib.util.find_spec(name) is None]
    if missing:
        raise BackendError(f"{what} needs {', '.join(missing)}\npip install {requirement('backend')}")


def _token(args: argparse.Namespace) -> str | None:
    token: str | None = args.token if args.token is not None else settings.TOKEN.read() or None
    file: str | None = args.token_file if args.token_file is not None else settings.TOKEN_FILE.read() or None
    if token is not None and file is not None:
        raise UsageError("both a token and a file of one are given\ngive one: --token-file, or STAGETRACE_TOKEN")
    return token if file is None else options.read(Path(file))
