"""What patches count for the status file of the process."""

from __future__ import annotations

crowded_waits: dict[str, int] = {}  # by reason: how many waits began while others waited
ignored_headers: dict[str, int] = {}  # by reason: `X-Request-Start` and the like without a plausible time
