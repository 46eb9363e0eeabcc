"""SIGTERM in a serving process that does not handle it: what has ended is delivered before the process ends by it.

Only while the main thread waits for a server's end, where a handler runs at once: elsewhere, as in a long computation
in C, one of Python's would keep the process from ending when the signal comes.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.real_threads import start_new_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_deliver: Callable[[], Any] | None = None  # what is done before the end
_waits = False  # whether a block of `delivering_first` runs


@contextmanager
def delivering_first(deliver: Callable[[], Any]) -> Iterator[None]:
    """Let SIGTERM, where nobody handles it, wait for `deliver` while the block runs."""
    ours = catch(deliver)
    try:
        yield
    finally:
        if ours:
            give_up()


@guarded
def catch(deliver: Callable[[], Any]) -> bool:
    """Let SIGTERM, where nobody handles it, wait for `deliver` until `give_up`; return whether that is so."""
    global _deliver, _waits  # noqa: PLW0603
    if _deliver is None and hasattr(os, "register_at_fork"):
        # A child's end is its own, from the first: Python forgets a signal that comes between the fork and its hooks.
        os.register_at_fork(before=_let_go, after_in_parent=_go_on, after_in_child=give_up)
    _deliver = deliver
    _waits = _put(signal.SIG_DFL, _end)
    return _waits


@guarded_end
def give_up() -> None:
    """Let SIGTERM end the process at once again."""
    global _waits  # noqa: PLW0603
    _waits = False
    _put(_end, signal.SIG_DFL)


@guarded_end
def _let_go() -> None:
    _put(_end, signal.SIG_DFL)


@guarded_end
def _go_on() -> None:
    if _waits:
        _put(signal.SIG_DFL, _end)


def _put(old: Any, new: Any) -> bool:
    """Put one handler in place of another, and tell whether that was the one in place. Only main threads may do it."""
    if signal.getsignal(signal.SIGTERM) is not old:
        return False
    try:
        signal.signal(signal.SIGTERM, new)
    except ValueError:  # not the main thread; not asked of `threading`, to which each greenlet is one
        return False
    return True


def _end(_number: int, _frame: Any) -> None:
    """End as without a handler, after delivering. A second signal ends the process at once."""
    give_up()
    try:
        # In a thread, since this one may be that of the event loop on which RPCs still end. By the plain function: it
        # takes no lock of Python's, which this thread may hold where the signal has interrupted it.
        start_new_thread(_deliver_and_end, ())
    except BaseException:  # noqa: BLE001 -- no thread to be had: then as if we were not here
        os.kill(os.getpid(), signal.SIGTERM)


def _deliver_and_end() -> None:
    try:
        if _deliver is not None:
            _deliver()
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
