"""A recorder of requests as tests drive it: its provider, what it sends, and a request that an adapter describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

from stagetrace import KeepBreaches, SLASpanProcessor
from stagetrace.otlp.encode import Block
from stagetrace.request.context import open_entry
from stagetrace.request.request import Request
from stagetrace.sla.entry_recorder import EntryRecorder

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.sampling import Sampler

    from stagetrace import Policy

START = 10**18


class Described(Request):
    """A request that describes itself as those of protocols do."""

    protocol = "test"

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        return [Block({"http.request.method": "GET"})], Block({"client.address": "::1"}), {"url.path": "/a"}


class Sender:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def put(self, _resource: Any, _scope: Any, encoded: bytes, _spans: int, **_: Any) -> None:
        self.sent.append(encoded)


def recorder_of(
    sampler: Sampler, objective: Policy | str, resource: Resource | None = None
) -> tuple[EntryRecorder, SLASpanProcessor, Sender]:
    provider = TracerProvider(KeepBreaches(sampler), resource or Resource({}), shutdown_on_exit=False)
    processor = SLASpanProcessor(objective, provider._active_span_processor)
    processor.has_others = False
    sender = Sender()
    return EntryRecorder(provider, processor, [sender]), processor, sender  # type: ignore[list-item]


def begun(recorder: EntryRecorder, route: str) -> Described:
    """Return a GET request that began at `START`."""
    request = Described(start=START)
    open_entry(request, f"GET {route}", Context(), recorder)
    request.method, request.route = "GET", route
    return request
