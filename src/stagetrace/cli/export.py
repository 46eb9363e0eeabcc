"""`stagetrace export`: spans of any store into one file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from stagetrace.cli.arguments.options import add_selection, selection, store_url
from stagetrace.cli.output import Progress, show_result, watched
from stagetrace.cli.registry import UsageError
from stagetrace.output.units import Moment
from stagetrace.store import open_store
from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = """Write the selected spans to FILE, in the form that its suffix names:

  .parquet   every column of `spans` and `requests`, and each whole span as OTLP: a store that `--store` reads
  .jsonl     OTLP JSON lines, as the Collector's file exporter writes them (also a store)
  .pb        OTLP protobuf, each message behind its length in four bytes, as the Collector's does (also a store)
  .csv       one relation as a table

FILE is there whole or not at all; one that exists is replaced."""
EXAMPLE: Final = "stagetrace export slow.parquet --route /predict --since 7d"
_SUFFIXES: Final = (".parquet", ".jsonl", ".pb", ".csv")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("file", metavar="FILE", type=Path, help="where to write; its suffix gives the form")
    add_selection(parser, since="all")
    parser.add_argument(
        "--relation",
        choices=("spans", "requests"),
        default="spans",
        help="the rows of a .csv: spans (default) or requests",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file and return the exit code."""
    path: Path = args.file
    if path.suffix not in _SUFFIXES:
        raise UsageError(f"{path} has no known form\nend its name in one of {' '.join(_SUFFIXES)}")
    if args.relation != "spans" and path.suffix != ".csv":
        raise UsageError(
            f"a {path.suffix} holds whole spans, and no relation\nend its name in .csv, or leave --relation out"
        )
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}\nmake it, or name another")
    url = store_url(args)
    wanted = selection(args, url, since=Moment(0, ago=False))
    cuts: list[str] = []
    progress = Progress("spans" if args.relation == "spans" else "requests")
    try:
        with open_store(url) as reader, watched(reader):
            count = _written(reader, wanted, path, args.relation, cuts, progress)
    finally:
        progress.end()
    reason = "; ".join(cuts) or None
    size = path.stat().st_size
    what = args.relation if path.suffix == ".csv" else "spans"
    keys = {"file": os.fspath(path), what: count, "bytes": size}
    return show_result(args, keys, [f"{count:,} {what} written to {path}, {size:,} bytes."], reason)


def _written(reader: Reader, wanted: Selection, path: Path, relation: str, cuts: list[str], progress: Progress) -> int:
    """Write the file and return the number of rows or spans."""
    from stagetrace.store import write

    if path.suffix not in (".parquet", ".csv"):
        return write.otlp(path, reader.iter_otlp(wanted, cuts), progress)
    with reader.relations(wanted) as relations:
        if relations.reason is not None:
            cuts.append(relations.reason)
        if path.suffix == ".csv":
            return write.csv(path, relations, relation, progress)
        return write.parquet(path, relations, progress)
