"""SIGTERM without `native/sigterm.c`: it waits for the delivery while the main thread waits for a server's end.

There a handler of Python's runs at once. Elsewhere, as in a long computation in C, it would keep the process from
ending when the signal comes.
"""

from __future__ import annotations

import atexit
import os
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.system.sigterm import IN_C
from stagetrace.system.threads import start_new_thread

if TYPE_CHECKING:
    from collections.abc import Iterator

_has_hooks = False
_waits = False  # whether a block of `delivering_first` runs
_asked = False  # whether SIGTERM has come
_delivered = False


@contextmanager
def delivering_first() -> Iterator[None]:
    """Let SIGTERM, where nothing handles it, wait for the delivery while the block runs."""
    ours = begin()
    try:
        yield
    finally:
        if ours:
            give_up()


@guarded
def begin() -> bool:
    """Let SIGTERM, where nothing handles it, wait for the delivery until `give_up`; return whether that is so."""
    global _has_hooks, _waits  # noqa: PLW0603
    if IN_C:
        return False
    if not _has_hooks:
        _has_hooks = True
        atexit.register(end_if_asked)
        if hasattr(os, "register_at_fork"):
            # A child ends by SIGTERM from the first: Python loses a signal between the fork and its hooks.
            os.register_at_fork(before=_let_go, after_in_parent=_go_on, after_in_child=_leave_alone)
    _waits = _put(signal.SIG_DFL, _end)
    return _waits


@guarded_end
def give_up() -> None:
    """Let SIGTERM end the process at once again."""
    global _waits  # noqa: PLW0603
    _waits = False
    _put(_end, signal.SIG_DFL)


@guarded_end
def end_if_asked() -> None:
    """End by SIGTERM, if it arrived while the process was ending by itself: untraced it would have ended so."""
    from stagetrace.runtime.runtime import runtime

    if _asked:
        runtime.flush_now()
        give_up()
        os.kill(os.getpid(), signal.SIGTERM)


@guarded_end
def _leave_alone() -> None:
    global _asked  # noqa: PLW0603
    _asked = False
    give_up()


@guarded_end
def _let_go() -> None:
    _put(_end, signal.SIG_DFL)


@guarded_end
def _go_on() -> None:
    if _waits:
        _put(signal.SIG_DFL, _end)


def _put(old: Any, new: Any) -> bool:
    """Replace one handler by another, and return whether it was the one in place. Only main threads may do it."""
    if signal.getsignal(signal.SIGTERM) is not old:
        return False
    try:
        signal.signal(signal.SIGTERM, new)
    except ValueError:  # not the main thread; not asked of `threading`, to which each greenlet is one
        return False
    return True


def _end(_number: int, _frame: Any) -> None:
    """End as without a handler, once all is delivered, however often it is asked for meanwhile."""
    global _asked  # noqa: PLW0603
    if _asked and not _delivered:
        return
    if not _asked:
        _asked = True
        try:
            # In a thread, since this one may be that of the event loop on which RPCs still end. By the plain function:
            # it takes no lock of Python's, which this thread may hold where the signal has interrupted it.
            start_new_thread(_deliver_and_end, ())
        except BaseException:  # noqa: BLE001, S110 -- no thread to be had: then as if we were not here
            pass
        else:
            return
    give_up()
    os.kill(os.getpid(), signal.SIGTERM)


def _deliver_and_end() -> None:
    global _delivered  # noqa: PLW0603
    from stagetrace.runtime.runtime import runtime

    try:
        runtime.deliver_all()
    finally:
        _delivered = True
        os.kill(os.getpid(), signal.SIGTERM)
