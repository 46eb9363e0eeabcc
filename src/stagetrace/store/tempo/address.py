"""Where a Tempo is, and as who it is asked: the store's URL, and a token of the environment."""

from __future__ import annotations

import re
from base64 import b64encode
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from stagetrace.store.access import FILES, TOKEN, Access, over_tls, parts_of, without_tls
from stagetrace.store.base import bad, host_and_port

_PORTS: Final = {"tempo": 3200, "tempos": 443}
_TENANT: Final = "tenant"
_VICTORIA: Final = "/select/tempo"  # the prefix of VictoriaTraces


@dataclass(frozen=True)
class Address:
    """Where a Tempo is, and as who it is asked."""

    scheme: str
    host: str
    port: int
    prefix: str
    access: Access
    user: str | None = None
    tenant: str | None = None

    @property
    def name(self) -> str:
        """Return the URL that messages show."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.prefix}"

    @property
    def is_victoria(self) -> bool:
        """Return whether it is a VictoriaTraces: it keeps all values as text, and finds spans by their end."""
        return self.prefix.endswith(_VICTORIA)

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of each request that say who asks."""
        found = {} if self.tenant is None else {"X-Scope-OrgID": self.tenant}
        token = self.access.token
        if self.user is not None:
            both = f"{self.user}:{token or ''}".encode()
            found["Authorization"] = f"Basic {b64encode(both).decode()}"
        elif token is not None:
            found["Authorization"] = f"Bearer {token}"
        return found


def parse(url: str) -> Address:
    """Return what `tempo[s]://[USER@]HOST[:PORT][/PREFIX][?tenant=NAME]` says; over TLS also `ca`, `cert` and `key`.

    Raise StoreError for a bad URL, as `access` does, and for a password.
    """
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    rest, _, query = rest.partition("?")
    who, is_given, rest = rest.rpartition("@") if "@" in rest.partition("/")[0] else ("", "", rest)
    user, is_secret, _ = who.partition(":")
    if is_secret:
        shown = f"{scheme}://{user}:...@{rest}"
        raise bad(shown, f"logs and `ps` would show the password: set {TOKEN} to it, and leave the user alone")
    if is_given and not user:
        raise bad(url, "the user before the @ is missing")
    where, _, prefix = rest.partition("/")
    host, port = host_and_port(f"{scheme}://{where}", _PORTS[scheme])
    is_tls = scheme == "tempos"
    names = (*(FILES if is_tls else ()), _TENANT)
    shown = ", ".join(f"{name}={'NAME' if name == _TENANT else 'FILE'}" for name in names)
    given = dict(parts_of(url, query, names, shown=shown))
    tenant = given.pop(_TENANT, None)
    if tenant is not None and not re.fullmatch(r"[\x21-\x7e]+", tenant):
        raise bad(url, "the tenant has characters that a header cannot carry")
    access = over_tls(url, list(given.items())) if is_tls else without_tls(host, "tempos")
    prefix = quote(unquote(prefix.strip("/")), safe="/")
    return Address(scheme, host, port, f"/{prefix}" if prefix else "", access, unquote(user) or None, tenant)
