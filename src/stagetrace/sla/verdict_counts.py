"""The number of judged requests by verdict, in the log as a process ends."""

from __future__ import annotations

from stagetrace import log

_logged: dict[tuple[str, str], int] = {}


def log_counts() -> None:
    """Log how many requests were judged, and how; equal counts only once."""
    from stagetrace.sla.process import counter

    global _logged  # noqa: PLW0603
    counts = counter().counts()
    if counts and counts != _logged:
        _logged = counts
        by_verdict = {"good": 0, "breach": 0, "excluded": 0}
        for (_, verdict), count in counts.items():
            by_verdict[verdict] += count
        judged, excluded = by_verdict["good"] + by_verdict["breach"], by_verdict["excluded"]
        also = f"; {excluded} were excluded" if excluded else ""
        log.info(f"judged {judged} requests, {by_verdict['breach']} missed their objective{also}")
