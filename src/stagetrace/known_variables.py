"""The STAGETRACE_* variables that there are, and those of an environment that are none: probably misspelt.

docs/environment.md says what each does; a test compares.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SWITCH: Final = "STAGETRACE"
PREFIX: Final = "STAGETRACE_"
# What a service is told by, and does nothing without the switch.
_OF_RECORDING: Final = ("SLA", "SPOOL", "SPOOL_MAX_BYTES", "RECORD_QUERY", "REDACT", "DISABLED_INSTRUMENTATIONS")
_NAMES: Final = (
    *_OF_RECORDING,
    *("LOG", "NATIVE", "STATUS", "STORE", "STORE_TOKEN"),
    *("SOCKET_WAIT", "WIRE", "CPU_WAIT", "GC_PAUSE", "USAGE", "PRESSURE", "THROTTLING"),
    *("DATA", "HOST", "GRPC_PORT", "HTTP_PORT", "QUERY_GRPC_PORT", "QUERY_HTTP_PORT", "TOKEN", "TLS_CERT", "TLS_KEY"),
    *("RETENTION", "RETENTION_SIZE", "MAX_REQUEST", "MAX_IN_FLIGHT"),
)
KNOWN: Final = (SWITCH, *(PREFIX + name for name in _NAMES))
# As Kubernetes and Docker set them in each container beside a service that is named `stagetrace`, or begins so.
_INJECTED: Final = re.compile(r".*_SERVICE_(HOST|PORT(_.*)?)|.*_PORT_\d+_(TCP|UDP|SCTP)(_.*)?")
_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://")
_AS_ALIKE_AS: Final = 0.6
_AS_ALIKE_AS_WITH_PREFIX: Final = 0.85


def misspelt(environ: Mapping[str, str]) -> list[tuple[str, str | None]]:
    """Return the variables that look like ours and are none, each with the one that was probably meant."""
    names = [name for name in environ if name.startswith("STA") and name not in KNOWN]
    found = [(name, _meant(name)) for name in sorted(names) if not _is_injected(name, environ[name])]
    return [(name, meant) for name, meant in found if meant is not None or name.startswith(PREFIX)]


def _is_injected(name: str, value: str) -> bool:
    return bool(_INJECTED.fullmatch(name) or (name.endswith("_PORT") and _ADDRESS.match(value)))


def _meant(name: str) -> str | None:
    import difflib

    if not name.startswith(PREFIX):
        return next(iter(difflib.get_close_matches(name, KNOWN, 1, _AS_ALIKE_AS_WITH_PREFIX)), None)
    rest = name.removeprefix(PREFIX).upper()
    longer = (known for known in _NAMES if rest.startswith(f"{known}_"))  # LOG_LEVEL
    near = next(iter(difflib.get_close_matches(rest, _NAMES, 1, _AS_ALIKE_AS)), None) or next(longer, None)
    return None if near is None else PREFIX + near


def said(found: Iterable[tuple[str, str | None]]) -> str:
    """Return in a line what is wrong with them."""
    each = (
        f"{name} is no variable of stagetrace" + (f": did you mean {meant}?" if meant else "") for name, meant in found
    )
    return "; ".join(each)


@guarded
def say_misspelt() -> None:
    """Say it of this process's variables."""
    found = misspelt(os.environ)
    if found:
        log.warning(said(found))


def said_unused(names: list[str]) -> str:
    """Return in a line that these variables do nothing, and what lets them."""
    which = f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} set and {SWITCH} is not"
    return f"{which}: services started from here are not recorded; {SWITCH}=1 records them"


def without_switch(environ: Mapping[str, str]) -> list[str]:
    """Return the variables of recording that are set where STAGETRACE is not, and so do nothing."""
    if SWITCH in environ:
        return []
    return [PREFIX + name for name in _OF_RECORDING if environ.get(PREFIX + name, "").strip()]
