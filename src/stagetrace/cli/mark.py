"""`stagetrace mark`: name this moment, as of a deploy, in a local store."""

from __future__ import annotations

import argparse
from typing import Final

from stagetrace.cli.arguments import JSON, local_folder, store_option
from stagetrace.cli.output import show_result
from stagetrace.cli.registry import Option
from stagetrace.output.units import utc

DESCRIPTION: Final = """Name this moment in a local store, as of a deploy. The page draws it on every time axis, and
`causes` and `drift` say so where something began with it.

If `stagetrace up` has the store open, the mark goes through it. From another machine, POST {"text": "..."}
to /v1/marks of its HTTP port, with the token."""
EXAMPLE: Final = 'stagetrace mark "deploy 1.5.0" --store ./traces'
OPTIONS: Final = (
    Option("TEXT", "what begins now, in at most 200 characters"),
    store_option("the local store: its folder"),
    JSON,
)


def run(args: argparse.Namespace) -> int:
    """Add the mark and return the exit code."""
    from stagetrace.backend.control import open_writer

    folder = local_folder(args)
    store = open_writer(folder)
    try:
        made = store.mark(args.text)
    finally:
        store.close()
    text = f"Marked {utc(made.at_unix_nano, 0)} UTC in {folder}: {made.text}"
    return show_result(args, {"store": str(folder), **made._asdict()}, [text])
