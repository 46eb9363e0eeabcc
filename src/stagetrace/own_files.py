"""Files in folders that others may write to as well: a link that somebody has put there is not followed."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)


def open_own(path: Path, flags: int) -> int:
    """Open a regular file of this user's, which is made (0600) where `flags` have O_CREAT.

    Raise OSError where it is a link, no regular file, or another user's. Root may open those of all users.
    """
    refusal = PermissionError(errno.EPERM, f"{path} is a link, or no regular file of this user's", str(path))
    try:
        descriptor = os.open(path, flags | _FLAGS, 0o600)
    except OSError as error:
        raise (refusal if error.errno == errno.ELOOP else error) from None
    about = os.fstat(descriptor)
    is_ours = not hasattr(os, "geteuid") or os.geteuid() in (0, about.st_uid)
    if not stat.S_ISREG(about.st_mode) or not is_ours:
        os.close(descriptor)
        raise refusal
    return descriptor
