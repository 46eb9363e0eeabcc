"""Body and response of one request on their way between a WSGI server and its application, each wait marked.

The server keeps the thread: it calls the application, takes one chunk of the response after the other, writes each, and
closes. What runs in the application's own parts of that runs in the request's context, what the server does does not.
The end is the last chunk, not `close()`: werkzeug waits 10 ms for stray input before it closes.
"""

from __future__ import annotations

import functools
import operator
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, guarded_end, report
from stagetrace.protocols import http_headers
from stagetrace.protocols.connection import socket_of, time_in_kernel_ns
from stagetrace.protocols.http_request import announced
from stagetrace.protocols.scope import CANCELLED, CLIENT
from stagetrace.request.chunk_times import Stream
from stagetrace.request.context import here
from stagetrace.request.current import current
from stagetrace.request.request import Request
from stagetrace.request.working import current_greenlet
from stagetrace.semconv import HTTP_RESPONSE_BODY_SIZE, NETWORK_RECEIVE, NETWORK_SEND
from stagetrace.sources.thread_cpu import AT, DIVIDED_NS, sample
from stagetrace.tracing.propagation import NO_CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable
WHERE = "stagetrace.protocols.wsgi_request"
CALLER_KEY = f"HTTP_{http_headers.CALLER.upper().replace('-', '_')}"  # in an environ
NO_BODY = ("", "0", None)
LEAST_BUFFER = 16_384  # that of a socket, or a stream, before it holds its writer back


def incomplete_reason() -> str:
    """Return why a server closes a response that has not come to its end.

    Where it is being stopped, by SystemExit of a signal's handler say, that is no client that went away.
    """
    error = sys.exc_info()[1]
    return CLIENT if error is None or isinstance(error, Exception) else CANCELLED


def status_code(status: str) -> int | None:
    """Return the code that a status line begins with; None if it has none."""
    return int(status[:3]) if status[:3].isdigit() else None


class Transfer(Request):
    """What passes body and response on, and marks that on the request."""

    _context: Any  # in which the application goes on
    _start_response: Any
    _ended_at: int | None = None  # when the last byte was handed over
    _is_sending = False
    _has_sent = False  # any chunk of the response, and so its head
    _files: list[Any] | None = None  # responses made by a `wsgi.file_wrapper` that is no class
    _chunk_size = 0  # bytes of what the server is writing
    protocol = "wsgi"
    method: str
    _head: tuple[str, Any] = ("", ())  # status line and headers of the response
    _first: tuple[int, int] | None = None  # the first chunk: when it had been handed over, and its bytes
    _environ: Any

    def fits_buffer(self, activity: str) -> bool:
        """Return whether this is a send, and the whole response fits into the least buffer."""
        return activity == NETWORK_SEND and 0 < self._sent() + self._chunk_size < LEAST_BUFFER

    def _sent(self) -> int:
        """Return how many bytes of the response have been written."""
        stream = self.stream
        return stream.size if stream is not None else self._first[1] if self._first is not None else 0

    def time_in_kernel_ns(self) -> int:
        """Return for how long the data that the request has received last lay in the kernel, 0 if that is unknown."""
        return time_in_kernel_ns(socket_of(self._environ))

    def _note_headers(self, status: str, headers: Any) -> Any:  # noqa: ARG002
        """Note the status line and headers of the response; return the headers to send."""
        return headers

    @guarded
    def _with_timing(self, headers: Any, caller: str | None) -> Any:
        return http_headers.with_timing(headers, caller, self, "Server-Timing")

    def note_uncaught(self, error: BaseException) -> None:
        """Note an exception that the application let through to the server."""

    def finish(self) -> None:
        """End; whatever calls it again does nothing."""

    def run(self, call: Callable[[Any, Any], Any], environ: Any, start_response: Any) -> Any:
        """Call the application; return its response for the server."""
        self._start_response = start_response
        if "greenlet" in sys.modules:
            self.greenlet = current_greenlet()
        before = self.resume()
        try:
            answer = call(environ, self.start_response)
        except BaseException as error:
            self.pause(before)
            self.note_uncaught(error)
            self.finish()
            self.let_go()
            raise
        self.pause(before)
        try:
            return self._for_server(answer, environ)
        except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price; so below
            report(WHERE, error)
            self.finish()
            return answer

    def resume(self) -> Any:
        """Enter the application's context; return what to leave it by."""
        before = None
        try:
            if self._is_sending:
                now = time_ns()
                self._is_sending = False
                self.leave(NETWORK_SEND, now)
                self._add_chunk(now)
            before = current.get(), here.get_current()
            current.set(self)
            here.attach(self._context)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        return before

    def pause(self, before: Any) -> None:
        """Leave the application's context, to be resumed as it is now."""
        try:
            if before is not None:
                self._context = here.get_current()
                current.set(before[0])
                here.attach(before[1])
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)

    def _add_chunk(self, now: int) -> None:
        size, self._chunk_size = self._chunk_size, 0
        if not size:
            return
        stream = self.stream
        if stream is None:
            if self._first is None:
                self._first = now, size
                return
            stream = self.stream = Stream()
            stream.add(*self._first)
        stream.add(now, size)

    def transfer_attributes(self, start: int) -> dict[str, Any]:
        """Return what the entry span, which begins at `start`, carries of how the response passed."""
        attributes = self.response(start) if self.disconnect is not None or self.stream is not None else {}
        if self._first is not None and self.stream is None:
            attributes[HTTP_RESPONSE_BODY_SIZE] = self._first[1]
        return attributes

    def let_go(self) -> None:
        """Let go of the context, which holds this: no work for the garbage collector."""
        self._context = NO_CONTEXT

    def wrap_body(self, environ: Any) -> None:
        """Stand between the application and the body, and see which responses are files."""
        if environ.get("CONTENT_LENGTH") not in NO_BODY or "HTTP_TRANSFER_ENCODING" in environ:
            environ["wsgi.input"] = Input(environ["wsgi.input"], self)
        wrapper = environ.get("wsgi.file_wrapper")
        if wrapper is not None and not isinstance(wrapper, type):
            environ["wsgi.file_wrapper"] = functools.partial(self._wrap_file, wrapper)

    def _wrap_file(self, wrapper: Any, *args: Any, **kwargs: Any) -> Any:
        answer = wrapper(*args, **kwargs)
        self._files = [*(self._files or ()), answer]
        return answer

    def start_response(self, status: str, headers: Any, *exc_info: Any, **kwargs: Any) -> Any:
        """Begin the response by the server's own callable; return its `write`, marked."""
        try:
            headers = self._note_headers(status, headers)
            caller = self._environ.get(CALLER_KEY)
            wanted = http_headers.wanted()
            if (caller is not None if wanted is None else wanted) or http_headers.has_received:
                timed = self._with_timing(headers, caller)
                headers = headers if timed is None else timed
            self._head = status, headers
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        return functools.partial(self._write, self._start_response(status, headers, *exc_info, **kwargs))

    def _write(self, write: Any, data: Any) -> Any:
        self._has_sent = True
        try:
            self.enter(NETWORK_SEND)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        try:
            return write(data)
        finally:
            self._leave_send()

    @guarded_end
    def _leave_send(self) -> None:
        self.leave(NETWORK_SEND)

    def _for_server(self, answer: Any, environ: Any) -> Any:
        """Return what the server is to send: the response as it goes by, a file as it is."""
        wrapper = environ.get("wsgi.file_wrapper")
        if self._files is not None or isinstance(wrapper, type):
            is_file = isinstance(answer, wrapper) if isinstance(wrapper, type) else answer in (self._files or ())
            if is_file:  # the server knows it by its type, or as this very object
                self._send_file(answer)
                return answer
        return SizedResponse(answer, self) if hasattr(type(answer), "__len__") else Response(answer, self)

    def _send_file(self, answer: Any) -> None:
        close = getattr(answer, "close", None)

        def closed() -> None:
            self.finish()
            self.let_go()
            if close is not None:
                close()

        try:
            answer.close = closed
        except AttributeError:  # no end to be seen
            self.finish()
            self.let_go()
            return
        self._is_sending = True
        self.enter(NETWORK_SEND)

    def begin_chunk(self, chunk: Any) -> None:
        """Note that the server has a chunk of the response to write."""
        try:
            self._is_sending = self._has_sent = True
            self._chunk_size = len(chunk)
            self.enter(NETWORK_SEND)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)

    def note_incomplete(self) -> None:
        """Note that the server closes a response that has not come to its end."""

    def _has_all(self) -> bool:
        """Return whether the server has written all that the status line and headers of the response announced."""
        status, headers = self._head
        wanted = announced(self.method, status_code(status), headers)
        sent = self._sent()
        if sys.exc_info()[1] is None:
            return wanted is not None and sent + self._chunk_size >= wanted
        return wanted is not None and 0 < sent >= wanted  # the last chunk could not be written


class Input:
    """`wsgi.input`, each wait for a chunk of the body marked as `network.receive`."""

    def __init__(self, stream: Any, request: Transfer) -> None:
        self._stream = stream
        self._request = request

    def __reduce__(self) -> Any:
        """Be the server's input in a copy, and in a pickle."""
        return operator.getitem, ((self._stream,), 0)

    def _wait(self, method: Any, *args: Any, **kwargs: Any) -> Any:
        request, since = self._request, time_ns()
        try:
            request.enter(NETWORK_RECEIVE, at=since)
        except Exception as error:  # noqa: BLE001
            report(WHERE, error)
        try:
            return method(*args, **kwargs)
        finally:
            try:
                request.has_data(since)
                request.leave(NETWORK_RECEIVE)
            except Exception as error:  # noqa: BLE001
                report(WHERE, error)

    def read(self, *args: Any, **kwargs: Any) -> Any:
        """Read as the server's input does; so the others. Methods of their own, since requests call them most."""
        return self._wait(self._stream.read, *args, **kwargs)

    def readline(self, *args: Any, **kwargs: Any) -> Any:
        """Read a line."""
        return self._wait(self._stream.readline, *args, **kwargs)

    def readlines(self, *args: Any, **kwargs: Any) -> Any:
        """Read all lines."""
        return self._wait(self._stream.readlines, *args, **kwargs)

    def __iter__(self) -> Any:
        lines = iter(self._stream)
        while True:
            try:
                line = self._wait(next, lines)
            except StopIteration:
                return
            yield line

    def __next__(self) -> Any:
        return self._wait(next, self._stream)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._stream, name)
        return functools.partial(self._wait, value) if name in ("readinto", "read1", "readinto1") else value


class Response:
    """What the application has answered, as the server goes through it."""

    _chunks: Any = None
    _is_made_before = False  # all chunks are there, and nothing is worked out as they are taken

    def __init__(self, answer: Any, request: Transfer) -> None:
        self._answer = answer
        self._request = request
        self._is_closed = False

    def __iter__(self) -> Response:
        return self

    def __next__(self) -> Any:
        request = self._request
        before = request.resume()
        first = None if self._is_made_before else sample(time_ns())
        try:
            if self._chunks is None:
                self._chunks = iter(self._answer)
            chunk = next(self._chunks)
        except StopIteration:
            request._ended_at = time_ns()
            raise
        except BaseException as error:
            request.note_uncaught(error)
            raise
        finally:
            request.pause(before)
            if first is not None and time_ns() - first[AT] >= DIVIDED_NS:
                request.divide(first)
        request.begin_chunk(chunk)
        return chunk

    def close(self) -> None:
        """End the request, and let the application close its response."""
        request = self._request
        self._is_closed = True
        if request._ended_at is None:
            request.note_incomplete()
        request.finish()
        close = getattr(self._answer, "close", None)
        if close is not None:
            before = request.resume()
            try:
                close()
            finally:
                request.pause(before)
                request.let_go()
        else:
            request.let_go()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answer, name)

    def __del__(self) -> None:
        if not self._is_closed:  # a server that does not close what it has answered
            self._request.finish()
            self._request.let_go()


class SizedResponse(Response):
    """One that knows how many chunks it has: of a single one a server knows the length of the whole."""

    _is_made_before = True

    def __len__(self) -> int:
        return len(self._answer)
