"""What each failure of a call to a Tempo means: the error and its remedy."""

from __future__ import annotations

import http.client
import socket
import ssl
from textwrap import shorten
from typing import TYPE_CHECKING, Final, NamedTuple

from stagetrace.store.access import TOKEN

if TYPE_CHECKING:
    from stagetrace.store.tempo.address import Address

PATH: Final = "name the host, port and path of its HTTP API: tempo://HOST:3200[/PREFIX]"
_LONGEST: Final = 200  # of a server's error text; some send whole pages
# Of what these texts are part, whatever the status.
_TEXTS: Final = {
    "no org id": ("it holds several tenants, and none is named", "name one: tempo://HOST:PORT?tenant=NAME"),
    "to an HTTPS server": ("a server answers there, but only over TLS", "ask over TLS: tempos://HOST:PORT"),
}
BROKEN: Final = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


class Response(NamedTuple):
    """A response of HTTP."""

    status: int
    kind: str
    body: bytes

    @property
    def text(self) -> str:
        """Return its text as a message shows it."""
        return shorten(self.body[:4096].decode(errors="replace"), width=_LONGEST, placeholder=" ...")


def explain(response: Response, address: Address) -> tuple[str, str]:
    """Return the error and its remedy, from a response of HTTP."""
    text = response.text
    for part, found in _TEXTS.items():
        if part in text:
            return found
    if response.status in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        has = address.access.token is not None
        what = f"it refuses the token in {TOKEN}" if has else "it refuses us without a token"
        user = (
            "" if address.user else "; where it asks for a user too, as Grafana Cloud does: tempos://USER@HOST/PREFIX"
        )
        return f"{what} ({text or response.status})", f"set {TOKEN} to the token of this server{user}"
    if response.status == http.client.NOT_FOUND:
        return "there is no Tempo at this path", f"{PATH}; Tempo 2.6 or newer"
    if response.status == http.client.TOO_MANY_REQUESTS:
        return f"it refuses more queries for now ({text})", "ask again later, or for less time (--since)"
    if response.status // 100 == http.client.MULTIPLE_CHOICES // 100:
        return f"it redirects to another address ({response.status})", PATH
    return (
        f"it reports {response.status}: {text or 'no details'}",
        "see its log; other stores and times may still answer",
    )


def explain_error(error: Exception, timeout_s: float, address: Address) -> tuple[str, str]:
    """Return the error and its remedy where there was no response."""
    if isinstance(error, ssl.SSLError):
        return _explain_tls(error, address)
    if isinstance(error, BROKEN):
        remedy = "see its log"
        if not address.access.tls:
            remedy = f"a server with TLS does so: tempos://HOST:PORT; else {remedy}"
        return f"the connection broke ({error})", remedy
    if isinstance(error, http.client.HTTPException):
        return "a server answers there, but not in HTTP", PATH
    if isinstance(error, socket.gaierror):
        return "there is no host of this name", "check the host in the store's URL"
    if isinstance(error, TimeoutError):
        remedy = "check that this is Tempo's HTTP port, or ask for less time (--since)"
        return f"no response within {timeout_s:g} s", remedy
    return f"no server listens there ({error})", "start Tempo, or check host and port: its HTTP port is normally 3200"


def _explain_tls(error: ssl.SSLError, address: Address) -> tuple[str, str]:
    if isinstance(error, ssl.SSLCertVerificationError):
        if "ostname" in error.verify_message or "IP address" in error.verify_message:
            remedy = "name the host as the certificate does (openssl x509 -noout -ext subjectAltName shows it)"
            return "its certificate is of another host than this", remedy
        remedy = "check that the file named by ca= is of the authority that signed it"
        if "ca" not in address.access.paths:
            remedy = "name the file of the authority that signed it: tempos://HOST:PORT?ca=FILE"
        return f"its certificate is not trusted ({error.verify_message})", remedy
    if error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE"):
        return "a server answers there, but not with TLS", "ask without TLS: tempo://HOST:PORT"
    remedy = "see its log"
    if "cert" not in address.access.paths:
        remedy = f"a server that asks for a client's certificate does so: add cert=FILE&key=FILE; else {remedy}"
    return f"the connection broke ({error.reason or error})", remedy
