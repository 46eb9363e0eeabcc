"""Posting JSON to a receiver: bounded in time whatever it does, without redirects, no secret of it in any error."""

from __future__ import annotations

import hashlib
import threading
from typing import Any, Final
from urllib.parse import urlsplit

from stagetrace.backend.notify.base import NotTaken
from stagetrace.hosts import is_loopback

TIMEOUT_S: Final = 10.0  # to connect, and until more of the response comes
DEADLINE_S: Final = 20.0  # for all of it
_MOST_STUCK: Final = 4  # posts that have not ended by their deadline


class Target:
    """Where to post. Used by one thread at a time."""

    def __init__(self, url: str, token: str = "", deadline_s: float = DEADLINE_S) -> None:
        """Post to a URL, of which only scheme, host and port are ever shown: its path may be a secret."""
        parts = urlsplit(url)
        self.shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self.key = hashlib.sha256(url.encode()).hexdigest()[:16]
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._basic = (parts.username or "", parts.password or "") if parts.username else None
        self._headers = {"Content-Type": "application/json", "User-Agent": "stagetrace"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._deadline_s = deadline_s
        self._stuck: list[threading.Thread] = []

    def post(self, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Post a JSON document. Raise NotTaken."""
        self._stuck = [one for one in self._stuck if one.is_alive()]
        if len(self._stuck) >= _MOST_STUCK:
            raise NotTaken(f"{len(self._stuck)} earlier requests to it have not ended")
        why: list[str] = []
        thread = threading.Thread(
            target=lambda: why.extend(self._tried(body, headers or {})), name="stagetrace-post", daemon=True
        )
        thread.start()
        # A timeout of a socket begins anew with each byte that comes.
        thread.join(self._deadline_s)
        if thread.is_alive():
            self._stuck.append(thread)
            raise NotTaken(f"no whole response within {self._deadline_s:g} s")
        if why:
            raise NotTaken(why[0])

    def _tried(self, body: bytes, headers: dict[str, str]) -> list[str]:
        """Return why it was not taken; nothing if it was."""
        import requests

        try:
            with requests.post(
                self._url,
                data=body,
                headers={**self._headers, **headers},
                auth=self._credentials,
                timeout=TIMEOUT_S,
                allow_redirects=False,
                stream=True,  # its body is nothing to us, however long it is
            ) as response:
                status = response.status_code
        except (OSError, ValueError) as error:  # those of requests are OSErrors, too
            return [reason(error)]
        if 200 <= status < 300:  # noqa: PLR2004
            return []
        redirect = ", which is not followed: name the address to which it redirects" if 300 <= status < 400 else ""  # noqa: PLR2004
        return [f"it responded with {status}{redirect}"]

    def _credentials(self, request: Any) -> Any:
        """Return a request with those of the URL; a function, since otherwise those of ~/.netrc are taken."""
        from requests.auth import HTTPBasicAuth

        return request if self._basic is None else HTTPBasicAuth(*self._basic)(request)


def reason(error: BaseException) -> str:
    """Return what went wrong with a connection, without its URL, which texts of libraries have."""
    import requests

    if isinstance(error, requests.Timeout):
        return f"no response within {TIMEOUT_S:g} s"
    innermost, seen = error, {id(error)}
    while (inner := _inner(innermost)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        innermost = inner
    if isinstance(error, requests.exceptions.SSLError):
        return f"TLS failed: {getattr(innermost, 'verify_message', '') or type(innermost).__name__}"
    return (isinstance(innermost, OSError) and innermost.strerror) or type(innermost).__name__


def _inner(error: BaseException) -> BaseException | None:
    first = error.args[0] if error.args else None
    found = getattr(error, "reason", None), first, error.__cause__, error.__context__
    return next((one for one in found if isinstance(one, BaseException)), None)


def checked(url: str, token: str) -> str:
    """Return a URL to which alerts can be posted. Raise ValueError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"it is no address: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("it is no address of a receiver over HTTP: write https://host/path")
    if token and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError(f"the token would be readable on the way to {parts.hostname}: write https://")
    return url
