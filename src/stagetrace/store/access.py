"""Access to a store on another machine: TLS settings of the store's URL, and a token of the environment."""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from stagetrace import settings
from stagetrace.errors import StoreError
from stagetrace.store.base import bad
from stagetrace.system.access import is_loopback

TOKEN: Final = settings.STORE_TOKEN.name  # a variable, since a URL would show it to logs and to `ps`
FILES: Final = ("ca", "cert", "key")


@dataclass(frozen=True)
class Access:
    """TLS and token of a connection. Contents of PEM files, and where they are; without `ca` the usual authorities."""

    tls: bool = False
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    paths: Mapping[str, Path] = field(default_factory=dict)


def over_tls(url: str, named: Sequence[tuple[str, str]]) -> Access:
    """Return the access of a URL whose query names these files. Raise StoreError for a bad one, and a bad token."""
    paths = {name: Path(path) for name, path in named}
    if ("cert" in paths) != ("key" in paths):
        raise bad(url, "a client's certificate needs both files, cert=FILE and key=FILE")
    check(paths)
    contents = {name: path.read_bytes() for name, path in paths.items()}
    return Access(tls=True, token=_token(), paths=paths, **contents)


def without_tls(host: str, tls_scheme: str) -> Access:
    """Return the access of a URL without TLS. Raise StoreError for a token that would leave this machine so."""
    token = _token()
    if token is None or is_loopback(host) or settings.STORE_INSECURE.read():
        return Access(token=token)
    shown = f"[{host}]" if ":" in host else host
    raise StoreError(
        f"the token in {TOKEN} is not sent to {host}: without TLS the network in between can read it\n"
        f"use TLS ({tls_scheme}://{shown}:PORT), or a tunnel to localhost,\n"
        f"or set {settings.STORE_INSECURE.name}=1 where that network is yours alone"
    )


def parts_of(url: str, query: str, names: Sequence[str], *, shown: str) -> list[tuple[str, str]]:
    """Return what a URL's query gives, name and value. Raise StoreError for any other than `names`."""
    found = []
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name not in names or not value:
            raise bad(url, f"{part!r} is none of {shown}")
        found.append((name, unquote(value)))
    return found


def check(paths: dict[str, Path]) -> None:
    """Raise StoreError for a file that TLS cannot use; gRPC would report it later, in log lines of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    named = ", ".join(f"{name}={path}" for name, path in paths.items())
    try:
        if "ca" in paths:
            named = f"ca={paths['ca']}"
            context.load_verify_locations(paths["ca"])
        if "cert" in paths:
            named = f"cert={paths['cert']} with key={paths['key']}"
            context.load_cert_chain(paths["cert"], paths["key"], password="")  # else it would ask the terminal
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot use {named}: {error}\n"
            "these must be readable PEM files: ca of the authority that signed the server's certificate, key without a "
            "passphrase"
        ) from None


def _token() -> str | None:
    token = settings.STORE_TOKEN.read() or None
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise StoreError(f"{TOKEN} has characters that a header cannot carry\nuse printable ASCII without spaces")
    return token
