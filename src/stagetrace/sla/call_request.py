"""A request that no protocol's adapter sees: code begins and ends its entry span, and says what it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from stagetrace.otlp.encode import Block
from stagetrace.policy.entry_span import request_of
from stagetrace.request.context import open_entry
from stagetrace.request.request import Request
from stagetrace.tracing.span import StatusCode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagetrace.request.own_span import Recorder

_NO_CLIENT = Block({})


class CallRequest(Request):
    """Such a request. Its method and route are those that its attributes name."""

    def __init__(
        self,
        name: str,
        attributes: Mapping[str, Any],
        parent: Mapping[str, Any],
        recorder: Recorder | None,
        *,
        start: int | None = None,
    ) -> None:
        super().__init__(start=start)
        self._given = attributes
        self._has_ended = False
        open_entry(self, name, parent, recorder)

    def known_attributes(self) -> dict[str, Any]:
        """Return its attributes."""
        return dict(self._given)

    def describe(self) -> tuple[list[Block], Block, dict[str, Any]]:
        """Return its attributes, and how its response passed."""
        return [], _NO_CLIENT, {**self._given, **self.transfer_attributes(self.started)}

    def finish(self, at: int | None = None) -> None:
        """End its entry span, now or at a time in nanoseconds."""
        if self._has_ended:
            return
        self._has_ended = True
        try:
            if self.recorder is not None:
                self.method, self.route = request_of({**self._given, **self.attributes})
                self.failed = self.status.status_code is StatusCode.ERROR
            self.end_entry(time.time_ns() if at is None else at)
        finally:
            self.release()
