"""Futures for which a request waits: in a thread, or as a coroutine by asyncio's future that is chained to them."""

from __future__ import annotations

import functools
import sys
from typing import Any, Protocol

from stagetrace.guard import guarded

JOB = "_stagetrace_job"  # on a future: the Job that it stands for
_originals: list[Any] = []  # asyncio's own function, once that is wrapped


class Job(Protocol):
    """Work of a request with a future, which waits to be taken by a thread of a pool, or by a consumer."""

    is_taken: bool

    def wait_for(self, awaited: Any, future: Any) -> None:
        """Begin the wait if asyncio's future `awaited`, which stands for `future`, is awaited by now."""


def patch_asyncio() -> None:
    """Wrap the function that chains asyncio's futures to a pool's, once both are used: most use only asyncio."""
    futures: Any = sys.modules.get("asyncio.futures")
    if futures is not None and not _originals:
        _originals.append(futures._chain_future)
        futures._chain_future = _chaining(futures._chain_future)


def _chaining(original: Any) -> Any:
    @functools.wraps(original)
    def chain_future(source: Any, destination: Any) -> None:
        original(source, destination)
        job = getattr(source, JOB, None)
        if job is not None and not job.is_taken:
            _check_soon(job, destination, source)

    return chain_future


@guarded
def _check_soon(job: Job, awaited: Any, future: Any) -> None:
    """Check when the running coroutine yields to the loop, whether a coroutine waits for the future."""
    awaited.get_loop().call_soon(job.wait_for, awaited, future)
