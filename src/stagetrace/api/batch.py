"""One inference for several requests, in a batcher of the service's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.guard import guarded, guarded_end
from stagetrace.semconv import INFERENCE, ML_BATCH_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextlib import AbstractContextManager
    from types import TracebackType

    from stagetrace.recording.request_ref import RequestRef
    from stagetrace.recording.worker import Batch

REASON = "batch"


class batch:  # noqa: N801 -- reads as a statement: `with stagetrace.batch(carriers):`
    """Make the block the one inference of the requests that `carriers`, of `carry`, come from.

    Each of them then shows `queue` from when it was carried until the block begins, `inference` while it runs, with
    their number as `ml.batch.size`, and a link to one span `inference`, under which what the block starts hangs and
    which links to all of them. The block may run in any thread or process of the service. What cannot be read among
    `carriers` counts for the size alone; where nothing is traced, the block just runs. Never raises.
    """

    __slots__ = ("_carriers", "_open")

    def __init__(self, carriers: Iterable[Mapping[str, str] | None]) -> None:
        self._carriers = carriers
        self._open: tuple[Batch, AbstractContextManager[None]] | None = None

    def __enter__(self) -> None:
        self._open = _begin(self._carriers)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._open is not None:
            made, self._open = self._open, None
            _end(*made)


@guarded
def _begin(carriers: Iterable[Mapping[str, str] | None]) -> tuple[Batch, AbstractContextManager[None]] | None:
    from stagetrace.api.carrier import has_provider

    given = list(carriers)
    requests = [request for request in map(_origin, given) if request is not None]
    if not requests or not has_provider():
        return None
    from stagetrace.recording.worker import Batch, at_work

    made = Batch(requests, len(given), REASON)
    made.enter(INFERENCE, {ML_BATCH_SIZE: len(given)}, made.started)
    inside = at_work(made)
    inside.__enter__()
    return made, inside


@guarded_end
def _end(made: Batch, inside: AbstractContextManager[None]) -> None:
    inside.__exit__(None, None, None)
    made.leave(INFERENCE)
    made.finish()


@guarded
def _origin(carrier: Mapping[str, str] | None) -> RequestRef | None:
    if not carrier:
        return None
    from opentelemetry.context import Context
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    from stagetrace.api.carrier import KEY
    from stagetrace.recording.remote_stages import entry_of
    from stagetrace.recording.request_ref import RequestRef

    key = carrier.get(KEY)
    context = TraceContextTextMapPropagator().extract(carrier, context=Context())
    span = get_current_span(context).get_span_context()
    return RequestRef(key, entry_of(key, span)) if key and span.is_valid else None
