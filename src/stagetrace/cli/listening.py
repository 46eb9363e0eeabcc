"""The options of verbs that serve: where they listen, the token, TLS. Each flag has a variable in its place."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from stagetrace import log, settings
from stagetrace.backend import options
from stagetrace.backend.options import BackendError, Listening, host_names, risks
from stagetrace.cli.output import show_json
from stagetrace.cli.registry import Option, UsageError
from stagetrace.system.access import is_loopback
from stagetrace.system.packages import requirement

if TYPE_CHECKING:
    from stagetrace.page.source import Source


def of_setting(names: str, setting: settings.Switch | settings.Text) -> Option:
    """Return an option that has a variable."""
    about = f"{setting.about}; default: {setting.default}" if setting.default else setting.about
    return Option(names, f"{about} (${setting.name})")


HOST: Final = of_setting("--host HOST", settings.HOST)
PAGE: Final = of_setting("--jaeger-ui URL", settings.JAEGER_UI)
ACCESS: Final = (
    of_setting("--allow-host NAMES", settings.ALLOW_HOST),
    of_setting("--token SECRET", settings.TOKEN),
    of_setting("--token-file FILE", settings.TOKEN_FILE),
    of_setting("--insecure", settings.INSECURE),
    of_setting("--tls-cert FILE", settings.TLS_CERT),
    of_setting("--tls-key FILE", settings.TLS_KEY),
)
READY: Final = Option("--json", "print one JSON object, on one line, once ready")


def parse_flag(args: argparse.Namespace, flag: str, setting: settings.Text, parse: Callable[[str], Any]) -> Any:
    """Return the value of a flag, or of its variable; None where both are empty. Raise UsageError."""
    given: str | None = getattr(args, flag.removeprefix("--").replace("-", "_"))
    text = given if given is not None else str(setting.read())
    try:
        return parse(text) if text else None
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def listening(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of `Listening` that the flags of `HOST` and `ACCESS` give. Raise UsageError."""
    token: str | None = args.token if args.token is not None else settings.TOKEN.read() or None
    file: str | None = args.token_file if args.token_file is not None else settings.TOKEN_FILE.read() or None
    if token is not None and file is not None:
        raise UsageError("both a token and a file of one are given\ngive one: --token-file, or STAGETRACE_TOKEN")
    return {
        "host": args.host if args.host is not None else settings.HOST.read(),
        "token": token if file is None else options.read(Path(file)),
        "insecure": args.insecure or settings.INSECURE.read(),
        "tls_cert": parse_flag(args, "--tls-cert", settings.TLS_CERT, Path),
        "tls_key": parse_flag(args, "--tls-key", settings.TLS_KEY, Path),
        "allowed_hosts": parse_flag(args, "--allow-host", settings.ALLOW_HOST, host_names) or (),
    }


def jaeger_ui(args: argparse.Namespace) -> str:
    """Return what `--jaeger-ui` or its variable gives; empty where neither does. Raise UsageError."""
    return parse_flag(args, "--jaeger-ui", settings.JAEGER_UI, _web_address) or ""


def source(host: str) -> Source:
    """Return where the page finds lines of code: by the variable, or on loopback in VS Code. Raise UsageError."""
    from stagetrace.page.source import EDITOR, Folders, Source, template

    text = settings.SOURCE_URL.read() or (EDITOR if is_loopback(host) else "")
    try:
        return Source(template(text) if text else "", Folders())
    except ValueError as error:
        raise UsageError(f"{settings.SOURCE_URL.name}: {error}") from None


def _web_address(text: str) -> str:
    """Return the address of a web page, or a template of one. Raise ValueError."""
    if urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).netloc:
        raise ValueError(f"{text!r} is no address of a web page: write http://jaeger:16686")
    return text


def report_ready(options: Listening, ready: dict[str, Any], lines: Iterable[str], *, as_json: bool) -> None:
    """Log what is risky, and print that the server is ready: as JSON, or as lines."""
    for risk in risks(options):
        log.warning(risk)
    if as_json:
        show_json(ready)
    else:
        sys.stdout.write("\n".join([*lines, ""]))
    sys.stdout.flush()


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
