"""The entry span of a request, for its adapter: what is left of it, and what a failure does."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context

from stagetrace import guard
from stagetrace.bridge.entry import SdkSpan, seen
from stagetrace.protocols.asgi_request import AsgiRequest
from stagetrace.protocols.wsgi_request import AdoptedRequest
from stagetrace.request.context import open_entry
from stagetrace.request.request import Request

if TYPE_CHECKING:
    import pytest


def test_the_span_of_an_excluded_request_can_be_set_after_its_end() -> None:
    """A middleware may hold the current span that it has never looked at."""
    request = Request()
    open_entry(request, "GET", Context(), None, late=True)
    span = seen(request)
    request.discard()
    request.release()
    assert not request.entry_span.get_span_context().is_valid
    span.set_attribute("k", "v")
    assert not span.get_span_context().is_valid


def test_a_span_that_cannot_be_started_lets_a_scope_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a processor of the service's")

    monkeypatch.setattr(SdkSpan, "_start", fail)
    request = AsgiRequest.__new__(AsgiRequest)
    open_entry(request, "GET", Context(), None, late=True)
    guard.failures.clear()
    assert request.__reduce__() == (str, ("",))
    assert sum(guard.failures.values()) == 1
    guard.failures.clear()


def test_an_adopted_request_is_no_work_for_the_garbage_collector() -> None:
    environ: dict[str, Any] = {"REQUEST_METHOD": "GET"}
    request = AdoptedRequest(environ, Context())
    left = weakref.ref(request)
    response = request.run(lambda _environ, _start: [b"x"], environ, lambda *_: None)
    assert list(response) == [b"x"]
    response.close()
    gc.disable()
    try:
        del request, response
        assert left() is None
    finally:
        gc.enable()
