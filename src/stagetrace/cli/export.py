"""`stagetrace export`: spans of any store into one file."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from stagetrace.cli.arguments import EVER, selection_options
from stagetrace.cli.ask import reading
from stagetrace.cli.output import Progress, show_result
from stagetrace.cli.registry import Option, UsageError
from stagetrace.output.answer import join_reasons
from stagetrace.store.base import Reader, Selection

DESCRIPTION: Final = """Write the selected spans to FILE, in the form that its suffix names:

  .parquet   every column of `spans` and `requests`, and each whole span as OTLP: a store that `--store` reads
  .jsonl     OTLP JSON lines, as the Collector's file exporter writes them (also a store)
  .pb        OTLP protobuf, each message behind its length in four bytes, as the Collector's does (also a store)
  .csv       one relation as a table

FILE is there whole or not at all; one that exists is replaced."""
EXAMPLE: Final = "stagetrace export slow.parquet --route /predict --since 7d"
OPTIONS: Final = (
    Option("FILE", "where to write; its suffix gives the form", Path),
    *selection_options(since="all", sla=False),
    Option(
        "--relation",
        "the rows of a .csv: spans (default) or requests",
        default="spans",
        choices=("spans", "requests"),
    ),
)
_SUFFIXES: Final = (".parquet", ".jsonl", ".pb", ".csv")


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
    cuts: list[str] = []
    progress = Progress("spans" if args.relation == "spans" else "requests")
    try:
        with reading(args, since=EVER) as (reader, wanted):
            count = _written(reader, wanted, path, args.relation, cuts, progress)
    finally:
        progress.end()
    size = path.stat().st_size
    what = args.relation if path.suffix == ".csv" else "spans"
    keys = {"file": os.fspath(path), what: count, "bytes": size}
    return show_result(args, keys, [f"{count:,} {what} written to {path}, {size:,} bytes."], join_reasons(cuts))


def _written(reader: Reader, wanted: Selection, path: Path, relation: str, cuts: list[str], progress: Progress) -> int:
    """Write the file and return the number of rows or spans."""
    from stagetrace.store import write
    from stagetrace.store.load import load

    if path.suffix not in (".parquet", ".csv"):
        return write.otlp(path, reader.iter_otlp(wanted, cuts), progress)
    with load(reader, wanted) as relations:
        if relations.reason is not None:
            cuts.append(relations.reason)
        if path.suffix == ".csv":
            return write.csv(path, relations, relation, progress)
        return write.parquet(path, relations, progress)
