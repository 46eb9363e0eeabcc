"""What servers with batching share: entering and leaving the context of work for several requests at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.recording.current_record import current

if TYPE_CHECKING:
    from stagetrace.recording.worker import Batch, Work

BATCH = "batch"  # the reason of a request's queue wait


@guarded
def enter(work: Work | Batch | None) -> Any:
    """Enter the context of a request or batch; return what `leave` needs, None if there is nothing to leave."""
    if work is None:
        return None
    from stagetrace.recording.worker import at_work

    inside = at_work(work)
    inside.__enter__()
    return inside


@guarded_end
def leave(work: Work | Batch | None, inside: Any) -> None:
    """Leave the context, and report the stages to the requests."""
    if inside is not None:
        inside.__exit__(None, None, None)
    if work is not None:
        work.finish()


@guarded
def leave_request() -> None:
    """Leave the context of the request that has started this task: the task goes on when the request has ended."""
    from opentelemetry import context

    current.set(None)
    context.attach(context.Context())
