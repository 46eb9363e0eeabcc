"""The bounds of an objective that a breach missed, in words."""

from __future__ import annotations

from typing import Any, Final

from stagetrace.output.units import milliseconds, threshold
from stagetrace.store.base import Entry, Missed

WITHIN: Final = "within"
# The text of each bound in a sentence, and in a column.
_SENTENCES: Final = {
    WITHIN: "took {}",
    "first_chunk": "first chunk after {}",
    "per_chunk": "gap of {} between two chunks",
    "first_token": "first token after {}",
    "per_token": "{} for each token after the first",
}
_SHORT: Final = {
    "first_chunk": "{} first chunk",
    "per_chunk": "{} gap",
    "first_token": "{} first token",
    "per_token": "{} a token",
}
_ROUNDING_MS: Final = 0.001


def sentence(missed: Missed) -> str:
    """Return one bound in words: `first chunk after 163.20 ms, 100 ms allowed`."""
    took = _SENTENCES.get(missed.bound, f"{missed.bound} {{}}").format(milliseconds(missed.took_ms))
    return f"{took}, {threshold(missed.allowed_ms)} allowed"


def part(entry: Entry) -> Missed | None:
    """Return the bound that made a breach, where that is not the whole duration."""
    return next((one for one in entry.missed[:1] if one.bound != WITHIN), None)


def column(entry: Entry) -> str:
    """Return the duration that exceeded the limit: of the request, of the first chunk, or of a gap between chunks."""
    decisive, whole = part(entry), milliseconds(entry.duration_ms)
    if decisive is not None:
        return _SHORT.get(decisive.bound, "{}").format(milliseconds(decisive.took_ms))
    if entry.missed or entry.threshold_ms is None or entry.overrun_ms is None:
        return whole
    # Recorded by a release that did not record the missed bound.
    part_ms = entry.threshold_ms + entry.overrun_ms
    return whole if part_ms > entry.duration_ms - _ROUNDING_MS else f"{milliseconds(part_ms)} of {whole}"


def as_json(entry: Entry) -> list[dict[str, Any]]:
    """Return all bounds that were missed, the one that decided first."""
    if entry.missed:
        return [one._asdict() for one in entry.missed]
    if entry.threshold_ms is None or entry.duration_ms <= entry.threshold_ms:
        return []
    return [{"bound": WITHIN, "took_ms": entry.duration_ms, "allowed_ms": entry.threshold_ms}]
