"""The token of `stagetrace up` in a file: a flag shows in `ps`, and a variable in the environment of each child."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from stagetrace import log
from stagetrace.backend.options import BackendError

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST: Final = 4096  # bytes; more than any header may have
_OTHERS: Final = stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP


def read(file: Path) -> str:
    """Return the token in `file`, without the line end behind it. Raise BackendError.

    A file that others can read is logged, not refused: Kubernetes and Docker mount secrets so.
    """
    try:
        with file.open("rb") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            content = opened.read(_LONGEST + 1)
    except OSError as error:
        raise BackendError(
            f"cannot read the token in {file}: {error.strerror}\nname a file that holds the token and nothing else"
        ) from None
    token = content.removesuffix(b"\n").removesuffix(b"\r").decode("latin-1")
    if not token or len(content) > _LONGEST:
        wrong = "it is empty" if not token else f"it has more than {_LONGEST} bytes"
        raise BackendError(
            f"cannot use the token in {file}: {wrong}\nname a file that holds the token and nothing else"
        )
    if stat.S_ISREG(mode) and mode & _OTHERS:
        log.warning(f"other users may read or change the token in {file} (mode {stat.S_IMODE(mode):04o}): chmod 600")
    return token
