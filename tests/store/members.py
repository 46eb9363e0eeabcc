"""All members of the reader contract, each fed with the same spans through real OTLP by its own real process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from backend.running import run_up
from backends import Jaeger, run_collector, run_jaeger
from conftest import need
from stagetrace.store import Selection, open_store, write
from store.feed import Made, export, send

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ALL = (
    *("local-live", "local-stopped", "local-api_v3"),
    *("jaeger-memory", "jaeger-badger"),
    *("file-json", "file-protobuf", "file-parquet", "file-export"),
)


def parameter(name: str) -> Any:
    """Return the member as a parameter; all that asks the same one runs in one process, and so starts it once."""
    kind = pytest.mark.service if name.startswith("local") else pytest.mark.backend
    return pytest.param(name, marks=[kind, pytest.mark.xdist_group(f"member {name}")])


DISTINCT = ("local-live", "local-stopped", "jaeger-memory", "file-json", "file-parquet")
# One for each way in which stores are read, and those that are read like one of these.
EACH_WAY = [parameter(name) for name in ALL if name in DISTINCT]
LIKE_ANOTHER = [parameter(name) for name in ALL if name not in DISTINCT]
_FILES = {"file-json": "spans.jsonl", "file-protobuf": "spans.pb"}


@contextmanager
def member(name: str, folder: Path, spans: Sequence[Made], again: Sequence[Made]) -> Iterator[str]:
    """Give the URL of a store of this kind that holds `spans`, and `again` a second time."""
    kind, _, form = name.partition("-")
    if kind == "jaeger":
        need("jaeger")
        with run_jaeger(folder, storage="memory" if form == "memory" else "badger") as jaeger:
            send(jaeger, spans)
            send(jaeger, again)
            yield jaeger.url
        return
    if kind == "local":
        with run_up(folder) as up:
            export(up.as_jaeger.otlp_grpc, spans)
            export(up.as_jaeger.otlp_grpc, again)
            if form != "stopped":
                yield up.as_jaeger.url if form == "api_v3" else f"local://{folder / 'data'}"
        if form == "stopped":
            yield f"local://{folder / 'data'}"
        return
    need("otelcol")
    source = folder / _FILES.get(name, "spans.jsonl")
    collect(folder, source, [spans, again])
    if name not in _FILES:
        target = folder / "exported" / ("spans.parquet" if form == "parquet" else "spans.pb")
        target.parent.mkdir()
        with open_store(source.as_uri()) as reader:
            ever = Selection(0, 2**63 - 1)
            if form == "parquet":
                with reader.relations(ever) as relations:
                    write.parquet(target, relations, lambda _: None)
            else:
                write.otlp(target, reader.iter_otlp(ever, []), lambda _: None)
        source = target
    yield source.as_uri()


def collect(folder: Path, path: Path, batches: Sequence[Sequence[Made]]) -> None:
    """Let a real Collector write spans to `path`, in the form of its suffix; at its end it has written all."""
    form = "proto" if path.suffix == ".pb" else "json"
    also = f"exporters: {{file: {{path: '{path}', format: {form}}}}}\n"
    also += "service: {pipelines: {traces: {exporters: [file, spanmetrics]}}}\n"
    nowhere = Jaeger("", "", "http://127.0.0.1:1", "", 0)
    with run_collector(folder, nowhere, also=also) as collector:
        for spans in batches:
            export(collector.otlp_grpc, spans)
