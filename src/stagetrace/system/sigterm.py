"""SIGTERM in a process that serves and does not handle it: its requests are delivered, then the signal ends it.

In C, on Linux (`native/sigterm.c`). Where that is missing, `runtime/sigterm_python.py` does it while the main thread
waits for a server's end.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING, Any, Final

from stagetrace.guard import guarded, guarded_end
from stagetrace.system.native import native
from stagetrace.system.threads import allocate_lock, start

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND_S: Final = 6.5  # a delivery takes at most shutdown.SHUTDOWN_BOUND_S, and what is around it a little

_in_c: Any = native("sigterm")
IN_C: Final = hasattr(_in_c, "catch_sigterm")
# What is to end before the delivery: each waits for that, within a bound of its own.
awaited: list[Callable[[], object]] = []
_wanted = False  # from the time on when a server is about to serve here
_deliver: Callable[[], object]  # set with it
_at_hooks = False
_waiter = 0  # the process whose thread waits for the signal
_starting = allocate_lock()  # held while that thread is started


def catch(deliver: Callable[[], object]) -> None:
    """Let SIGTERM, where nothing handles it, wait for `deliver` from now on. Any thread may call it, and often."""
    global _wanted, _deliver
    _wanted, _deliver = True, deliver
    catch_again()


@guarded
def catch_again() -> None:
    """Do so once more, if it is wanted: in a forked child, or where the application has put the default back."""
    global _at_hooks, _waiter  # noqa: PLW0603
    if not IN_C or not _wanted or not _in_c.catch_sigterm(BOUND_S) or _waiter == os.getpid():
        return
    if not _starting.acquire(blocking=False):
        return  # another thread is at it
    try:
        if not _at_hooks:
            _at_hooks = True
            os.register_at_fork(after_in_child=_begin_again)
            atexit.register(_at_exit)
        start(_wait, "stagetrace-sigterm")
        _waiter = os.getpid()
    except BaseException:
        _in_c.give_up_sigterm()
        raise
    finally:
        _starting.release()


def _wait() -> None:
    while True:  # where the kernel spares the process, the signal may come again
        _in_c.wait_for_sigterm()
        guarded_end(_deliver)()
        _in_c.end_by_sigterm()
        catch_again()


def is_asked() -> bool:
    """Return whether SIGTERM has arrived and waits for a delivery."""
    return IN_C and bool(_in_c.sigterm_came())


@guarded_end
def end_if_asked() -> None:
    """End by SIGTERM, if it arrived while the process was ending by itself: untraced it would have ended so."""
    if is_asked():
        _in_c.end_by_sigterm()


@guarded_end
def _at_exit() -> None:
    """Deliver no more from here on: the interpreter ends, and with it our threads."""
    global _wanted  # noqa: PLW0603
    _wanted = False
    if is_asked():
        _deliver()
        _in_c.end_by_sigterm()
    _in_c.give_up_sigterm()


@guarded_end
def _begin_again() -> None:
    """Leave SIGTERM alone in a forked child, until it serves a request itself."""
    global _starting  # noqa: PLW0603
    _starting = allocate_lock()
    _in_c.give_up_sigterm()
