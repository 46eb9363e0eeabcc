"""aiohttp.web, by `run_app`, runners and gunicorn's workers: each request that its protocol handles is recorded."""

from __future__ import annotations

import functools
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end
from stagetrace.instrumentation.async_servers.base import adapter, note_error, note_route, passing, request_of, stepped
from stagetrace.instrumentation.base import after, before, patching, wrap_all
from stagetrace.instrumentation.servers import be_prepared, flushing, hurry, preparing
from stagetrace.semconv import NETWORK_RECEIVE, NETWORK_SEND

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.instrumentation.async_servers.request import ServerRequest

REQUEST = "_stagetrace_request"
READS = ("read", "readany", "readchunk", "readexactly", "readuntil")
RAY = ("/ray/dashboard/", "/ray/_private/")  # processes of Ray's own, which serve no requests of the service


def patch_protocol(module: ModuleType) -> None:
    """Wrap the handling of a request, and what writes its response."""
    if _is_of_ray():
        return
    patching(
        {
            "RequestHandler._handle_request": partial(_handling, module),
            "RequestHandler.handle_error": before(_note_error),
            "StreamWriter.write_headers": _writing_headers,
            "StreamWriter.write": partial(_writing, is_last=False),
            "StreamWriter.write_eof": partial(_writing, is_last=True),
        }
    )(module)


def patch_streams(module: ModuleType) -> None:
    """Wrap the methods by which an application reads the body of a request."""
    reading = passing(lambda reader, *_, **__: request_of(reader), NETWORK_RECEIVE)
    wrap_all((module.StreamReader, name, reading) for name in READS if hasattr(module.StreamReader, name))


def patch_runner(module: ModuleType) -> None:
    """Wrap the start and the end of a server."""
    if not _is_of_ray():
        patching({"BaseRunner.setup": preparing, "BaseRunner.cleanup": _ending})(module)


def _ending(cleanup: Any) -> Any:
    return before(hurry)(flushing(cleanup))


def _is_of_ray() -> bool:
    file = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    return any(part in file for part in RAY)


# --- a request


def _handling(module: ModuleType, original: Any) -> Any:
    @functools.wraps(original)
    async def _handle_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        one = None
        if getattr(request, "_message", None) is not module.ERROR:  # what is no HTTP is no request
            await be_prepared()  # where no runner has: the first request waits for it
            one = _begin(self, request)
        if one is None:
            return await original(self, request, *args, **kwargs)
        try:
            work = original(self, request, *args, **kwargs)
            return await (stepped(work, one) or work)
        except Exception:
            raise  # the client has gone: the server has handled all else
        except BaseException:
            one.note_stopped()
            raise
        finally:
            _finish(one)

    return _handle_request


@guarded
def _begin(protocol: Any, request: Any) -> ServerRequest | None:
    from stagetrace.instrumentation.async_servers.request import addresses, begin

    transport, version = protocol.transport, request.version
    scope = {
        "type": "http",
        "method": request.method,
        "path": request.path,
        "query_string": request.rel_url.raw_query_string.encode(),
        "scheme": "http" if transport is None or transport.get_extra_info("sslcontext") is None else "https",
        "http_version": f"{version[0]}.{version[1]}",
        "headers": [(name.lower(), value) for name, value in request.raw_headers],
        **addresses(transport),
    }
    payload = request.content
    size = partial(_body_size, request, payload)
    one = begin(scope, protocol, lambda: protocol._manager is None, server=payload, body_size=size)
    if one is not None:
        setattr(request.writer, REQUEST, one)
    return one


@guarded_end
def _finish(one: ServerRequest) -> None:
    one.finish()


def _body_size(request: Any, payload: Any) -> int:
    if "Content-Encoding" not in request.headers:
        return getattr(payload, "total_bytes", 0)  # without a body it has none in aiohttp 3.11
    return (request.content_length or 0) if payload.is_eof() else 0  # it is decompressed as it arrives


def _note_error(_protocol: Any, _request: Any, *args: Any, **kwargs: Any) -> None:
    error = args[1] if len(args) > 1 else kwargs.get("exc")
    if error is not None:
        note_error(error)


def _note_route(found: Any, *_: Any) -> None:
    resource = getattr(found.route, "resource", None)
    if resource is not None:
        note_route(resource.canonical)


# --- its body and its response


def _of_file(_response: Any, request: Any, _file: Any, _offset: int, count: int) -> ServerRequest | None:
    """Return the request to which a file is sent, by the event loop."""
    one: ServerRequest | None = getattr(request.writer, REQUEST, None)
    if one is not None:
        one.file_bytes = count
    return one


def _writing_headers(original: Any) -> Any:
    @functools.wraps(original)
    async def write_headers(self: Any, status_line: str, headers: Any) -> Any:
        one = getattr(self, REQUEST, None)
        if one is not None:
            headers = _begin_response(one, status_line, headers) or headers
        return await original(self, status_line, headers)

    return write_headers


@guarded
def _begin_response(one: ServerRequest, status_line: str, headers: Any) -> Any:
    """Note the status line and headers; return other headers to send, if some are added."""
    added = one.begin(int(status_line.split(" ", 2)[1]), headers.items())
    if not added:
        return None
    more = headers.copy()
    more.extend(added)
    return more


def _writing(original: Any, *, is_last: bool) -> Any:
    @functools.wraps(original)
    async def write(self: Any, *args: Any, **kwargs: Any) -> Any:
        one = getattr(self, REQUEST, None)
        if one is None or not one.is_begun or one.is_ended:  # before the headers: 100 Continue
            return await original(self, *args, **kwargs)
        size = _size(self, args[0] if args else kwargs.get("chunk", b"")) or 0
        before = self.output_size
        result, now = await adapter().sending(one, original(self, *args, **kwargs))
        if is_last:
            _end(self, one, now, size or one.file_bytes)
        elif self.output_size != before:
            _add_chunk(self, one, now, size)
        return result

    return write


@guarded
def _size(writer: Any, chunk: Any) -> int:
    size: int = chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
    return size if writer.length is None else min(size, writer.length)


@guarded
def _add_chunk(writer: Any, one: ServerRequest, now: int, size: int) -> None:
    if writer._compress is not None:
        one.is_unsized = True
    one.file_bytes = 0  # the file is sent in chunks
    one.add_bytes(now, size)


@guarded_end
def _end(writer: Any, one: ServerRequest, now: int, size: int) -> None:
    if writer._compress is not None:
        one.is_unsized = True
    one.end_bytes(now, size)


patch_request = patching(
    {"BaseRequest.read": passing(lambda request: request_of(request._payload), NETWORK_RECEIVE)}  # the whole body
)
patch_files = patching({"FileResponse._sendfile": passing(_of_file, NETWORK_SEND)})
patch_dispatcher = patching({"UrlDispatcher.resolve": after(_note_route)})
