"""`queue.SimpleQueue` as it is in C, also where gevent has put its own into `queue`."""

from __future__ import annotations

try:
    from _queue import Empty, SimpleQueue
except ImportError:  # no CPython
    from queue import Empty, SimpleQueue

__all__ = ["Empty", "SimpleQueue"]
