"""The archive of a local store in a bucket, against moto: what is copied, and what is read of it."""

from __future__ import annotations

import json
import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backends import LOOPBACK, free_port
from cli.running import answered, refused
from s3 import BUCKET, S3, fill, run_s3
from stagetrace.backend.archiver import copy_closed
from stagetrace.errors import StoreError, UnknownTrace
from stagetrace.store import Selection, open_store
from stagetrace.store.local import LocalStore
from stagetrace.store.local.delta import ARCHIVED, CLAIMED, File, Received
from stagetrace.store.s3.archive import Archive, file_of, name_of
from stagetrace.store.s3.cache import Cache
from stagetrace.store.s3.reader import ArchiveReader
from store.local.made import EVER, HOUR, NOW, ids, judged, request, span

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stagetrace.store.local import LocalReader

pytestmark = pytest.mark.service
DAY = 24 * HOUR


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with run_s3(tmp_path_factory.mktemp("moto")) as running:
        yield running


@pytest.fixture
def url(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the URL of an archive of this test's own, of which the cache is empty."""
    for name, value in {**server.environment, "XDG_CACHE_HOME": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    with LocalStore.open(tmp_path / "data", archived=True) as opened:
        yield opened


def archived(url: str) -> ArchiveReader:
    reader = open_store(url)
    assert isinstance(reader, ArchiveReader)
    return reader


def breached(reader: LocalReader) -> int:
    return len(reader.breaches(EVER).breaches)


def objects(server: S3, url: str) -> list[str]:
    """Return the names of files in an archive."""
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    return [name for name in server.names() if name.startswith(prefix) and name.endswith(".parquet")]


def test_a_better_copy_of_an_archived_span_counts_in_its_place(url: str, store: LocalStore) -> None:
    """Both are in the archive, in two files, of which nothing changes."""
    store.append(request([span(1, trace=1), span(2, trace=2), span(3, trace=3)]))
    fill(store, url)
    store.append(request([judged(2, trace=2), judged(4, trace=4)]))
    fill(store, url)
    store.append(request([span(2, trace=2)]))  # a worse one, which the store drops
    fill(store, url)
    with archived(url) as reader, store.reader() as local:
        assert ids(reader) == ids(local) == [1, 2, 3, 4]
        assert breached(reader) == breached(local) == 2
        assert [len(one.spans) for one in reader.traces(["0" * 31 + "2"])] == [1]
    assert any(file.late for file in Archive(url).files(0, 2**63 - 1))


def test_what_is_pruned_here_stays_there(url: str, store: LocalStore, server: S3) -> None:
    """And what is left of the file that was cut is not copied again."""
    store.append(request([span(number, trace=number, start=NOW + number * HOUR) for number in range(1, 7)]))
    fill(store, url)
    before = objects(server, url)
    assert store.prune(NOW + 4 * HOUR) == 3
    assert fill(store, url) == 0
    assert objects(server, url) == before
    with archived(url) as reader, store.reader() as local:
        assert (ids(reader), ids(local)) == ([1, 2, 3, 4, 5, 6], [4, 5, 6])


def test_a_copy_that_was_cut_off_is_made_again_and_counts_once(
    url: str, store: LocalStore, server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the copy and its note; in between spans are pruned from the file, and copies of others merge."""
    store.append(request([span(number, trace=number, start=NOW + number * HOUR) for number in range(1, 5)]))

    def killed(_path: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "note_archived", killed)
        with pytest.raises(KeyboardInterrupt):
            fill(store, url)
    (file,) = store.view().snapshot.files.values()
    assert file.archive == CLAIMED
    store.close()
    with LocalStore.open(tmp_path / "data", archived=True) as again:
        assert again.prune(NOW + 3 * HOUR) == 2
        again.append(request([span(9, trace=9, start=NOW + 3 * HOUR)]))
        again.flush()
        again.compact()
        assert len(again.view().snapshot.files) == 2  # a file that may have been copied is never merged
        fill(again, url)
        assert {one.archive for one in again.view().snapshot.files.values()} == {ARCHIVED}
        assert fill(again, url) == 0
    assert len(objects(server, url)) == 3
    with archived(url) as reader:
        assert ids(reader) == [1, 2, 3, 4, 9]


def test_a_window_fetches_its_files_alone(url: str, store: LocalStore, tmp_path: Path) -> None:
    for number in range(1, 41):
        store.append(request([judged(number, start=NOW + number * DAY)]))
        fill(store, url)
    store.append(request([span(100, trace=100, start=NOW + DAY), span(101, trace=100, start=NOW + 30 * DAY)]))
    fill(store, url)
    cache = tmp_path / "cache"
    with archived(url) as reader:
        window = Selection(NOW + 20 * DAY, NOW + 22 * DAY)
        assert len(reader.breaches(window).breaches) == 2
        assert len(list(cache.rglob("*.parquet"))) == 3  # one of many days, too
        assert len(reader.breaches(replace(window, service="api")).breaches) == 2
        assert len(list(cache.rglob("*.parquet"))) <= 7
        assert ids(reader) == [*range(1, 41), 100, 101]
        assert len(reader.trace(f"{100:032x}").spans) == 2
    names = {path.parents[1].name for path in cache.rglob("*.parquet")}
    assert len(names) == 41
    assert "day=long" in names


def test_more_than_the_cache_takes_is_incomplete_and_says_so(url: str, store: LocalStore) -> None:
    for number in range(1, 5):
        store.append(request([judged(number, start=NOW + number * DAY)]))
        fill(store, url)
    newest = Archive(url).files(0, 2**63 - 1)[:2]
    with archived(url) as reader:
        reader._cache._most = sum(file.size for file in newest)
        found = reader.breaches(EVER)
        assert [one.trace_id for one in found.breaches] == [f"{4:032x}", f"{3:032x}"]
        assert found.reason is not None
        assert "of 4 files of the archive the newest 2 were read, at most 0.00 GiB" in found.reason
        assert "2 spans are missing (ask for less time)" in found.reason
        with pytest.raises(UnknownTrace, match="the newest 2 were read"):
            reader.trace(f"{1:032x}")
        assert reader.breaches(Selection(NOW + DAY, NOW + DAY + 1)).complete


def test_names_are_looked_for_in_the_time_asked_for_and_in_the_newest_files(
    url: str, store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nowhere else: a word in a question about an hour must not fetch an archive of years."""
    for number, service in enumerate(("old", "new", "newer", "newest")):
        store.append(request([judged(number + 1, start=NOW + 3 * number * DAY)], service=service))
        fill(store, url)
    files = Archive(url).files(0, 2**63 - 1)
    monkeypatch.setattr("stagetrace.store.s3.reader.NAMES_BYTES", files[0].size)
    of_old = Selection(NOW, NOW + 1, service="old")
    with archived(url) as reader:
        assert len(reader.breaches(of_old).breaches) == 1
        with reader.relations(of_old) as relations:
            assert list(relations.select("SELECT count(*) FROM requests")[1]) == [(1,)]
        wrong = replace(of_old, service="ol")
        for ask in (reader.breaches, reader.relations):
            with pytest.raises(StoreError, match="it holds newest\nof 4 files of the archive the newest 1 were read"):
                ask(wrong)
        nothing = reader.breaches(Selection(NOW + DAY, NOW + DAY + 1))
        assert nothing.tally.newest_unix_nano == NOW + 9 * DAY
        assert nothing.complete
        assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 2
        assert reader.services() == ("new", "newer", "newest", "old")


def test_the_cache_makes_room_by_what_was_not_used_for_longest(
    url: str, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, 4):
        store.append(request([judged(number, start=NOW + number * DAY)]))
        fill(store, url)
    monkeypatch.setattr("stagetrace.store.s3.cache._IN_USE_S", -1)
    archive = Archive(url)
    newest, middle, oldest = archive.files(0, 2**63 - 1)
    cache = Cache(archive, most=newest.size + middle.size + 10)
    for one in (oldest, newest, middle):
        assert cache.take([one], lambda *_: None).reason is None
    left = {path.name for path in cache.folder.rglob("*.parquet")}
    assert left == {one.path.rpartition("/")[2] for one in (newest, middle)}


def test_retention_counts_what_it_drops_before_it_is_archived(tmp_path: Path, url: str) -> None:
    with LocalStore.open(tmp_path / "data", archived=True, retention_s=36_000) as store:
        store.append(request([span(1, trace=1), span(2, trace=2)]))
        fill(store, url)
        store.append(request([span(3, trace=3)]))
        store.flush()
        stats = store.stats()
        assert (stats["unarchived_files"], stats["unarchived_spans"]) == (1, 1)
        store._change(lambda table: table.expire(-HOUR))
        assert store.stats()["spans_expired_unarchived"] == 1


def test_what_a_limit_of_size_drops_next_is_copied_first(tmp_path: Path, url: str) -> None:
    """Though its hour is not over."""
    with LocalStore.open(tmp_path / "data", archived=True, retention_bytes=10_000) as store:
        for number in range(1, 3):
            store.append(request([span(number * 100 + at, trace=number) for at in range(40)]))
            store.flush()
        first, second = sorted(store.view().snapshot.files.values(), key=lambda one: one.min_sequence)
        store._limits = store._limits._replace(retention_bytes=first.size + second.size + 100)
        archive = Archive(url)
        archive.begin()
        assert [file.path for file in copy_closed(store, archive)] == [first.path]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("start", "end"), [(0, 0), (NOW, NOW + DAY), (NOW, NOW + DAY + 1), (2**63 - 2, 2**63 - 1)])
def test_a_name_has_what_a_reader_needs(start: int, end: int, *, late: bool) -> None:
    path = "entry=true/0123456789abcdef0123456789abcdef.parquet"
    file = File(path, 77, 5, True, start, end, 3, 4, 99, Received(7, 8), 5, CLAIMED, late)  # noqa: FBT003
    name = name_of(file)
    assert name.startswith("day=long/" if end - start > DAY else "day=")
    read = file_of(name)
    wanted = replace(file, path=name, min_sequence=0, max_sequence=0, raw=0, received=Received(8, 8), archive=ARCHIVED)
    assert read == wanted
    assert file_of("day=x/entry=true/other.parquet") is None


@contextmanager
def cutting(server: S3, after: int) -> Iterator[int]:
    """Pass connections on to a server, and cut one once, after so many bytes over all of them; yield the port."""
    sent = 0
    cut = threading.Event()

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((LOOPBACK, server.port)) as upstream, suppress(OSError):
                back = threading.Thread(target=self.send_back, args=(upstream,), daemon=True)
                back.start()
                while data := self.request.recv(1 << 16):
                    nonlocal sent
                    sent += len(data)
                    if sent > after and not cut.is_set():
                        cut.set()
                        break
                    upstream.sendall(data)
                upstream.shutdown(socket.SHUT_RDWR)
                back.join()

        def send_back(self, upstream: socket.socket) -> None:
            with suppress(OSError):
                while data := upstream.recv(1 << 16):
                    self.request.sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server((LOOPBACK, 0), Forward) as forwarding:
        threading.Thread(target=forwarding.serve_forever, daemon=True).start()
        yield forwarding.server_address[1]
        forwarding.shutdown()
        assert cut.is_set()


def test_an_upload_that_is_cut_off_leaves_no_part_of_the_file(
    url: str, server: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file of several parts the second is cut off; PyArrow then completes the upload with the first."""
    name, content = "day=2026-12-01/entry=true/x.parquet", os.urandom(25 << 20)
    prefix = url.removeprefix(f"s3://{BUCKET}/")
    with cutting(server, 12 << 20) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{LOOPBACK}:{port}")
        archive = Archive(url, attempts=1)
        with pytest.raises(StoreError, match="cannot write"):
            archive._put(name, content)
        there = [one for one in server.names() if one.startswith(prefix)]
        assert f"{prefix}/{name}" not in there
        archive._put(name, content)
        assert archive._size(name) == len(content)
    assert [one for one in server.names() if one.startswith(prefix)] == [f"{prefix}/{name}"]


def test_an_object_that_was_cut_is_an_error(url: str, store: LocalStore, server: S3) -> None:
    store.append(request([span(1, trace=1)]))
    fill(store, url)
    (name,) = objects(server, url)
    with Archive(url)._bucket.open_output_stream(f"{BUCKET}/{name}") as stream:
        stream.write(b"PAR1")
    assert "has 4 bytes in place of" in refused("services", "--store", url)


def test_every_error_says_what_fixes_it(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad, words in {
        url: f"there is no archive at {url}\n`stagetrace up --archive {url}` makes one",
        "s3://": "write s3://BUCKET/PREFIX",
        "s3://Bucket!/x": "write s3://BUCKET/PREFIX",
        "s3://bucket/x//y": "an empty part",
    }.items():
        assert words in refused("services", "--store", bad), bad
    assert "NO_SUCH_BUCKET" in failure(f"s3://{BUCKET}-not-there/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{LOOPBACK}:{free_port()}")
    said = refused("services", "--store", url)
    assert "NETWORK_CONNECTION" in said
    assert "check AWS_ENDPOINT_URL" in said


def test_an_archive_of_a_newer_format_is_not_read(url: str) -> None:
    Archive(url)._put("archive.json", b'{"version": 2}')
    assert "has the format 2" in refused("services", "--store", url)
    Archive(url)._put("archive.json", b"{")
    assert "is damaged" in refused("services", "--store", url)


def test_commands_answer_of_an_archive_as_of_the_folder(url: str, store: LocalStore) -> None:
    store.append(request([judged(number, breached=number % 3 == 0) for number in range(1, 31)]))
    fill(store, url)
    store.flush()
    ever = ("--since", "2020-01-01T00:00:00Z")
    for verb in ("breaches", "stages", "requests", "services"):
        given = ever if verb != "services" else ()
        assert answered(verb, "--store", url, *given) == answered(verb, "--store", store.folder, *given)


def test_clickhouse_reads_the_files_of_an_archive(url: str, server: S3, store: LocalStore) -> None:
    """By the example of docs/folder.md; the other spans of that day are in another folder."""
    store.append(request([judged(number, breached=number % 3 == 0, http__route="/x") for number in range(1, 31)]))
    store.append(request([span(100, trace=1, parent=1)]))
    fill(store, url)
    page = (Path(__file__).parents[2] / "docs/folder.md").read_text()
    (sql,) = (one for one in re.findall(r"^```sql\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "s3(" in one)
    sql = sql.replace("https://HOST/BUCKET/PREFIX", f"http://{LOOPBACK}:{server.port}/{url.removeprefix('s3://')}")
    script = "import sys, chdb; sys.stdout.write(str(chdb.query(sys.stdin.read(), 'JSONCompactEachRow')))"
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, input=sql.replace("2026-11-*", "*"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["api", "/x", 30, 10]


def failure(url: str) -> str:
    with pytest.raises(StoreError) as raised:
        Archive(url).begin()
    return str(raised.value)
