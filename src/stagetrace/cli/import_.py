"""`stagetrace import`: spans of files into a local store."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagetrace.cli.arguments import JSON, local_folder, store_option
from stagetrace.cli.output import Progress, show_result
from stagetrace.cli.registry import Option
from stagetrace.store.base import Selection
from stagetrace.store.file.reader import open_path

if TYPE_CHECKING:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

DESCRIPTION: Final = """Store the spans of files in a local store, which is created if it does not exist: OTLP JSON
lines, OTLP protobuf, Jaeger's JSON (which its UI downloads), and files of `stagetrace export`. Spans that are stored
already count once, so an import can be repeated.

If `stagetrace up` has the store open, the spans go through it."""
EXAMPLE: Final = "stagetrace import spans.jsonl --store ./traces"
OPTIONS: Final = (
    Option("FILE", "a file, or a folder of files of one kind", Path, many="+", key="files"),
    store_option("the local store that takes the spans: its folder"),
    JSON,
)
_BATCH_BYTES: Final = 4 << 20
_ALL: Final = Selection(0, 2**64)  # of any time: each span is stored or counted as refused


def run(args: argparse.Namespace) -> int:
    """Take the files in and return the exit code."""
    from stagetrace.backend.control import open_writer

    readers = [open_path(path) for path in args.files]  # before anything is written: the last name may be wrong
    folder = local_folder(args)
    cuts: list[str] = []
    progress = Progress("spans")
    accepted = rejected = 0
    store = open_writer(folder)
    try:
        for reader in readers:
            for content in _batches(reader.iter_otlp(_ALL, cuts)):
                answer = store.append(content)
                accepted, rejected = accepted + answer.accepted, rejected + answer.rejected
                cuts += [answer.reason] if answer.reason else []
                progress(accepted)
    finally:
        progress.end()
        store.close()
    if rejected:
        cuts.insert(0, f"{rejected} spans were refused")
    reason = "; ".join(dict.fromkeys(cuts)) or None
    keys = {"store": str(folder), "accepted": accepted, "rejected": rejected}
    return show_result(args, keys, [f"{accepted:,} spans taken into {folder}."], reason)


def _batches(messages: Iterator[ExportTraceServiceRequest]) -> Iterator[bytes]:
    """Yield requests of some size, each of several messages: to protobuf, one after another is one."""
    batch, size = list[bytes](), 0
    for message in messages:
        batch.append(message.SerializeToString())
        size += len(batch[-1])
        if size >= _BATCH_BYTES:
            yield b"".join(batch)
            batch, size = [], 0
    if batch:
        yield b"".join(batch)
