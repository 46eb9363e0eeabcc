"""The way to one receiver: open the transport late, keep forks safe, turn failures into outcomes."""

from __future__ import annotations

import _thread
import os
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from stagetrace.otlp.export.response import Outcome
from stagetrace.system.threads import RLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stagetrace.otlp.export.transport import Transport

_FORK_WAITS_FOR_BATCH_S: Final = 0.1
_FORK_WAITS_FOR_LOADING_S: Final = 5.0  # the child would wait for ever


@contextmanager
def not_recorded() -> Iterator[None]:
    """Have OpenTelemetry's instrumentations record nothing of what is sent in the block."""
    if "opentelemetry.context" not in sys.modules:  # without it there are none
        yield
        return
    from opentelemetry import context

    found = context.get_current()
    # The keys of its suppress_instrumentation(), whose module imports wrapt and 13 others.
    for key in (context._SUPPRESS_INSTRUMENTATION_KEY, "suppress_instrumentation"):  # noqa: SLF001
        found = context.set_value(key, True, found)  # noqa: FBT003
    token = context.attach(found)
    try:
        yield
    finally:
        context.detach(token)


class ExportClient:
    """Send requests to `target`, as messages name the receiver.

    `open_transport` is called when the first batch is sent, since what it imports takes longer than all the rest of a
    service's start, and again in a forked child, where connections of its parent are of no use.
    """

    def __init__(self, open_transport: Callable[[], Transport], target: str) -> None:
        self.target = target
        self._open = open_transport
        self._transport: Transport | None = None
        self._stale = True  # there is no transport, or it is the parent's
        self._failure = ""  # why there is no transport
        self._lacks_room = False  # descriptors or threads are missing: it can be opened later
        self._closed = False
        self._busy = RLock()  # held while the transport is opened or sends: see `before_fork`
        self._forking: int | None = None  # the thread that holds it for a fork
        self._hangs = False  # a fork has waited in vain for the request under way

    def before_fork(self) -> None:
        """Wait for the request under way, once and for a bounded time; `after_fork` or `begin_again` follow.

        gRPC does not work in a child of a process that was just calling into it, and a module that was being imported
        never becomes complete there.
        """
        if self._hangs:
            return
        if self._busy.acquire(timeout=_FORK_WAITS_FOR_LOADING_S if self._stale else _FORK_WAITS_FOR_BATCH_S):
            self._forking = threading.get_ident()
        else:
            self._hangs = True

    def after_fork(self) -> None:
        """Go on, in the parent."""
        if self._forking == threading.get_ident():
            self._forking = None
            self._busy.release()

    def begin_again(self) -> None:
        """Forget the parent's connections, in a forked child."""
        self._stale = True  # kept until there is another: gRPC has not yet noticed the fork
        self._busy = RLock()
        self._forking = None
        self._hangs = False

    def send(self, request: bytes) -> Outcome:
        """Send a serialized request once; return what became of it. Never raises."""
        with self._busy:
            self._hangs = False
            if self._closed:
                return Outcome(delivered=False, retryable=True, reason="the exporter is shut down")
            if not self.load() or self._transport is None:
                can_retry = self._lacks_room
                return Outcome(delivered=False, retryable=can_retry, misdirected=not can_retry, reason=self._failure)
            try:
                with not_recorded():
                    return self._transport.send(request)
            except Exception as error:  # noqa: BLE001 -- the sending thread must go on
                return Outcome(delivered=False, reason=f"{type(error).__name__}: {error}")

    def load(self) -> bool:
        """Open the transport, unless it is open; return whether it is. Never raises."""
        if self._stale:
            with self._busy:
                if self._stale and (self._lacks_room or not self._failure):
                    try:
                        with not_recorded():  # a credential provider may ask for a token
                            self._transport = self._open()
                        self._stale = False
                    except NoRoomError as error:
                        self._lacks_room, self._failure = True, f"the exporter cannot be loaded yet: {error}"
                    except Exception as error:  # noqa: BLE001 -- settings and packages that do not fit
                        self._lacks_room = False
                        self._failure = f"the exporter cannot be loaded: {type(error).__name__}: {error}"
        return not self._stale

    def shutdown(self) -> None:
        """Close the transport; a call that is under way may end by that."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()


# --- Whether this process can have the descriptors and threads that an exporter takes.
#
# gRPC ends the process by `abort()` where it gets none, and an import that has failed half-way for want of them may
# fail for good: so they are tried first, and given back.

DESCRIPTORS: Final = 8  # gRPC takes five
_GONE_S: Final = 0.01  # an ended thread counts as one for a moment


class NoRoomError(Exception):
    """Descriptors or threads are missing now; later there may be some."""


def require(*, grpc: bool) -> None:
    """Raise NoRoomError where an exporter, one that uses `grpc` or not, would not get what it takes."""
    _descriptors()
    if grpc:
        _threads(min(16, os.cpu_count() or 2) + 6)  # as many as gRPC starts, and two more


def _descriptors() -> None:
    opened: list[int] = []
    try:
        opened.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(DESCRIPTORS))
    except OSError as error:
        raise NoRoomError(f"fewer than {DESCRIPTORS} file descriptors are left, see `ulimit -n`") from error
    finally:
        for number in opened:
            os.close(number)


def _threads(wanted: int) -> None:
    ends = _thread.allocate_lock()

    def wait() -> None:
        with ends:
            pass

    ends.acquire()
    try:
        for _ in range(wanted):
            _thread.start_new_thread(wait, ())
    except (RuntimeError, MemoryError) as error:
        if "interpreter shutdown" in str(error):  # of Python 3.12 and later; gRPC's threads are not Python's
            return
        raise NoRoomError(f"fewer than {wanted} threads can be started, which gRPC needs, see `ulimit -u`") from error
    finally:
        ends.release()
        time.sleep(_GONE_S)
