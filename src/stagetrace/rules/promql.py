"""Parts of PromQL: strings, durations, selectors of series."""

from __future__ import annotations

import re
from typing import Final

from stagetrace.sla.objective import SERVICE_KEY, Objective

YOUNG_S: Final = 3_600  # a series without a sample in this time before a window has begun within the window
_UNITS: Final = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_SPECIAL: Final = re.compile(r"[\\.+*?()|\[\]{}^$]")  # of Go's regular expressions
_ESCAPE: Final = r"\\\g<0>"
_ESCAPED: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n"}


def quoted(text: str) -> str:
    """Return a string of PromQL that stands for this text."""
    return '"' + "".join(_ESCAPED.get(char, char if char.isprintable() else _code(char)) for char in text) + '"'


def _code(char: str) -> str:
    return f"\\u{ord(char):04x}" if ord(char) < 0x1_0000 else f"\\U{ord(char):08x}"  # noqa: PLR2004 -- of the first plane


def literal(text: str) -> str:
    """Return a regular expression that matches this text alone."""
    return _SPECIAL.sub(_ESCAPE, text)


def duration(seconds: float) -> str:
    """Return a duration, a millisecond at least: `5m`, `1h30m`, `3d`, `300ms`."""
    left, parts = max(1, round(seconds * 1_000)), []
    for unit, size in _UNITS:
        count, left = divmod(left, size)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts)


def number(value: float) -> str:
    """Return a number in plain digits."""
    return f"{value:.12f}".rstrip("0").rstrip(".") if 1e-9 < abs(value) < 1e15 else f"{value:.12g}"  # noqa: PLR2004


def labels(objective: Objective, service: str = "") -> str:
    """Return the matchers of an objective's series, without braces.

    `job` is the service's name, behind its namespace where it has one.
    """
    globs = [one.glob for one in objective.conditions if one.key == SERVICE_KEY] or ([service] if service else [])
    jobs = (f"(.*/)?{'.*'.join(map(literal, glob.split('*')))}" for glob in globs)
    return ", ".join([f"sla_objective={quoted(objective.name)}", *(f"job=~{quoted(job)}" for job in jobs)])


def service_of(objective: Objective, service: str = "") -> str:
    """Return the one service that an objective is about, as far as it names one; else `service`."""
    named = (one.glob for one in objective.conditions if one.key == SERVICE_KEY and "*" not in one.glob)
    return next(named, service)


def counted(series: str, window: str, before: str) -> str:
    """Return how much each counter has counted in a window: exactly, between the last scrapes before its two ends.

    The first value counts, too, of a series that has begun within the window: one without a sample in the time
    `before` it. `increase` alone would lose it, and with it the first breach of each process, stage and segment; it
    also extrapolates. It remains for a counter that was reset within the window, or missing at its begin.
    """
    last, reset = f"last_over_time({series}[{window}])", f"resets({series}[{window}]) > 0"
    young = f"{last} unless present_over_time({series}[{before}] offset {window})"
    return (
        f"  (\n    (\n      {last} - {series} offset {window} >= 0\n      or {young}\n    )\n"
        f"    unless {reset}\n  )\n  or increase({series}[{window}])"
    )


def template(text: str) -> str:
    """Return text for a label or an annotation of an alert, in which Prometheus expands templates, as it is."""
    return text.replace("{{", '{{ "{{" }}')
