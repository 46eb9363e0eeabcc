"""Packages that are installed here: whether they are new enough, and from where stagetrace itself comes."""

from __future__ import annotations

import builtins
import json
import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from stagetrace import log
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Container

# --- Whether the packages that recording is made of are here, and new enough: asked once, before anything is patched.
#
# Beside an older OpenTelemetry imports fail, or spans are lost; so then all runs as if untraced, and that is logged.
# Versions are read from the names of `.dist-info` folders: importing `importlib.metadata` takes 30 ms.

# As in pyproject.toml (a test compares), each with a module of it.
LEAST: Final = {
    "grpcio": ("1.66", "grpc"),
    "opentelemetry-api": ("1.45", "opentelemetry.trace"),
    "opentelemetry-exporter-otlp": ("1.45", "opentelemetry.exporter.otlp.version"),
    "opentelemetry-instrumentation": ("0.66b0", "opentelemetry.instrumentation.utils"),
    "opentelemetry-instrumentation-fastapi": ("0.66b0", "opentelemetry.instrumentation.fastapi"),
    "opentelemetry-proto": ("1.45", "opentelemetry.proto"),
    "opentelemetry-sdk": ("1.45", "opentelemetry.sdk"),
    "opentelemetry-semantic-conventions": ("0.66b0", "opentelemetry.semconv"),
    "opentelemetry-util-http": ("0.66b0", "opentelemetry.util.http"),
    "protobuf": ("5", "google.protobuf"),
    "pyyaml": ("5.1", "yaml"),
    "requests": ("2.28", "requests"),
}
# Without these nothing is recorded. The others only send spans, or are patched: some services go without gRPC.
ALWAYS_USED: Final = tuple(
    f"opentelemetry-{name}" for name in ("api", "sdk", "instrumentation", "semantic-conventions", "util-http")
)
_SUFFIX: Final = ".dist-info"

# A package with the version that is here, None where it is missing, and the one that is needed at least.
Unfit: TypeAlias = "tuple[str, str | None, str]"
_found: list[Unfit] | None = None  # until it is known


def fit(*, logs: bool = True) -> bool:
    """Return whether this process can record; where it cannot, log that once, if `logs`. Never raises."""
    global _found  # noqa: PLW0603
    if _found is None:
        found = _look() or []
        if not found and not _has_started():
            return True  # to be asked again when all of the path is there
        _found = found
    if _found and logs:
        log.once("versions", f"{problem(_found)}.\nAll runs as if untraced. To record: {remedy(_found)}")
    return not _found


@guarded
def _look() -> list[Unfit]:
    return unfit(installed(ALWAYS_USED))


def unfit(here: dict[str, str | None]) -> list[Unfit]:
    """Return the packages with which nothing can be recorded: too old, or missing and always used."""
    return [(name, here[name], least) for name, (least, _) in LEAST.items() if _is_unfit(name, here[name], least)]


def _is_unfit(name: str, here: str | None, least: str) -> bool:
    return name in ALWAYS_USED if here is None else is_older(here, least)


def installed(asked: Container[str] = LEAST) -> dict[str, str | None]:
    """Return the versions of LEAST's packages: empty where one is unknown, None where the package is missing.

    Of those that no folder on the path names, the `asked` ones are looked for by other means, which take long.
    """
    seen = _on_path()
    return {
        name: seen.get(name) or (_asked(name, module) if name in asked else "") for name, (_, module) in LEAST.items()
    }


def _on_path() -> dict[str, str]:
    """Return the versions that file names on the path show: `importlib.metadata` takes 30 ms to import."""
    seen: dict[str, str] = {}
    for folder in sys.path:
        try:
            entries = os.listdir(folder or ".")  # noqa: PTH208 -- `pathlib` is not loaded yet
        except OSError:
            continue
        there: dict[str, str] = {}
        for entry in entries:
            name, _, version = entry.removesuffix(_SUFFIX).partition("-")
            name = name.lower().replace("_", "-")
            # A broken upgrade may have left an older one beside it.
            if entry.endswith(_SUFFIX) and name in LEAST and not is_older(version, there.get(name, "")):
                there[name] = version
        seen = {**there, **seen}  # as imports: the first one on the path
    return seen


def _asked(name: str, module: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version
    from importlib.util import find_spec

    try:
        return version(name)
    except PackageNotFoundError:
        pass
    try:
        is_here = find_spec(module) is not None
    except ImportError:  # not even what it is a part of
        is_here = False
    return "" if is_here or not _has_started() else None


def _has_started() -> bool:
    """Return whether `site` is done with the path, which is before it gives the interpreter `quit`."""
    return hasattr(builtins, "quit")


def is_older(version: str, least: str) -> bool:
    """Return whether a version, where it is known, comes before another by the numbers in them."""
    return bool(version) and _numbers(version) < _numbers(least)


def _numbers(text: str) -> list[int]:
    """Return the numbers before any suffix: 0.66b0 as 0, 66."""
    numbers = []
    for part in text.split("."):
        suffix = part.lstrip("0123456789")
        if suffix == part:
            break
        numbers.append(int(part.removesuffix(suffix)))
        if suffix:
            break
    return numbers


def problem(found: list[Unfit]) -> str:
    """Return what is wrong, in a line."""
    each = [f"{name} {here or 'is missing'} (needed: {least})" for name, here, least in found]
    return f"nothing is recorded, since these packages are too old or missing: {', '.join(each)}"


def remedy(found: list[Unfit]) -> str:
    """Return the command that fixes it."""
    return "pip install " + " ".join(f"'{name}>={least}'" for name, _, least in found)


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
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = json.loads(distribution("stagetrace").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
