"""Estimates out of sampled requests in output: `~` before a number, a line below, keys of `--json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagetrace.estimates import Attainment, Sample


def mark(sample: Sample) -> str:
    """Return the mark before a count: `~` for an estimate, `>=` for a lower bound."""
    return ">=" if sample.is_unknown else "~" if sample.is_estimate else ""


def about(count: int, sample: Sample) -> str:
    """Return a count with its mark, for people."""
    return f"{mark(sample)}{count}"


def percent(attainment: Attainment | None, sample: Sample) -> str:
    """Return an attainment for people; `?` where sampling makes it unknown."""
    if attainment is None:
        return "?" if sample.is_unknown else "-"
    return f"{'~' if attainment.low < attainment.high else ''}{100 * attainment.value:.2f} %"


def keys(sample: Sample) -> dict[str, Any]:
    """Return the keys of `--json` about the sample that counts are made of."""
    return {
        "stored": sample.rows,
        "counted": sample.is_counted,
        "estimated": sample.is_estimate,
        "sampling_known": not sample.is_unknown,
    }


def note(what: str, sample: Sample, attainment: Attainment | None = None) -> str | None:
    """Return the line on how far a group of requests is an estimate; None where it is exact."""
    if sample.is_unknown:
        return (
            f">= {what}: {_stored(sample)} of which it is not known how they were sampled; "
            "counts are of these alone (breaches are all there)"
        )
    if not sample.is_estimate:
        return f"= {what}: counted by the service; durations of {_stored(sample)}" if sample.is_counted else None
    interval = ""
    if attainment is not None:
        interval = f"; met, with 95 % confidence: {100 * attainment.low:.2f} to {100 * attainment.high:.2f} %"
    counted = "what the service has counted, and " if sample.is_counted else ""
    return f"~ {what}: estimated from {counted}{_stored(sample)} (breaches are all there){interval}"


def _stored(sample: Sample) -> str:
    return "1 sampled request" if sample.rows == 1 else f"{sample.rows} sampled requests"
