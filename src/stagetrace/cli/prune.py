"""`stagetrace prune`: old spans out of a local store."""

from __future__ import annotations

import argparse
import time
from typing import Final

from stagetrace.cli.arguments import JSON, local_folder, store_option
from stagetrace.cli.output import show_result
from stagetrace.cli.registry import Option
from stagetrace.errors import StoreError
from stagetrace.output.units import FORMS, moment, utc

DESCRIPTION: Final = """Delete the spans that started before a time from a local store, and give the disk space back.

If `stagetrace up` has the store open, it is asked to do so; its --retention drops spans by itself, by
when they were received."""
EXAMPLE: Final = "stagetrace prune --before 30d --store ./traces"
OPTIONS: Final = (
    Option("--before WHEN", f"{FORMS}; a time without an offset is UTC", moment, required=True),
    store_option("the local store to prune: its folder"),
    JSON,
)
_LATEST_NS: Final = 2**63 - 1  # the store's times end in the year 2262, and its spans with them


def run(args: argparse.Namespace) -> int:
    """Delete and return the exit code."""
    from stagetrace.backend.control import open_writer

    folder = local_folder(args)
    if not folder.is_dir():
        raise StoreError(f"there is no store in {folder}\ngive its folder: --store FOLDER")
    before = min(args.before.at(time.time_ns()), _LATEST_NS)
    store = open_writer(folder)
    try:
        removed = store.prune(before)
    finally:
        store.close()
    text = f"{removed:,} spans from before {utc(before, 0)} UTC deleted from {folder}."
    return show_result(args, {"store": str(folder), "before_unix_nano": before, "removed": removed}, [text])
