"""All members of the reader contract, each fed with the same spans through real OTLP by its own real process."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from backend.running import run_up
from backends import Jaeger, run_collector, run_jaeger
from cli.running import answered
from clickhouse import run_clickhouse
from conftest import need
from s3 import fill, run_s3
from stagetrace.store import Selection, open_store, write
from stagetrace.store.load import load
from stagetrace.store.local import LocalStore
from store import otel_traces
from store.feed import Made, export, readable, send
from tempo import WEEK_S, Tempo, run_tempo, victoria

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

ALL = (
    *("local-live", "local-stopped", "local-api_v3"),
    *("jaeger-memory", "jaeger-badger"),
    *("file-json", "file-protobuf", "file-parquet", "file-export"),
    *("tempo", "tempo-victoria"),
    *("clickhouse-map", "clickhouse-json", "clickhouse-table"),
    "s3",
)


def parameter(name: str) -> Any:
    """Return the member as a parameter; all that asks the same one runs in one process, and so starts it once."""
    kind = pytest.mark.service if name.startswith(("local", "clickhouse", "tempo", "s3")) else pytest.mark.backend
    return pytest.param(name, marks=[kind, pytest.mark.xdist_group(f"member {name}")])


DISTINCT = (
    "local-live",
    "local-stopped",
    "jaeger-memory",
    "file-json",
    "file-parquet",
    "clickhouse-map",
    "tempo",
    "s3",
)
# One for each way in which stores are read, and those that are read like one of these.
EACH_WAY = [parameter(name) for name in ALL if name in DISTINCT]
LIKE_ANOTHER = [parameter(name) for name in ALL if name not in DISTINCT]
_FILES = {"json": "spans.jsonl", "protobuf": "spans.pb"}


@contextmanager
def member(name: str, folder: Path, spans: Sequence[Made], again: Sequence[Made]) -> Iterator[str]:
    """Give the URL of a store of this kind that holds `spans`, and `again` a second time."""
    kind, _, form = name.partition("-")
    with _KINDS[kind](form, folder, [spans, again]) as url:
        yield url


@contextmanager
def _jaeger(form: str, folder: Path, batches: Sequence[Sequence[Made]]) -> Iterator[str]:
    need("jaeger")
    with run_jaeger(folder, storage="memory" if form == "memory" else "badger") as jaeger:
        for spans in batches:
            send(jaeger, spans)
        yield jaeger.url


@contextmanager
def _local(form: str, folder: Path, batches: Sequence[Sequence[Made]]) -> Iterator[str]:
    with run_up(folder) as up:
        for spans in batches:
            export(up.as_jaeger.otlp_grpc, spans)
        if form != "stopped":
            yield up.as_jaeger.url if form == "api_v3" else f"local://{folder / 'data'}"
    if form == "stopped":
        yield f"local://{folder / 'data'}"


@contextmanager
def _tempo(form: str, _folder: Path, batches: Sequence[Sequence[Made]]) -> Iterator[str]:
    with run_tempo(victoria() if form else Tempo(max_duration_s=WEEK_S)) as tempo:
        for spans in batches:
            tempo.add(spans)
        yield tempo.url


@contextmanager
def _clickhouse(form: str, folder: Path, batches: Sequence[Sequence[Made]]) -> Iterator[str]:
    """Give the URL of a ClickHouse with maps of attributes, with JSON, or with a table of requests."""
    with run_clickhouse(folder) as server:
        otel_traces.create(server, json_attributes=form == "json")
        for spans in batches:
            message = encode_spans([readable(one) for one in spans])
            otel_traces.insert(server, [message], json_attributes=form == "json")
            if form == "table":  # what was there is filled in, what comes is put into it
                answered("clickhouse init", "--store", server.url)
        yield server.url


@contextmanager
def _s3(_form: str, folder: Path, batches: Sequence[Sequence[Made]]) -> Iterator[str]:
    """Give the URL of an archive; of each batch the files were copied before the next one came."""
    with run_s3(folder) as s3, pytest.MonkeyPatch.context() as patch:
        for name, value in {**s3.environment, "XDG_CACHE_HOME": str(folder / "cache")}.items():
            patch.setenv(name, value)
        with LocalStore.open(folder / "data", archived=True) as store:
            for spans in batches:
                store.append(encode_spans([readable(one) for one in spans]).SerializeToString())
                assert fill(store, s3.url) or spans is not batches[0]
        yield s3.url


@contextmanager
def _file(form: str, folder: Path, batches: Sequence[Sequence[Made]]) -> Iterator[str]:
    need("otelcol")
    source = folder / _FILES.get(form, "spans.jsonl")
    collect(folder, source, batches)
    if form not in _FILES:
        target = folder / "exported" / ("spans.parquet" if form == "parquet" else "spans.pb")
        target.parent.mkdir()
        with open_store(source.as_uri()) as reader:
            ever = Selection(0, 2**63 - 1)
            if form == "parquet":
                with load(reader, ever) as relations:
                    write.parquet(target, relations, lambda _: None)
            else:
                write.otlp(target, reader.iter_otlp(ever, []), lambda _: None)
        source = target
    yield source.as_uri()


_KINDS = {"jaeger": _jaeger, "local": _local, "tempo": _tempo, "clickhouse": _clickhouse, "file": _file, "s3": _s3}


def collect(folder: Path, path: Path, batches: Sequence[Sequence[Made]]) -> None:
    """Let a real Collector write spans to `path`, in the form of its suffix; at its end it has written all."""
    form = "proto" if path.suffix == ".pb" else "json"
    also = f"exporters: {{file: {{path: '{path}', format: {form}}}}}\n"
    also += "service: {pipelines: {traces: {exporters: [file, spanmetrics]}}}\n"
    nowhere = Jaeger("", "", "http://127.0.0.1:1", "", 0)
    with run_collector(folder, nowhere, also=also) as collector:
        for spans in batches:
            export(collector.otlp_grpc, spans)
