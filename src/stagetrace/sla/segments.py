"""The segments of objectives in this process: the first ones that come, up to each objective's limit; then `other`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.real_threads import allocate_lock
from stagetrace.redaction import redacted
from stagetrace.sla.objective import NO_SEGMENT, OTHER_SEGMENT

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.sla.objective import Objective


class Segments:
    """Knows the segments that there have been, by objective. Any thread may ask."""

    def __init__(self) -> None:
        self._lock = allocate_lock()  # guards the adding of a segment
        # By name and keys: a policy that is read anew keeps the segments of objectives that have the same ones.
        # A segment leaves the process, so credentials in it, which are known by their form, are redacted: once.
        self._known: dict[tuple[str, tuple[str, ...]], dict[str, str]] = {}

    def of(self, objective: Objective, value: Callable[[str], str | None]) -> tuple[str | None, bool]:
        """Return the segment of a request, and whether it is `other` for lack of room; None where there are none."""
        keys = objective.segment_by
        if not keys:
            return None, False
        values = map(value, keys)
        segment = ", ".join(NO_SEGMENT if one is None else one for one in values)
        known = self._known.get((objective.name, keys))
        if known is not None and segment in known:
            return known[segment], False
        with self._lock:
            known = self._known.setdefault((objective.name, keys), {})
            if segment not in known and len(known) >= objective.max_segments:
                return OTHER_SEGMENT, True
            known[segment] = redacted(segment)
        return known[segment], False
