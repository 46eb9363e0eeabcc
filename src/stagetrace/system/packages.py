"""Packages that are installed here: their versions, and from where stagetrace itself comes."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from importlib import metadata
from typing import Any, Final
from urllib.parse import unquote, urlsplit

# What recording joins, or sends by, where it is there.
JOINED: Final = (
    *("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-instrumentation"),
    *("opentelemetry-instrumentation-fastapi", "grpcio", "protobuf"),
)


def installed() -> dict[str, str]:
    """Return the versions of those of JOINED that are there."""
    found: dict[str, str] = {}
    for name in JOINED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def requirement(extra: str = "") -> str:
    """Return what `pip install` takes to get this package, with an extra, from where it came from: words of a shell."""
    origin = _origin()
    url, more = str(origin.get("url", "")), f"[{extra}]" if extra else ""
    if "dir_info" in origin and url.startswith("file://"):
        folder = shlex.quote(unquote(urlsplit(url).path) + more)
        return f"-e {folder}" if origin["dir_info"].get("editable") else folder
    if "vcs_info" in origin:
        url = f"{origin['vcs_info'].get('vcs', 'git')}+{url}"
    return shlex.quote(f"stagetrace{more} @ {url}" if url else f"stagetrace{more}")


def _origin() -> dict[str, Any]:
    """Return what the installer noted (PEP 610): nothing, where an index was asked."""
    try:
        found = json.loads(metadata.distribution("stagetrace").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
