"""An archive: Parquet files of a local store in a bucket, with their names as the index; nothing in it ever changes.

`PREFIX/day=2026-12-01/entry=true/NAME.parquet`, by the day (UTC) on which its first span starts, or `day=long` for a
file of more than a day. NAME has what a reader has to know of a file before it fetches it, so that one listing of
a few days is the index of a time window, written with the file at once, by as many writers as there are.
`PREFIX/archive.json` is the version of this format, `PREFIX/unfinished/` what is being written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from stagetrace import settings
from stagetrace.errors import StoreError
from stagetrace.store.database import needs
from stagetrace.store.local import durable
from stagetrace.store.local.delta import ARCHIVED, PARTITION, File, Received

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, S3FileSystem

VERSION: Final = 1
_FORMAT: Final = "archive.json"
_UNFINISHED: Final = "unfinished"
_DAY_NS: Final = 86_400 * 10**9
_LONG: Final = "long"
_MOST_DAYS: Final = 62  # listed one by one; beyond that, all are listed at once
_LAST_DAY: Final = 106_751  # that nanoseconds reach
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_CONNECT_S: Final = 5
_REQUEST_S: Final = 10  # without a byte; the end of a process waits for a request that it makes
_ATTEMPTS: Final = 3
_NAME: Final = re.compile(
    rf"day=[^/]+/{PARTITION}=(true|false)/(\d+)-(\d+)-(\d+)-(\d+)-(\d+)-(\d+)(-late)?-(\w+)\.parquet", re.ASCII
)
# Words of an error of AWS's -> what fixes it.
_REMEDIES: Final = {
    "NO_SUCH_BUCKET": "check the name of the bucket; stagetrace makes none",
    "ACCESS_DENIED": "the key needs s3:ListBucket and s3:GetObject, to write s3:PutObject and s3:DeleteObject",
    "INVALID_ACCESS_KEY_ID": "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "SIGNATURE_DOES_NOT_MATCH": "check AWS_SECRET_ACCESS_KEY",
}
_REMEDY: Final = "check AWS_ENDPOINT_URL, AWS_REGION, the credentials and the network"


def place(url: str) -> str:
    """Return bucket and prefix of `s3://BUCKET[/PREFIX]`. Raise ValueError."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    prefix = parts.path.strip("/")
    if parts.scheme.lower() != "s3" or not re.fullmatch(r"[a-z0-9][a-z0-9.-]+", parts.netloc) or parts.query:
        raise ValueError(f"{url!r} is no archive: write s3://BUCKET/PREFIX")
    if not prefix.isprintable() or "//" in prefix or parts.fragment:
        raise ValueError(f"{url!r} is no archive: its prefix has an empty part or characters that do not show")
    return "/".join(filter(None, (parts.netloc, prefix)))


class Archive:
    """The archive at one URL; nothing is sent before it is used. Safe for several threads."""

    def __init__(self, url: str, attempts: int = _ATTEMPTS) -> None:
        """Take a URL that `place` takes. Endpoint, region and credentials are those of AWS's variables and files."""
        self._attempts = attempts
        self.place = place(url)
        self.url = f"s3://{self.place}"

    def begin(self) -> None:
        """Mark the place as an archive. Raise StoreError where it is one of a newer format, or cannot be written."""
        if self._format() is None:
            self._put(_FORMAT, json.dumps({"version": VERSION}).encode())

    def check(self) -> None:
        """Raise StoreError where there is no archive, or one of a newer format."""
        if self._format() is None:
            raise StoreError(f"there is no archive at {self.url}\n`stagetrace up --archive {self.url}` makes one")

    def put(self, file: File, path: Path) -> None:
        """Copy a file, which is there as a whole or not at all, unless it is there already.

        Raise StoreError, and FileNotFoundError where `path` is not there any more.
        """
        import pyarrow as pa

        name = name_of(file)
        with pa.memory_map(str(path)) as content:
            if self._size(name) != file.size:
                self._put(name, content.read_buffer())

    def get(self, name: str, path: Path) -> None:
        """Fetch a file durably enough for a cache: `path` is there as a whole or not at all. Raise StoreError."""
        from pyarrow.fs import LocalFileSystem, copy_files

        durable.make_folder(path.parent)
        temporary = durable.temporary_name(path.parent)
        try:
            durable.make_file(temporary)
            self._ask("read", copy_files, f"{self.place}/{name}", str(temporary), self._bucket, LocalFileSystem())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def files(self, since_ns: int, until_ns: int) -> list[File]:
        """Return the files that may hold spans which start in [since_ns, until_ns), the newest first."""
        first, last = (min(max(0, ns // _DAY_NS), _LAST_DAY) for ns in (since_ns, until_ns))
        if last - first > _MOST_DAYS:
            listed = self._list("")
        else:
            days = [_day(day) for day in range(max(0, first - 1), last + 1)]  # a file may go on over midnight
            listed = chain.from_iterable(self._list(f"/day={day}") for day in (*days, _LONG))
        found = filter(None, map(self._file, listed))
        wanted = [file for file in found if file.max_start >= since_ns and file.min_start < until_ns]
        return sorted(wanted, key=lambda file: (file.max_start, file.path), reverse=True)

    def _file(self, listed: FileInfo) -> File | None:
        """Return what the name of an object says; None where it is none of ours. Raise StoreError where it is cut."""
        file = file_of(listed.path.removeprefix(f"{self.place}/"))
        if file is not None and file.size != listed.size:
            wrong = f"{self.url}/{file.path} has {listed.size} bytes in place of {file.size}"
            raise StoreError(f"{wrong}\nput it back from a copy, or delete it: its {file.rows} spans are then missing")
        return file

    @cached_property
    def _bucket(self) -> S3FileSystem:
        try:
            from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem
        except ImportError:
            raise needs("an archive in S3", "pyarrow") from None
        endpoint = settings.AWS_ENDPOINT_URL_S3.read() or settings.AWS_ENDPOINT_URL.read()
        scheme, found, host = endpoint.rpartition("://")
        options: dict[str, Any] = {"endpoint_override": host.rstrip("/"), "scheme": scheme} if found else {}
        return self._ask(
            "open",
            S3FileSystem,
            background_writes=False,  # which would copy each part
            connect_timeout=_CONNECT_S,
            request_timeout=_REQUEST_S,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=self._attempts),
            **options,
        )

    def _format(self) -> int | None:
        """Return the version of the archive; None where there is none. Raise StoreError for a newer one."""
        if self._size(_FORMAT) is None:
            return None

        def read() -> bytes:
            with self._bucket.open_input_stream(f"{self.place}/{_FORMAT}") as stream:
                content: bytes = stream.read()
                return content

        try:
            version = int(json.loads(self._ask("read", read))["version"])
        except (ValueError, KeyError, TypeError):
            raise StoreError(f"{self.url}/{_FORMAT} is damaged\nname another prefix, or delete it") from None
        if version > VERSION:
            raise StoreError(
                f"the archive at {self.url} has the format {version}, and this stagetrace knows {VERSION}\n"
                "update stagetrace, or name another prefix"
            )
        return version

    def _size(self, name: str) -> int | None:
        (info,) = self._ask("read", self._bucket.get_file_info, [f"{self.place}/{name}"])
        return info.size if info.is_file else None

    def _list(self, below: str) -> Iterator[FileInfo]:
        from pyarrow.fs import FileSelector

        selector = FileSelector(f"{self.place}{below}", allow_not_found=True, recursive=True)
        return (one for one in self._ask("read", self._bucket.get_file_info, selector) if one.is_file)

    def _put(self, name: str, content: Any) -> None:
        """Write an object that is there as a whole or not at all.

        It gets its name once it is complete: where a part of it fails, PyArrow completes it without that part.
        """
        temporary = f"{_UNFINISHED}/{name.replace('/', '+')}"  # one folder, of which PyArrow leaves an empty object

        def write() -> None:
            with self._bucket.open_output_stream(f"{self.place}/{temporary}") as stream:
                stream.write(content)

        self._ask("write", write)
        if self._size(temporary) != len(content):
            raise StoreError(f"cannot write {self.url}: {name} is not as long as it was written\n{_REMEDY}")
        self._ask("write", self._bucket.copy_file, f"{self.place}/{temporary}", f"{self.place}/{name}")
        self._ask("write", self._bucket.delete_file, f"{self.place}/{temporary}")

    def _ask(self, what: str, do: Any, *values: Any, **named: Any) -> Any:
        """Return what a call gives. Raise StoreError where it fails."""
        try:
            return do(*values, **named)
        except (OSError, ValueError) as error:
            short = re.search(r"AWS Error (\w+)[^:]*: (.*?)(?: \(Request ID.*|; Details.*)?$", str(error), re.DOTALL)
            why = f"{short[1]}: {short[2]}" if short else str(error).partition("\n")[0]
            remedy = _REMEDIES.get(short[1] if short else "", _REMEDY)
            raise StoreError(f"cannot {what} {self.url}: {why}\n{remedy}") from None


def name_of(file: File) -> str:
    """Return the name of a file of a local store in an archive."""
    is_long = file.max_start - file.min_start > _DAY_NS
    day = _LONG if is_long else _day(file.min_start // _DAY_NS)
    bounds = (file.min_start, file.max_start, file.rows, file.size, file.received.last, file.generation)
    late = ["late"] if file.late else []
    name = "-".join([*map(str, bounds), *late, Path(file.path).stem])
    return f"day={day}/{PARTITION}={str(file.entry).lower()}/{name}.parquet"


def file_of(name: str) -> File | None:
    """Return the file that a name in an archive describes; None for any other name."""
    if (found := _NAME.fullmatch(name)) is None:
        return None
    start, end, rows, size, received, generation = map(int, found.groups()[1:7])
    return File(
        name,
        size,
        rows,
        found[1] == "true",
        start,
        end,
        0,
        0,
        0,
        Received(received, received),
        generation,
        ARCHIVED,
        late=found[8] is not None,
    )


def _day(number: int) -> str:
    return (_EPOCH + timedelta(days=number)).date().isoformat()
