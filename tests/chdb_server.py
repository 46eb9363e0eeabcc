"""Serve chDB, the engine of ClickHouse in process, by ClickHouse's HTTP interface: a test double, not the real server.

The engine is real, and so are its SQL, formats, settings and errors. The interface is not: there are two users, no TLS,
no session that outlives a request, no compressed response and no progress. A response is complete before its first byte
leaves. The engine knows every user as `default`, and no query by the id of its request. A query goes on after its
client has closed the connection.

Run `python chdb_server.py PORT FOLDER`: it listens on loopback, and keeps its data in FOLDER.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import struct
import sys
import uuid
from contextlib import contextmanager
from email import message_from_bytes
from email.policy import HTTP
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import chdb
import lz4.frame
import uvicorn
import zstandard
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002 -- Starlette looks it up
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PASSWORDS = {"default": "", "reader": "secret"}
READONLY = {"reader"}  # readonly=1: changes no data and no setting
# What the URL may hold beside settings, some of which this server ignores.
NO_SETTINGS = {
    *("query", "database", "user", "password", "query_id", "quota_key", "role", "default_format"),
    *("client_protocol_version", "session_id", "session_timeout", "session_check", "wait_end_of_query"),
}
DECODERS: dict[str | None, Callable[[bytes], bytes]] = {
    None: bytes,
    "gzip": gzip.decompress,
    "lz4": lambda data: lz4.frame.open(io.BytesIO(data)).read(),  # a frame for each block
    "zstd": lambda data: zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(),
}
UNSUPPORTED = {"compress", "decompress"}  # blocks of ClickHouse's own, with its checksum
STATUS = {62: 400, 36: 400, 47: 404, 60: 404, 81: 404, 115: 404, 159: 408, 516: 403, 48: 501}
HAS_RESULT = re.compile(rb"\s*(\(|SELECT|WITH|SHOW|DESC|EXISTS|EXPLAIN|CHECK)", re.IGNORECASE)
INSERT = re.compile(  # and data behind it
    rb"(\s*INSERT\s.*?)(\sSETTINGS\s[^\n]*?)?(\sFORMAT\s+(?!Values)\w+)[ \t]*\n(.+)", re.IGNORECASE | re.DOTALL
)
FORMAT = re.compile(rb"\bFORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)
WIDTHS = {"UInt8": 1, "Bool": 1, "UInt16": 2, "UInt32": 4, "DateTime": 4, "UInt64": 8, "Int64": 8, "Float64": 8}
FOLDER = sys.argv[2] if __name__ == "__main__" else ""


class Refused(Exception):  # noqa: N818
    """Report an error of this interface, in ClickHouse's form."""

    def __init__(self, code: int, text: str, name: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {text}. ({name})")


def user_of(request: Request, fields: dict[str, str]) -> str:
    """Return the user of a request, by whichever of the three ways it names one."""
    user = request.headers.get("x-clickhouse-user", fields.get("user", "default"))
    password = request.headers.get("x-clickhouse-key", fields.get("password", ""))
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        user, _, password = base64.b64decode(credentials).decode().partition(":")
    if PASSWORDS.get(user) != password:
        text = f"{user}: Authentication failed: password is incorrect, or there is no user with such name"
        raise Refused(516, text, "AUTHENTICATION_FAILED")
    return user


def fields_of(request: Request, body: bytes) -> tuple[dict[str, str], bytes]:
    """Return the fields of the URL and of a form, and the rest of the statement: the body of all but a form."""
    fields = dict(request.query_params)
    encoding = request.headers.get("content-encoding")
    if encoding not in DECODERS:
        raise Refused(48, f"This double cannot decode {encoding}", "NOT_IMPLEMENTED")
    body = DECODERS[encoding](body)
    kind = request.headers.get("content-type", "")
    if not kind.startswith("multipart/form-data"):
        return fields, body
    form = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body, policy=HTTP)
    for part in form.iter_parts():
        fields[part["content-disposition"].params["name"]] = bytes(part.get_payload(decode=True)).decode()
    return fields, b""


def run(method: str, user: str, fields: dict[str, str], body: bytes) -> tuple[bytes, dict[str, str]]:
    """Return the result of a statement, and the headers that describe it."""
    if UNSUPPORTED & fields.keys():
        raise Refused(48, "This double cannot compress: set compress to none", "NOT_IMPLEMENTED")
    statement = b"\n".join(part for part in (fields.get("query", "").encode(), body) if part)
    parameters = {name[6:]: text for name, text in fields.items() if name.startswith("param_")}
    settings = {name: fields[name] for name in fields.keys() - NO_SETTINGS if not name.startswith("param_")}
    session = chdb.connect(FOLDER)  # settings and the database are those of one request
    try:
        if "database" in fields:
            session.query(f"USE `{fields['database']}`")
        session.query("SET implicit_select = 0, storage_file_read_method = 'pread'")  # as the server has them
        if user in READONLY or method == "GET":
            session.query(f"SET readonly = {1 if user in READONLY else 2}")
        if settings:
            session.query("SET " + ", ".join(f"{name} = {quoted(text)}" for name, text in settings.items()))
        with from_file(statement) as text:
            result = session.query(text, fields.get("default_format", "TabSeparated"), params=parameters)
        read = {"read_rows": str(result.storage_rows_read()), "read_bytes": str(result.storage_bytes_read())}
        read |= {"written_rows": str(result.rows_written()), "written_bytes": str(result.bytes_written())}
        headers = {"X-ClickHouse-Summary": json.dumps(read | {"elapsed_ns": str(int(result.elapsed() * 1e9))})}
        content = result.bytes() or b""
    finally:
        session.close()
    if HAS_RESULT.match(statement):
        found = FORMAT.search(statement)
        headers["X-ClickHouse-Format"] = found[1].decode() if found else fields.get("default_format", "TabSeparated")
        if headers["X-ClickHouse-Format"] == "Native" and int(fields.get("client_protocol_version", "0")) >= 54454:
            content = revised(content)
    return content, headers


@contextmanager
def from_file(statement: bytes) -> Iterator[str]:
    """Yield a statement whose data, if any, are in a file: behind its text the engine may cut them."""
    found = INSERT.fullmatch(statement)
    if found is None:
        yield statement.decode()
        return
    insert, settings, form, data = found.groups(b"")
    with NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        yield f"{insert.decode()} FROM INFILE {quoted(file.name)} COMPRESSION 'none' {settings.decode()}{form.decode()}"


def quoted(text: str) -> str:
    """Return a literal of SQL."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def revised(native: bytes) -> bytes:
    """Return blocks of the format Native as clients of revision 54454 and later, as clickhouse-go, expect them.

    They have information of the block in front, and in each column a byte for how it is serialised; the engine writes
    those of revision 0. Only text and numbers are understood: metadata, which is all that the exporter asks for.
    """
    source, out = io.BytesIO(native), b""

    def copy(size: int) -> bytes:
        nonlocal out
        out += (taken := source.read(size))
        return taken

    def number() -> int:
        value = shift = 0
        while True:
            (byte,) = copy(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while source.tell() < len(native):
        out += b"\1\0\2" + struct.pack("<i", -1) + b"\0"
        columns, rows = number(), number()
        for _ in range(columns):
            copy(number())
            kind = copy(number()).decode()
            out += b"\0"
            if kind not in WIDTHS and kind != "String":
                raise Refused(48, f"This double cannot send a column of {kind} in that revision", "NOT_IMPLEMENTED")
            for _ in range(rows):
                copy(WIDTHS[kind] if kind in WIDTHS else number())
    return out


async def answer(request: Request) -> Response:
    """Answer one request, with an error in ClickHouse's form."""
    if request.url.path in ("/ping", "/replicas_status") or (request.method == "GET" and not request.url.query):
        return Response("Ok.\n")
    headers = {"X-ClickHouse-Query-Id": request.query_params.get("query_id") or str(uuid.uuid4())}
    headers |= {"X-ClickHouse-Server-Display-Name": "chdb", "X-ClickHouse-Timezone": TIMEZONE}
    try:
        fields, body = fields_of(request, await request.body())
        user = user_of(request, fields)
        content, described = await run_in_threadpool(run, request.method, user, fields, body)
    except (Refused, chdb.ChdbError) as error:
        text = str(error)
        found = re.search(r"Code: (\d+)", text)
        code = int(found[1]) if found else 1001
        headers |= {"X-ClickHouse-Exception-Code": str(code)}
        version = "" if "(version " in text else f" (version {chdb.engine_version} (official build))"
        return Response(f"{text}{version}\n", STATUS.get(code, 500), headers, "text/plain; charset=UTF-8")
    return Response(content, 200, headers | described, "application/octet-stream")


if __name__ == "__main__":
    engine: Any = chdb.connect(FOLDER)  # the last connection that closes would end the engine
    TIMEZONE = engine.query("SELECT timezone()", "TabSeparated").bytes().decode().strip()
    application = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])
    uvicorn.run(application, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", http="httptools")
