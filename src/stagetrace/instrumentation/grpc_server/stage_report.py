"""The stages of an RPC in its trailing metadata, `server-timing`, for a caller that is to have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation import server_timing

if TYPE_CHECKING:
    from stagetrace.recording.record import RequestRecord


class StageReport:
    """What one RPC sends of its stages, beside the handler's own trailing metadata."""

    context: Any = None  # gRPC's, once the handler has begun
    trailing: Any = None  # the handler's own metadata, where gRPC's context does not tell it

    def __init__(self, record: RequestRecord) -> None:
        self._record = record

    @guarded
    def note_trailing(self, metadata: Any) -> None:
        """Note what the handler has set itself."""
        if iter(metadata) is metadata:  # nobody can read it again
            self.context = None
        else:
            self.trailing = tuple(metadata)

    @guarded
    def renew(self) -> None:
        """Set the metadata to the stages until now: the handler has ended, or what it returned is serialised."""
        context = self.context
        if context is None:
            return
        timing = server_timing.HEADER, server_timing.timing_of(self._record)
        if self.trailing is None:
            tell = getattr(context, "trailing_metadata", None)
            self.trailing = tuple((tell() if tell is not None else None) or ())
        context.set_trailing_metadata((*self.trailing, timing))
