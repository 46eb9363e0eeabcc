"""Access to one Jaeger: TLS settings of the store's URL, and a token of the environment."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from stagetrace import config
from stagetrace.errors import StoreError
from stagetrace.hosts import is_loopback
from stagetrace.store.url import bad, host_and_port

DEFAULT_PORT: Final = 16685
TOKEN: Final = config.STORE_TOKEN.name  # a variable, since a URL would show it to logs and to `ps`
_TLS_SCHEME: Final = "jaegers"
_FILES: Final = ("ca", "cert", "key")


@dataclass(frozen=True)
class Access:
    """TLS and token of a connection. Contents of PEM files; without `ca` gRPC's own authorities."""

    tls: bool = False
    ca: bytes | None = None
    cert: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @property
    def scheme(self) -> str:
        """Return the scheme of the store's URL."""
        return _TLS_SCHEME if self.tls else "jaeger"

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of each call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)


def parse(url: str) -> tuple[str, int, Access]:
    """Return host, port and access of `jaeger://HOST[:PORT]` or `jaegers://HOST[:PORT][?ca=FILE&cert=FILE&key=FILE]`.

    Raise StoreError for a bad URL, a file that is no PEM file, and a token that no header can carry
    or that would leave this machine without TLS.
    """
    if url.partition("://")[0].lower() != _TLS_SCHEME:
        host, port = host_and_port(url, DEFAULT_PORT)
        return host, port, Access(token=_unencrypted(host, _token()))
    address, _, query = url.partition("?")
    host, port = host_and_port(address, DEFAULT_PORT)
    paths = _paths(url, query)
    _check(paths)
    contents = {name: path.read_bytes() for name, path in paths.items()}
    return host, port, Access(tls=True, token=_token(), **contents)


def _paths(url: str, query: str) -> dict[str, Path]:
    """Return the files in a URL's query by their names."""
    paths: dict[str, Path] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        if name not in _FILES or not value:
            raise bad(url, f"{part!r} is none of {', '.join(f'{one}=FILE' for one in _FILES)}")
        paths[name] = Path(unquote(value))
    if ("cert" in paths) != ("key" in paths):
        raise bad(url, "a client's certificate needs both files, cert=FILE and key=FILE")
    return paths


def _check(paths: dict[str, Path]) -> None:
    """Raise StoreError for a file that gRPC cannot use; gRPC would report it later, in log lines of its own."""
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
    token = config.STORE_TOKEN.read() or None
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        raise StoreError(f"{TOKEN} has characters that a header cannot carry\nuse printable ASCII without spaces")
    return token


def _unencrypted(host: str, token: str | None) -> str | None:
    """Return the token if it may be sent to `host` without TLS. Raise StoreError."""
    if token is None or is_loopback(host) or config.STORE_INSECURE.read():
        return token
    shown = f"[{host}]" if ":" in host else host
    raise StoreError(
        f"the token in {TOKEN} is not sent to {host}: without TLS the network in between can read it\n"
        f"use TLS (jaegers://{shown}:PORT), or a tunnel to localhost,\n"
        f"or set {config.STORE_INSECURE.name}=1 where that network is yours alone"
    )
