"""Listening sockets and TLS; a taken or forbidden port, or unusable files, are reported before any server starts."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Final

from stagetrace.backend.options import BackendError, Listening

_BACKLOG: Final = 4096  # beyond it a client connects a second later; the kernel may have a lower limit


def check_tls(options: Listening) -> None:
    """Raise BackendError where the files for TLS cannot be used."""
    if options.tls_cert is None or options.tls_key is None:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(options.tls_cert, options.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise BackendError(
            f"cannot use {options.tls_cert} with {options.tls_key}: {error}\n"
            "both must be readable PEM files, the key without a passphrase and of this certificate"
        ) from None


def listen(host: str, port: int, flag: str) -> socket.socket:
    """Return a socket that listens on `port`, or on a free one for 0. Raise BackendError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise BackendError(f"--host {host}: there is no such address here ({error})\nuse 127.0.0.1") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise refused(host, port, flag, error) from None
    found.setblocking(False)  # noqa: FBT003 -- takes no name
    return found


def refused(host: str, port: int, flag: str, error: OSError) -> BackendError:
    """Return the error for a port that cannot be opened, with what fixes it."""
    if error.errno == errno.EADDRINUSE:
        wrong = "another process listens there"
    elif error.errno == errno.EACCES:
        wrong = "this user may not open it"
    else:
        return BackendError(f"cannot listen on {host}, port {port}: {error.strerror}\ngive another --host")
    return BackendError(
        f"cannot listen on {host}, port {port}: {wrong}\nstop it, or give {flag} PORT (0 takes a free one)"
    )
