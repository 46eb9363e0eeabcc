"""The local store: what goes in can be read at once, once, and without loss, whatever comes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from backend.processes import until
from heavy import scaled
from messages import leaves
from stagetrace.errors import StoreError
from stagetrace.otlp.decode.request import MalformedRequest
from stagetrace.store import open_store
from stagetrace.store.base import Selection, default_folder
from stagetrace.store.local import LocalReader, LocalStore, wal
from stagetrace.store.local.folder import FORMAT, TABLE, WAL
from stagetrace.store.local.search import Search
from store.local.made import EVER, HOUR, MS, NOW, ids, judged, request, span

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.thorough
def test_what_is_acknowledged_is_read_at_once(store: LocalStore) -> None:
    """From this process and from another's point of view, before and after it went into the table."""
    with store.reader() as inside, LocalReader.open(store.folder) as outside:
        for number in range(1, 20):
            assert store.append(request([span(number)])).accepted == 1
            if number % 6 == 0:
                store.flush()
            assert ids(inside) == ids(outside) == list(range(1, number + 1))


def test_rejections_are_reported(store: LocalStore) -> None:
    appended = store.append(request([span(1), span(0), span(2)]))
    assert (appended.accepted, appended.rejected) == (2, 1)
    assert "span id" in str(appended.reason)
    assert store.append(request([span(0)])).accepted == 0
    with pytest.raises(MalformedRequest):
        store.append(b"no OTLP")
    counted = store.stats()
    assert (counted["spans_accepted"], counted["spans_rejected"], counted["spans"]) == (2, 2, 2)


def test_many_threads_write_at_once(store: LocalStore) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 100):
            store.append(request([span(number)]))

    threads = [threading.Thread(target=write, args=(1 + 100 * at,)) for at in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        store.flush()
    with store.reader() as reader:
        assert ids(reader) == list(range(1, 801))


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    for number in range(1, 6):
        with LocalStore.open(tmp_path) as store:
            store.append(request([span(number)]))
    with open_store(str(tmp_path)) as reader:
        assert reader.services() == ("api",)
    with open_store(f"local://{tmp_path}") as reader:
        assert len(reader.trace(f"{1:032x}").spans) == 5


# --- duplicates


@pytest.mark.parametrize("flushed", [False, True])
def test_a_request_that_is_delivered_again_counts_once(store: LocalStore, *, flushed: bool) -> None:
    data = request([judged(1), span(2, trace=1, parent=1)])
    for _ in range(3):
        assert store.append(data).accepted == 2, "accepted, or its sender tries for ever"
        if flushed:
            store.flush()
    with store.reader() as inside, LocalReader.open(store.folder) as outside:
        assert ids(inside) == ids(outside) == [1, 2]
        assert len(inside.breaches(EVER).breaches) == 1
    store.flush()
    assert store.stats()["spans_duplicate"] == 4
    assert store.stats()["spans"] == 2


def test_a_copy_that_comes_days_late_counts_once(store: LocalStore) -> None:
    """Among spans of many other times, so that the copies lie in different files."""
    for day in range(12):
        store.append(request([span(1 + day, trace=1 + day, start=NOW + day * 24 * HOUR)]))
        store.flush()
    store.append(request([span(1 + day, trace=1 + day, start=NOW + day * 24 * HOUR) for day in range(0, 12, 3)]))
    with store.reader() as reader:
        assert ids(reader) == list(range(1, 13))
        store.flush()
        assert ids(reader) == list(range(1, 13))


@pytest.mark.thorough
@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("verdict_first", [False, True])
def test_the_copy_with_the_verdict_stays(store: LocalStore, *, flushed: bool, verdict_first: bool) -> None:
    """Somebody's own exporter beside ours sends each span without its verdict."""
    plain, verdict = [span(1, own="x" * 999), span(2, parent=1)], [judged(1, trace=1), span(2, parent=1)]
    for spans in (verdict, plain) if verdict_first else (plain, verdict):
        store.append(request(spans))
        if flushed:
            store.flush()
    with store.reader() as inside, LocalReader.open(store.folder) as outside:
        for reader in (inside, outside):
            assert ids(reader) == [1, 2]
            assert [one.span_id for one in reader.breaches(EVER).breaches] == [f"{1:016x}"]
        store.flush()
        assert ids(inside) == ids(outside) == [1, 2]
        assert len(inside.breaches(EVER).breaches) == 1


@pytest.mark.thorough
def test_copies_count_once_whenever_one_asks(store: LocalStore) -> None:
    """Readers keep what they worked out of the spans behind the table; copies of it, and of the table, may follow."""
    waves = [
        ([judged(1)], [1]),
        ([span(2), span(3)], [1, 2, 3]),
        ([span(4), span(2)], [1, 2, 3, 4]),  # one of two is a copy of one before
        ([span(5), span(5)], [1, 2, 3, 4, 5]),
        ([judged(3, trace=1)], [1, 2, 3, 4, 5]),  # a better copy
        ([span(9), judged(6), span(1)], [1, 2, 3, 4, 5, 6, 9]),  # one new, one better than the table's, one worse
        ([judged(9, trace=1)], [1, 2, 3, 4, 5, 6, 9]),
    ]
    store.append(request([span(6, trace=6), span(1, trace=1)]))
    store.flush()
    with store.reader() as inside, LocalReader.open(store.folder) as outside:
        for spans, expected in waves:
            store.append(request(spans))
            for reader in (inside, outside):
                assert ids(reader) == sorted({*expected, 1, 6})
        for reader in (inside, outside):
            broken = {int(one.span_id, 16) for one in reader.breaches(EVER).breaches}
            assert broken == {1, 3, 6, 9}
        store.flush()
        assert ids(inside) == ids(outside) == [1, 2, 3, 4, 5, 6, 9]


def test_client_and_server_may_share_an_id(store: LocalStore) -> None:
    """Zipkin's way: one id, two spans."""
    server, client = span(1), span(1)
    client.kind = client.SPAN_KIND_CLIENT
    store.append(request([server]))
    store.flush()
    store.append(request([client]))
    store.append(request([client], service="other"))
    with store.reader() as reader:
        assert len(reader.trace(f"{1:032x}").spans) == 3


# --- odd times, odd trees


@pytest.mark.parametrize("start", [0, 1, NOW - 2400 * HOUR])
def test_an_old_span_is_kept_as_it_is_and_disturbs_no_other(store: LocalStore, start: int) -> None:
    store.append(request([span(1, start=start), span(2, trace=2)]))
    for _ in range(2):
        with store.reader() as reader:
            assert ids(reader) == [1, 2]
            (found,) = reader.trace(f"{1:032x}").spans
            assert found.start_unix_nano == start
            near = reader.relations(Selection(NOW - HOUR, NOW + HOUR))
            assert list(near.select("SELECT count(*) FROM spans")[1]) == [(1,)]
            near.close()
        store.flush()


def test_late_spans_and_spans_without_parents_belong_to_their_trace(store: LocalStore) -> None:
    store.append(request([span(1), span(7, parent=99)]))
    store.flush()
    store.append(request([span(2, parent=1, start=NOW + 5 * HOUR)]))
    with store.reader() as reader:
        spans = reader.trace(f"{1:032x}").spans
    found = [(int(one.span_id, 16), int(one.parent_span_id or "0", 16)) for one in spans]
    assert found == [(1, 0), (7, 99), (2, 1)]


@pytest.mark.thorough
@pytest.mark.heavier("100,000 spans")
def test_a_trace_of_very_many_spans(store: LocalStore) -> None:
    count = scaled(20_000, 100_000, 100_000)
    for first in range(1, count + 1, 10_000):
        store.append(request([span(at, parent=at // 2, start=NOW + at) for at in range(first, first + 10_000)]))
    with store.reader() as reader:
        assert len(reader.trace(f"{1:032x}").spans) == count
        (traces,) = reader.find_traces(Search(service="api"))
        assert sum(1 for _ in leaves(traces)) == count


def test_get_trace_is_what_was_sent(store: LocalStore) -> None:
    sent = request([span(1, own=True), span(2, parent=1, http__route="/a", raw=b"\xff")])
    store.append(sent)
    for _ in range(2):
        with store.reader() as reader:
            found = reader.get_trace(f"{1:032x}")
            assert found is not None
            back = ExportTraceServiceRequest(resource_spans=found.resource_spans)
            assert back == ExportTraceServiceRequest.FromString(sent)
            assert reader.get_trace(f"{9:032x}") is reader.get_trace("no id") is None
        store.flush()


# --- searches


@pytest.mark.thorough
def test_segments_find_any_attribute_by_its_text(store: LocalStore) -> None:
    attributes: dict[str, Any] = {"text": "a'b", "flag": True, "whole": 5, "part": 0.25, "http__route": "/x"}
    attributes["sla__threshold_ms"] = 50
    store.append(request([span(1, **attributes), span(2, trace=2, text="other")]))
    wanted = {"text": "a'b", "flag": "true", "whole": "5", "part": "0.25", "http.route": "/x", "service.name": "api"}
    wanted["sla.threshold_ms"] = "50"
    for _ in range(2):
        with store.reader() as reader:
            for key, text in wanted.items():
                both = key == "service.name"
                traces = list(reader.find_traces(Search(attributes={key: text})))
                found = {span.name for one in traces for _, _, span in leaves(one)}
                assert found == ({"span 1", "span 2"} if both else {"span 1"}), key
                with reader.relations(replace(EVER, segments={key: text})) as relations:
                    (count,) = relations.select("SELECT count(*) FROM requests")[1]
                    assert count == (2 if both else 1,)
                assert not list(reader.find_traces(Search(attributes={key: text + "0"})))
        store.flush()


def test_find_traces_narrows_by_everything(store: LocalStore) -> None:
    store.append(request([span(at, trace=at, start=NOW + at * MS, ms=at) for at in range(1, 21)]))
    store.append(request([span(99, trace=99)], service="other"))
    with store.reader() as reader:

        def names(**search: Any) -> list[str]:
            traces = reader.find_traces(Search(**search))
            return [span.name for trace in traces for _, _, span in leaves(trace)]

        assert names(service="api", depth=3) == ["span 20", "span 19", "span 18"]
        assert names(operation="span 7") == ["span 7"]
        assert names(service="api", start_min_ns=NOW + 19 * MS) == ["span 20", "span 19"]
        assert names(service="api", start_max_ns=NOW + 3 * MS - 1) == ["span 2", "span 1"]
        assert names(service="api", duration_min_ns=20 * MS) == ["span 20"]
        assert names(service="api", duration_max_ns=1 * MS) == ["span 1"]
        assert reader.operations("other") == [("span 99", "server")]


@pytest.mark.thorough
def test_spans_after_gives_each_span_once_in_order_of_arrival(store: LocalStore) -> None:
    with store.reader() as inside, LocalReader.open(store.folder) as outside:
        for reader in (inside, outside):
            store.append(request([span(1)]))
            spans, cursor = reader.spans_after(None)
            assert spans == []
            seen: list[str] = []
            for number in range(2, 30):
                store.append(request([span(number, start=NOW - number)]))
                if number % 7 == 0:
                    store.flush()
                if number % 3 == 0:
                    spans, cursor = reader.spans_after(cursor)
                    seen += [one.name for one in spans]
            spans, cursor = reader.spans_after(cursor)
            fresh = reader is inside
            assert sorted(seen + [one.name for one in spans]) == sorted(f"span {at}" for at in range(2, 30) if fresh)
            assert reader.spans_after(cursor) == ([], cursor)


def test_spans_after_gives_entry_spans_alone_on_demand(store: LocalStore) -> None:
    """Out of the log, and out of the table."""
    with store.reader() as reader:
        for flushed in (False, True):
            _, cursor = reader.spans_after(None)
            first = 2 * flushed + 1
            store.append(request([span(first), span(first + 1, parent=first)]))
            if flushed:
                store.flush()
            assert [one.name for one in reader.spans_after(cursor, entries=True)[0]] == [f"span {first}"]


# --- compaction, retention


@pytest.mark.thorough
@pytest.mark.parametrize("follow", [True, False])
def test_compaction_changes_no_answer(store: LocalStore, monkeypatch: pytest.MonkeyPatch, *, follow: bool) -> None:
    """Of files that follow each other in time, which are never in memory whole, and of others, which are sorted."""
    import pyarrow.parquet as pq

    for name in ("ROW_GROUP", "ENTRY_GROUP"):
        monkeypatch.setattr(f"stagetrace.store.local.folder.{name}", 7)
    monkeypatch.setattr("stagetrace.store.local.folder._PART_BYTES", 1000)
    monkeypatch.setattr("stagetrace.store.local.table.MERGE_FILES", 1000)  # none by itself
    draw = random.Random(1)
    for at in range(0, 120, 4):
        starts = [NOW + (number * 10**9 if follow else draw.randrange(10**12)) for number in range(at, at + 4)]
        optional: Any = {"own": str(at)} if at % 3 else {}  # a column that not all files have
        store.append(request([judged(at + 1 + each, start=start, **optional) for each, start in enumerate(starts)]))
        store.flush()
    with store.reader() as inside, LocalReader.open(store.folder) as outside:
        before = inside.breaches(EVER)
        assert store.stats()["files"] == 30
        store.compact()
        (file,) = store.view().snapshot.files
        assert inside.breaches(EVER) == outside.breaches(EVER) == before
        assert ids(outside) == list(range(1, 121))
    groups = pq.read_metadata(store.folder / TABLE / file)
    assert [groups.row_group(at).num_rows for at in range(groups.num_row_groups)] == [7] * 17 + [1]
    starts = pq.read_table(store.folder / TABLE / file, partitioning=None)["start_unix_nano"].to_pylist()
    assert starts == sorted(starts)


@pytest.mark.thorough
def test_small_files_are_merged_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagetrace.store.local.store.FLUSH_ROWS", 1)
    with LocalStore.open(tmp_path) as store:
        for at in range(1, 101):
            store.append(request([span(at)]))
            while store.stats()["pending_spans"]:
                threading.Event().wait(0.002)
        assert store.stats()["files_merged"] >= 64
    with LocalStore.open(tmp_path) as store, store.reader() as reader:
        assert ids(reader) == list(range(1, 101))
        assert store.stats()["files"] < 30


def test_prune_is_exact(store: LocalStore) -> None:
    store.append(request([span(at, start=NOW + at * HOUR) for at in range(1, 11)]))
    assert store.prune(NOW + 4 * HOUR) == 3
    with store.reader() as inside, LocalReader.open(store.folder) as outside:
        assert ids(inside) == ids(outside) == list(range(4, 11))
    assert store.prune(NOW + 100 * HOUR) == 7
    with store.reader() as reader:
        assert reader.services() == ()


def test_retention_by_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was received first goes first, whenever its spans start."""
    monkeypatch.setattr("stagetrace.store.local.store.TIDY_S", 0.05)
    with LocalStore.open(tmp_path, retention_bytes=60_000) as store:
        for at in range(1, 11):
            store.append(request([span(at, start=NOW - at, raw=os.urandom(12_000))]))
            store.flush()
            time.sleep(0.002)  # the time of receipt is in ms
        until(lambda: store.stats()["bytes"] <= 60_000)
        with store.reader() as reader:
            kept = ids(reader)
        assert kept
        assert kept == list(range(kept[0], 11)), "the newest stay"
        assert store.stats()["spans_expired"] == 10 - len(kept)


# --- whose folder it is


def test_a_second_writer_gets_the_owner_of_the_folder(store: LocalStore) -> None:
    code = "import sys, pathlib, stagetrace.store.local as local; local.LocalStore.open(pathlib.Path(sys.argv[1]))"
    second = subprocess.run(
        [sys.executable, "-c", code, str(store.folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert f"process {os.getpid()} has it" in second.stderr
    with pytest.raises(StoreError, match=f"process {os.getpid()} has it"):
        LocalStore.open(store.folder)


def test_a_newer_format_is_refused_and_an_older_one_read(tmp_path: Path) -> None:
    with LocalStore.open(tmp_path) as store:
        store.append(request([span(1)]))
    (tmp_path / FORMAT).write_text(json.dumps({"version": 999}))
    for opened in (LocalStore.open, LocalReader.open):
        with pytest.raises(StoreError, match="its format is 999") as told:
            opened(tmp_path)
        assert "update stagetrace" in str(told.value)
    (tmp_path / FORMAT).write_text(json.dumps({"version": 1, "made_by": "an older one"}))
    with LocalReader.open(tmp_path) as reader:
        assert ids(reader) == [1]


def test_columns_that_an_older_version_did_not_know_are_empty(store: LocalStore) -> None:
    """An older folder lacks the columns of attributes that got one later: they are read as absent."""
    import pyarrow.parquet as pq

    store.append(request([judged(1)]))
    store.flush()
    (file,) = (store.folder / TABLE).glob("*/*.parquet")
    table = pq.read_table(file, partitioning=None)
    pq.write_table(table.drop_columns(["inference_ms", "threshold_ms"]), file)
    store.append(request([judged(2)]))
    store.flush()
    store.compact()
    with store.reader() as inside, LocalReader.open(store.folder) as outside:
        assert ids(inside) == ids(outside) == [1, 2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        LocalStore.open(tmp_path / "store")


def test_someone_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match=r"it holds thesis\.txt"):
        LocalStore.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(StoreError, match="is no store"):
        LocalReader.open(tmp_path)
    with pytest.raises(StoreError, match=r"Not a directory|File exists"):
        LocalStore.open(tmp_path / "thesis.txt")


def test_the_default_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "stagetrace"
    monkeypatch.delenv("XDG_DATA_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder() == tmp_path / ".local" / "share" / "stagetrace"


def test_nothing_of_the_log_stays_once_it_is_in_the_table(store: LocalStore) -> None:
    store.append(request([span(1)]))
    assert wal.segments(store.folder / WAL)
    store.flush()
    assert not wal.segments(store.folder / WAL)
