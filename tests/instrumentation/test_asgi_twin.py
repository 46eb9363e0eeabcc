"""Both twins of a request's beginning and of its description do the same, and leave the same behind."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry import propagate
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from missing import unused
from stagetrace import KeepBreaches, SLASpanProcessor, guard
from stagetrace.instrumentation.asgi import request as asgi
from stagetrace.instrumentation.asgi.request import OwnRequest
from stagetrace.instrumentation.base import SCOPE_KEY
from stagetrace.instrumentation.http import attributes as http
from stagetrace.recording.chunk_times import Stream
from stagetrace.recording.context import NO_CONTEXT, attach
from stagetrace.recording.current_timeline import current
from stagetrace.recording.limits import longest
from stagetrace.sla.entry_recorder import EntryRecorder

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.native
START = 10**18


class Connection:
    """As a server's object for one request."""

    async def send(self, _message: Any) -> None: ...


CONNECTION = Connection()


@pytest.fixture(scope="module")
def recorder() -> EntryRecorder:
    provider = TracerProvider(KeepBreaches(ALWAYS_ON), Resource.get_empty(), shutdown_on_exit=False)
    processor = SLASpanProcessor(None, provider._active_span_processor)
    processor.has_others = False
    return EntryRecorder(provider, processor, [])


@pytest.fixture(autouse=True)
def _twin() -> Iterator[None]:
    if asgi._twin is None:
        unused("stagetrace.instrumentation._asgi")
    guard.failures.clear()
    yield
    current.set(None)
    attach(NO_CONTEXT)
    assert not guard.failures


def begun(recorder: Any, scope: dict[str, Any], send: Any, *, in_c: bool) -> tuple[OwnRequest, bool]:
    """Return a request that has begun, and whether by the twin in C."""
    current.set(None)
    attach(NO_CONTEXT)
    request: Any = OwnRequest.__new__(OwnRequest)
    done = in_c and asgi._twin.begin(request, scope, send, START, recorder)
    if not done:
        request._begin_in_python(scope, send, START, recorder)
    assert scope[SCOPE_KEY] is request
    assert (current.get(), get_current_span()) == (request, request)
    return request, done


def left(request: OwnRequest) -> dict[str, Any]:
    """Return what there is in a request, but for what each has of its own."""
    own = {key: value for key, value in vars(request).items() if key not in ("_lock", "_scope", "_before")}
    assert not request._lock.locked()
    scope = {key: value for key, value in request._scope.items() if key != SCOPE_KEY}
    own["parent_context"] = {key: str(value) for key, value in request.parent_context.items()}
    return {**own, "scope": scope, "before": dict(request._before), "bound": request.bound, "log": request._log}


NAMES = st.sampled_from(
    [b"user-agent", b"host", b"accept", b"traceparent", b"x-request-start", b"connection", b"content-length", b"x" * 70]
)
VALUES = st.sampled_from([b"", b"agent/1", b"agent/2", b"t=1700000000.5", b"a" * 300, b"\xff"]) | st.just(
    b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
)
UNPICKLED = f"{'0' * 16}-1-{'b' * 16} request {'a' * 32}-{'b' * 16}-01 "
SCOPES = st.fixed_dictionaries(
    {"type": st.just("http"), "headers": st.lists(st.tuples(NAMES, VALUES), max_size=5)},
    optional={
        "method": st.sampled_from(["GET", "POST", "ODD"]),
        "path": st.sampled_from(["/a", "", None, "/ü" * 3, "/" + "x" * 20_000]),
        "scheme": st.sampled_from(["http", "https"]),
        "http_version": st.sampled_from(["1.1", "2"]),
        "server": st.sampled_from([("127.0.0.1", 80), None, ["127.0.0.1", 80]]),
        "client": st.sampled_from([("10.0.0.1", 5), None, ["10.0.0.1", 5]]),
        SCOPE_KEY: st.sampled_from([UNPICKLED, ""]),
    },
)
# What has happened to a request by its end.
ENDS = st.fixed_dictionaries(
    {
        "_status": st.sampled_from([200, 404, 500, None]),
        "_ended_at": st.sampled_from([START + 1, START + 1, None]),
        "_route": st.sampled_from(["/a", ""]),
        "mount": st.sampled_from(["", "/sub"]),
        "received_bytes": st.sampled_from([0, 17]),
        "_size": st.sampled_from([0, 2**40]),
    },
    optional={
        "stream": st.builds(Stream),
        "disconnect": st.just("client"),
        "adopted": st.just(object()),
    },
)


@settings(max_examples=400, deadline=None)
@given(SCOPES, ENDS, st.booleans())
def test_both_do_the_same(
    recorder: EntryRecorder, scope: dict[str, Any], end: dict[str, Any], bound_send: bool
) -> None:
    send = CONNECTION.send if bound_send else lambda _message: None
    told = []
    for in_c in (False, True, True):  # what has not been seen before is left to the reference
        request, _ = begun(recorder, {**scope}, send, in_c=in_c)
        before = left(request)
        vars(request).update({key: value for key, value in end.items() if key not in ("stream", "disconnect")})
        request.stream, request.disconnect = end.get("stream"), end.get("disconnect")
        for _ in range(2):
            described = (asgi._twin.describe(request) if in_c else None) or request._describe_in_python()
        told.append((before, described))
    assert told[0] == told[1] == told[2]


PLAIN: dict[str, Any] = {
    "type": "http",
    "method": "GET",
    "path": "/a",
    "headers": [(b"host", b"here"), (b"user-agent", b"agent"), (b"connection", b"close")],
    "server": ("127.0.0.1", 80),
    "client": ("10.0.0.1", 5),
}


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"headers": []}, True),
        ({"path": "/b"}, True),
        ({"headers": [(b"traceparent", b"x")]}, False),
        ({"headers": [(b"x-request-start", b"t=1")]}, False),
        ({"headers": [(b"user-agent", b"a" * 300)]}, False),
        ({"headers": [[b"host", b"here"]]}, False),
        ({"headers": ((b"host", b"here"),)}, False),
        ({"client": ["10.0.0.1", 5]}, False),
    ],
)
def test_which_begin_in_c(recorder: EntryRecorder, change: dict[str, Any], taken: bool) -> None:
    for in_c in (False, True):
        _, done = begun(recorder, {**PLAIN, **change}, CONNECTION.send, in_c=in_c)
    assert done is taken


def test_what_is_not_seen_before_is_left_to_the_reference(recorder: EntryRecorder) -> None:
    http._known.clear()
    assert [begun(recorder, {**PLAIN}, CONNECTION.send, in_c=True)[1] for _ in range(2)] == [False, True]


def answered(recorder: EntryRecorder, **more: Any) -> OwnRequest:
    request, _ = begun(recorder, {**PLAIN}, CONNECTION.send, in_c=True)
    vars(request).update({"_status": 200, "_ended_at": START + 1, "_route": "/a", **more})
    return request


def test_which_are_described_in_c(recorder: EntryRecorder) -> None:
    answered(recorder)._describe_in_python()
    assert asgi._twin.describe(answered(recorder))
    for more in (
        {"_status": 500},
        {"_status": 1 << 70},
        {"_ended_at": None},
        {"_path": "x" * (longest() + 1)},
        {"_path": ""},
    ):
        request = answered(recorder, **more)
        request._describe_in_python()
        assert asgi._twin.describe(request) is None


def test_a_propagator_that_is_set_later_is_heeded(recorder: EntryRecorder) -> None:
    scope = {**PLAIN, "headers": [(b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]}
    before = propagate.get_global_textmap()
    try:
        propagate.set_global_textmap(CompositePropagator([]))
        for _ in range(2):
            request, done = begun(recorder, {**scope}, CONNECTION.send, in_c=True)
        assert done
        assert request.parent is None
        propagate.set_global_textmap(TraceContextTextMapPropagator())
        request, done = begun(recorder, {**scope}, CONNECTION.send, in_c=True)
        assert not done
        assert request.parent is not None
    finally:
        propagate.set_global_textmap(before)


def test_what_raises_is_no_harm(recorder: EntryRecorder, monkeypatch: pytest.MonkeyPatch) -> None:
    class Odd:
        """Of which nobody can be asked whom it belongs to."""

        @property
        def __self__(self) -> Any:
            raise RuntimeError("the twin is broken")

    begun(recorder, {**PLAIN}, CONNECTION.send, in_c=False)
    with pytest.raises(RuntimeError, match="broken"):
        begun(recorder, {**PLAIN}, Odd(), in_c=True)
    with pytest.raises(TypeError):
        asgi._twin.begin()
    assert asgi._twin.begin(object(), {**PLAIN}, CONNECTION.send, START, recorder) is False
    assert asgi._twin.describe(object()) is None
    monkeypatch.setattr(asgi, "_describe_in_c", None)
    assert answered(recorder).describe()


def test_it_keeps_nothing(recorder: EntryRecorder) -> None:
    for _ in range(2):
        answered(recorder).describe()
    watched = [recorder, CONNECTION, NO_CONTEXT, OwnRequest, *PLAIN["headers"], *http._known.values()]
    gc.collect()
    before = [sys.getrefcount(one) for one in watched]
    for _ in range(2000):
        request = answered(recorder)
        request.describe()
        request._scope.pop(SCOPE_KEY)
        current.set(None)
        attach(NO_CONTEXT)
    assert sys.getrefcount(request) == 2
    del request
    gc.collect()
    after = [sys.getrefcount(one) for one in watched]
    assert all(abs(one - other) < 50 for one, other in zip(before, after, strict=True)), (before, after)
