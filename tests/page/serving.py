"""Start `stagetrace page` as a person would, on a free port, and ask it as a browser does."""

from __future__ import annotations

import signal
import ssl
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import httpx

from backend.processes import WITHIN_S
from backend.running import serving

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Mapping
    from pathlib import Path

COMMAND: Final = (sys.executable, "-m", "stagetrace.cli.main", "page", "--port=0")
TOKEN: Final = "open/sesame+=~"  # noqa: S105 -- made for these tests
AS_BROWSER: Final = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # made once: httpx loads all authorities for each request
AS_PART: Final = {"accept": "text/html", "hx-request": "true"}


@dataclass
class Served:
    """A running page: what its `--json` line said, its process, and what it wrote to stderr."""

    ready: dict[str, Any]
    process: subprocess.Popen[str]
    log: Path

    @property
    def url(self) -> str:
        return str(self.ready["url"]).removesuffix("/")

    def get(self, path: str, **more: Any) -> httpx.Response:
        """Ask as a browser does, without following a redirect."""
        return self.ask("GET", path, **{"headers": AS_BROWSER, **more})

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send one request, of a client that keeps no cookie."""
        return httpx.request(method, self.url + path, timeout=60, verify=_NO_TLS, **more)

    def log_in(self, token: str = TOKEN, path: str = "/", **headers: str) -> httpx.Response:
        """Send the form as a browser does."""
        headers = {"origin": self.url, **AS_BROWSER, **headers}
        return self.ask("POST", "/login", data={"token": token, "next": path}, headers=headers)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(WITHIN_S)


@contextmanager
def run_page(folder: Path, store: str, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Served]:
    """Run a page over a store; what it says to stderr goes to `page.log` in `folder`."""
    log = folder / "page.log"
    with serving([*COMMAND, "--store", store, "--json", *flags], log, env) as (ready, process):
        yield Served(ready, process, log)
