"""A policy file that a process follows: its policy, and why the newest content is not in force.

Contents are compared, not times: these do not change where a clock was set back, or a link points elsewhere.
"""

from __future__ import annotations

import os
from contextlib import suppress
from hashlib import blake2b
from typing import TYPE_CHECKING

from stagetrace import log
from stagetrace.errors import PolicyError
from stagetrace.policy.policy import Policy
from stagetrace.policy.policy_file import content, decoded

with suppress(ImportError):  # not in a thread: greenlets may have the import locks
    import yaml  # noqa: F401

if TYPE_CHECKING:
    from typing import Final

READ_FIRST: Final = "STAGETRACE_SLA is ignored, requests are traced without a verdict: {}"
READ_AGAIN: Final = "the policy file has changed and cannot be used, the policy from before stays in force: {}"


class FollowedFile:
    """The file of STAGETRACE_SLA. One thread looks at it; any thread may read `policy` and `problem`.

    `policy` is that of the newest content that can be used; None if there was none yet. `problem`: what is wrong in
    the newest content, and what fixes it; empty if nothing is.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._absolute = os.path.abspath(path)  # noqa: PTH100 -- keeps `..` behind a link; the folder may change
        self.policy: Policy | None = None
        self.problem = ""
        self._taken = b""  # what identifies the content that `policy` or `problem` are of
        self._seen = b""  # at the last look
        self._pid = os.getpid()

    def read(self) -> None:
        """Read it for the first time."""
        found = self._content()
        self._take(found, READ_FIRST)
        self._taken = self._seen = _identity(found)

    def look(self) -> None:
        """Read it again, and take over what is new in it as soon as two looks have seen it.

        Before that it may be still written, and half of a file may be a whole policy.
        """
        if self._pid != os.getpid():  # of a forked child: its parent's thread may have been at any place here
            self._pid, self._taken = os.getpid(), b""
        found = self._content()
        identity = _identity(found)
        if identity == self._seen and identity != self._taken:
            self._take(found, READ_AGAIN if self.policy is not None else READ_FIRST)
            self._taken = identity
        self._seen = identity

    def _content(self) -> bytes | str:
        """Return what is in it, or why it cannot be read."""
        try:
            return content(self._absolute)
        except PolicyError as error:
            return str(error)

    def _take(self, found: bytes | str, message: str) -> None:
        policy = found if isinstance(found, str) else self._policy(found)
        if isinstance(policy, str):
            self.problem = policy
            log.once(f"policy {_identity(found).hex()}", message.format(policy))
            return
        if policy != self.policy:
            is_new, self.policy = self.policy is not None, policy
            if is_new:
                log.info(f"the policy file {self.path} has changed, judging by: {len(policy.objectives)} objectives")
        self.problem = ""

    def _policy(self, found: bytes) -> Policy | str:
        """Return the policy of a content, or what is wrong in it."""
        try:
            return Policy.read(decoded(found, self.path), self.path)
        except PolicyError as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 -- our own fault: the service is to be recorded all the same
            what = f"{type(error).__name__}: {str(error)[:200]}"
            return f"cannot read the policy {self.path}: {what}\nthis is a fault of stagetrace: please report it"


def _identity(found: bytes | str) -> bytes:
    return blake2b(found if isinstance(found, bytes) else b"!" + found.encode(), digest_size=16).digest()
