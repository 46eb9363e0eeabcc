"""What WSGI servers share: they get their application wrapped, prepare before the first request, deliver at the end."""

from __future__ import annotations

import functools
from typing import Any

from stagetrace.guard import guarded
from stagetrace.protocols.wsgi import recorder, traced


def patch_server(server: Any, loop: str, attribute: str | None = None) -> None:
    """Wrap a server's class: its constructor, which keeps the application as `attribute`, and its serving `loop`."""
    if attribute is not None:
        server.__init__ = _keeping(server.__init__, attribute)
    if hasattr(server, loop):  # perhaps inherited
        setattr(server, loop, _prepared(getattr(server, loop)))


def _keeping(original: Any, attribute: str) -> Any:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _wrap(self, attribute)

    return __init__


@guarded
def _wrap(server: Any, attribute: str) -> None:
    app = getattr(server, attribute)
    if app is not None:
        setattr(server, attribute, traced(app))


def _prepared(original: Any) -> Any:
    delivered = delivering(original)

    @functools.wraps(original)
    def loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        prepare()
        return delivered(self, *args, **kwargs)

    return loop


def delivering(original: Any) -> Any:
    """Return a serving loop that delivers spans when SIGTERM ends it."""
    from stagetrace.runtime.sigterm_python import delivering_first

    @functools.wraps(original)
    def loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        with delivering_first():
            return original(self, *args, **kwargs)

    return loop


@guarded
def prepare() -> None:
    """Prepare the recording before the first request."""
    from stagetrace.runtime.runtime import runtime

    runtime.prepare_now()
    recorder()


@guarded
def deliver() -> None:
    """Deliver the requests that have ended, at the end of the server."""
    from stagetrace.runtime.runtime import runtime

    if runtime.ready:
        runtime.flush_now()
