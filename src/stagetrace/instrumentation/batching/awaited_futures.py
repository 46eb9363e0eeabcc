"""Futures of thread pools that stand for work of a request, and the asyncio futures that are chained to them."""

from __future__ import annotations

import functools
import sys
from typing import Any, Protocol

from stagetrace.guard import guarded

JOB = "_stagetrace_job"  # on a future: the Job that it stands for
_chains: list[Any] = []  # asyncio's own function, once that is wrapped


class Job(Protocol):
    """Work that a request gave away with a future, and that nobody may have taken up yet."""

    is_taken: bool

    def wait_for(self, awaited: Any, future: Any) -> None:
        """Begin to wait if asyncio's future `awaited`, which stands for `future`, is awaited by now."""


def patch_asyncio() -> None:
    """Wrap what chains asyncio's futures to a pool's, once both are in use: many programs import asyncio alone."""
    futures: Any = sys.modules.get("asyncio.futures")
    if futures is not None and not _chains:
        _chains.append(futures._chain_future)
        futures._chain_future = _chaining(futures._chain_future)


def _chaining(original: Any) -> Any:
    @functools.wraps(original)
    def chain_future(source: Any, destination: Any) -> None:
        original(source, destination)
        job = getattr(source, JOB, None)
        if job is not None and not job.is_taken:
            _look_soon(job, destination, source)

    return chain_future


@guarded
def _look_soon(job: Job, awaited: Any, future: Any) -> None:
    """Look when the coroutine that runs now lets others run: whether it, or another, waits for what it has given."""
    awaited.get_loop().call_soon(job.wait_for, awaited, future)
