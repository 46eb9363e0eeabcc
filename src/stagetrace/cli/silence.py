"""`stagetrace silence`: let no receiver of alerts hear of an objective for a time."""

from __future__ import annotations

import argparse
from typing import Final

from stagetrace.backend.options import seconds
from stagetrace.cli.arguments import JSON, local_folder, store_option
from stagetrace.cli.output import show_result
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output.units import utc

DESCRIPTION: Final = """Let no receiver of alerts hear of an objective for a time: neither that its alerts
fire, nor that they still do.

The board shows them, with until when they are silent, and has a button for the same. That an alert has ended is
still posted to whom its beginning was. The alerts are those of `stagetrace up --sla` over this store."""
EXAMPLE: Final = "stagetrace silence predict --for 2h --store ./traces"
OPTIONS: Final = (
    Option("OBJECTIVE", "its name, as the board and the alerts have it"),
    Option("--service NAME", "of this service alone; default: of all", default=""),
    Option("--for AGE", "how long: 30m, 2h, 7d; default: 1h", seconds, 3600.0, alone="how long", key="seconds"),
    Option("--end", "end it now", alone="how long"),
    store_option("the local store that `stagetrace up` has open: its folder"),
    JSON,
)


def run(args: argparse.Namespace) -> int:
    """Set it and return the exit code."""
    from stagetrace.backend.alerts.saved import read_policy
    from stagetrace.backend.control import silence

    folder = local_folder(args)
    policy = read_policy(folder)
    names = [] if policy is None else [one.name for one in policy.objectives if not one.excludes]
    if args.objective not in names:
        known = f"there are {', '.join(names)}" if names else f"start `stagetrace up --sla POLICY --data {folder}`"
        raise UsageError(f"no alerts of an objective {args.objective!r} are evaluated over {folder}\n{known}")
    made = silence(folder, args.objective, args.service, 0 if args.end else args.seconds)
    of = f"{args.objective} of {args.service}" if args.service else args.objective
    text = f"{of} is no longer silent." if args.end else f"{of} is silent until {utc(made.until_unix_nano, 0)} UTC."
    return show_result(args, {"store": str(folder), **made._asdict()}, [text])
