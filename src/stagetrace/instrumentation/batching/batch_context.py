"""What servers that collect requests share: coming into and out of the context of what is done for several at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.recording.current_timeline import current

if TYPE_CHECKING:
    from stagetrace.recording.worker import Batch, Work

BATCH = "batch"  # what a request waits for


@guarded
def enter(work: Work | Batch | None) -> Any:
    """Let what runs from now on be done for these requests; return what to leave it by."""
    if work is None:
        return None
    from stagetrace.recording.worker import at_work

    inside = at_work(work)
    inside.__enter__()
    return inside


@guarded_end
def leave(work: Work | Batch | None, inside: Any) -> None:
    """Leave that, and tell the requests."""
    if inside is not None:
        inside.__exit__(None, None, None)
    if work is not None:
        work.finish()


@guarded
def leave_request() -> None:
    """Come out of the request that has started this task, which goes on when that has ended."""
    from opentelemetry import context

    current.set(None)
    context.attach(context.Context())
