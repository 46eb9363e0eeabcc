"""Store URLs: which schemes there are, and which module opens each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from stagetrace import config
from stagetrace.errors import StoreError
from stagetrace.store.base import Reader


class Scheme(NamedTuple):
    """A kind of store: `module`, imported on use, has `open_url(url) -> Reader`; `form` shows people the URL."""

    module: str
    form: str


SCHEMES: Final[dict[str, Scheme]] = {
    "jaeger": Scheme("stagetrace.store.jaeger.reader", "jaeger://HOST:PORT (Jaeger's gRPC query port, normally 16685)"),
    "jaegers": Scheme("stagetrace.store.jaeger.reader", "jaegers://HOST:PORT (the same over TLS)"),
    "local": Scheme("stagetrace.store.local", "local:///FOLDER (what `stagetrace up` fills)"),
    "file": Scheme(
        "stagetrace.store.file.reader", "file:///FILE (OTLP JSON lines or protobuf, or what `export` wrote)"
    ),
}


def open_store(url: str) -> Reader:
    """Return a reader of the store at `url`; nothing is sent before its first use. Raise StoreError for a bad URL.

    A plain path names a file, or the folder of a local store.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        path = Path(url)
        if not url or not path.exists():
            raise bad(url, "it has no scheme, and there is no such file or folder")
        scheme, url = ("local" if path.is_dir() else "file"), path.absolute().as_uri()
    if scheme.lower() not in SCHEMES:
        raise bad(url, f"there is no kind of store called {scheme!r}")
    open_url: Callable[[str], Reader] = import_module(SCHEMES[scheme.lower()].module).open_url
    return open_url(url)


def host_and_port(url: str, default_port: int) -> tuple[str, int]:
    """Return host and port of a URL that may hold nothing else. Raise StoreError if it does not."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise bad(url, str(error)) from None
    if not host:
        raise bad(url, "the host is missing")
    if not host.isprintable():
        raise bad(url, "no host has such a name")
    if port == 0:
        raise bad(url, "no server listens on port 0")
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise bad(url, "nothing but a host and a port belongs in it")
    return host, port or default_port


def bad(url: str, wrong: str) -> StoreError:
    """Return the error for a URL that cannot be opened."""
    forms = ", ".join(scheme.form for scheme in SCHEMES.values())
    return StoreError(f"cannot open store {url!r}: {wrong}\nsupported: {forms}")


def default_folder() -> Path:
    """Return the folder of the local store where none is named."""
    data = config.DATA_HOME.read() or Path.home() / ".local" / "share"
    return Path(data) / "stagetrace"
