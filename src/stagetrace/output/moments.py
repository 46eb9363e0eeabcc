"""Since when something is so, in words: a release, or a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.output.times import Zone, shown

if TYPE_CHECKING:
    from stagetrace.analysis.releases import Release


def release_name(release: Release) -> str:
    """Return `release 1.5.0`, `version 3 of model churn` or `the start of instance 7f3a`."""
    if release.key == "service.instance.id":
        return f"the start of instance {release.value}"
    return f"release {release.value}" if release.model is None else f"version {release.value} of model {release.model}"


def since_text(at_unix_nano: int, release: Release | None, zone: Zone) -> str:
    """Return `release 1.5.0 at 2026-03-01 11:25:10 UTC`, or the time alone."""
    time = f"{shown(at_unix_nano, zone, 0)} {zone.name}"
    return time if release is None else f"{release_name(release)} at {time}"


def release_keys(release: Release | None) -> dict[str, Any] | None:
    """Return a release as JSON has it."""
    return None if release is None else release.keys()
