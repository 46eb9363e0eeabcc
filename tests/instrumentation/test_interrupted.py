"""A signal's handler may raise wherever the main thread is: what was served is queued, what is queued is delivered.

The handler is called as Python calls it, at each place in turn, and not by a signal, which would come by chance.
"""

from __future__ import annotations

import gc
import itertools
import sys
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from otlp.sending import ENCODED, RESOURCE, names_in, processor_of
from stagetrace import guard
from stagetrace.bridge.processor import SLASpanProcessor
from stagetrace.otlp.export.response import Outcome
from stagetrace.patches.gunicorn import _ending_after_request
from stagetrace.protocols import wsgi_request as wsgi
from stagetrace.request.context import here
from stagetrace.request.current import current
from stagetrace.runtime.runtime import runtime
from stagetrace.sla.entry_recorder import EntryRecorder
from stagetrace.tracing.propagation import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType


ENVIRON = {
    "REQUEST_METHOD": "GET",
    "PATH_INFO": "/",
    "SERVER_NAME": "x",
    "SERVER_PORT": "80",
    "wsgi.url_scheme": "http",
}
SIGQUIT = 3


@contextmanager
def calling(handler: Callable[[FrameType], None], at: int) -> Iterator[list[str]]:
    """Call `handler` at the `at`th place of this thread within the block; yield a list that then names it.

    Python looks for signals where a function begins, and where one in C has returned.
    """
    left = itertools.count(at, -1)
    called: list[str] = []

    def look(frame: FrameType, event: str, _argument: Any) -> None:
        is_place = event in ("call", "c_return") and frame.f_globals.get("__name__") not in (__name__, "contextlib")
        if is_place and next(left) == 0:
            sys.setprofile(None)
            called.append(f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}")
            handler(frame)

    gc.disable()  # its callbacks, of hypothesis say, are no place of ours
    sys.setprofile(look)
    try:
        yield called
    finally:
        sys.setprofile(None)
        gc.enable()


class Worker:
    """As gunicorn's: its handler raises, its loop looks at `alive`."""

    alive = True

    def handle_quit(self, _number: int, _frame: FrameType | None) -> None:
        self.alive = False
        sys.exit(0)


class Kept:
    """A sender that keeps how many spans it was given."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def put(self, _resource: Any, _scope: Any, _encoded: bytes, spans: int, *, breach: bool) -> None:  # noqa: ARG002
        self.counts.append(spans)


class Closable(list[bytes]):
    """A response that counts how often it is closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(params=["* within 1us", "* within 60m", None], ids=["breach", "good", "no promise"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    provider = TracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False)
    processor = SLASpanProcessor(request.param, provider._active_span_processor)
    processor.has_others = False
    sender = Kept()
    monkeypatch.setattr(runtime, "ready", True)
    monkeypatch.setattr(here, "recorder", EntryRecorder(provider, processor, [sender]))  # type: ignore[list-item]
    guard.failures.clear()
    yield sender
    current.set(None)
    here.attach(NO_CONTEXT)
    assert not guard.failures


def test_wherever_gunicorn_ends_its_worker_an_answered_request_is_queued_once(kept: Kept) -> None:
    """On SIGQUIT, which Ctrl-C becomes, its handler raises SystemExit in a worker that may be ending a request."""
    places = set()
    for at in itertools.count():
        worker, answered = Worker(), Closable([b"all"])
        handle: Any = _ending_after_request(Worker.handle_quit)
        answer = wsgi.serve(None, application(answered), dict(ENVIRON), lambda *_: None)
        assert list(answer) == [b"all"]
        with calling(lambda frame: handle(worker, SIGQUIT, frame), at) as called:  # noqa: B023 -- called here
            with suppress(SystemExit):
                answer.close()
            del answer
        assert len(kept.counts) == 1, f"{len(kept.counts)} requests are queued after {called}"
        assert answered.closed == 1
        kept.counts.clear()
        if not called:
            break
        assert not worker.alive
        places.update(called)
    assert any(place.endswith(" finish") for place in places)


def application(answer: Closable) -> Any:
    def app(_environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return answer

    return app


class Slow:
    """A transport that counts what it is given once it has taken its time."""

    def __init__(self) -> None:
        self.spans = 0

    def send(self, request: bytes) -> Outcome:
        time.sleep(0.02)
        self.spans += len(names_in(request))
        return Outcome(delivered=True)

    def close(self) -> None:
        """Nothing is open."""


def test_wherever_the_start_of_the_sending_thread_is_interrupted_a_flush_delivers_once() -> None:
    """The first request of a process starts it; the thread may run when that raises, and it may not."""
    for at in itertools.count():
        transport = Slow()
        made = processor_of(transport)
        with calling(raise_exit, at) as called, suppress(SystemExit):
            made.put(RESOURCE, None, ENCODED, 1, breach=False)
        assert made.force_flush(20_000), called
        assert transport.spans == made.counts()["received"], called
        made.shutdown()
        if not called:
            break


def raise_exit(_frame: FrameType) -> None:
    raise SystemExit
