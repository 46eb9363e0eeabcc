"""A window on the command line: `SINCE..UNTIL`, each end as `--since` takes it."""

from __future__ import annotations

import argparse

from stagetrace.cli.times import Moment, moment


def period(text: str) -> tuple[Moment, Moment]:
    """Return both ends of `SINCE..UNTIL`. Raise ArgumentTypeError where it is none."""
    since, dots, until = text.partition("..")
    if not dots or not since or not until:
        raise argparse.ArgumentTypeError(f"{text!r} is not SINCE..UNTIL, as 2h..1h or 2026-03-01..2026-03-02")
    return moment(since), moment(until)
