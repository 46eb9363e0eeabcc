"""A limit of time for one part of the page: its queries are interrupted, since a browser would not wait for ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from stagetrace.errors import StagetraceError
from stagetrace.store import database

if TYPE_CHECKING:
    from stagetrace.store.base import Reader

_AGAIN_S: Final = 0.05  # an interrupt between two queries ends neither


class TookTooLong(StagetraceError):  # noqa: N818 -- what happened
    """The limit is over."""


@contextmanager
def limited(reader: Reader, seconds: float) -> Iterator[None]:
    """Limit the time for which this thread asks the reader. Raise TookTooLong where that was not enough.

    The reader is only closed then.
    """
    over, late = threading.Event(), threading.Event()
    thread = threading.get_ident()

    def watch() -> None:
        if not over.wait(seconds):
            late.set()
            while not over.wait(_AGAIN_S):
                database.interrupt({thread})
                with suppress(Exception):  # it was closed meanwhile
                    reader.interrupt()

    watching = threading.Thread(target=watch, name="stagetrace-page-limit", daemon=True)
    watching.start()
    try:
        yield
    except Exception:
        if late.is_set():
            message = f"the store needs more than {seconds:g} s for this, which is the limit of the page"
            raise TookTooLong(f"{message}\nselect less time or one service, or ask on a command line") from None
        raise
    finally:
        over.set()
        watching.join()
