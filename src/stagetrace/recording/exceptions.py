"""What is recorded of an exception: its type; with STAGETRACE_RECORD_EXCEPTIONS its message and its stack trace, too.

Credentials in them are redacted. For what stagetrace records on its own account: what the service's code records with
the OpenTelemetry API is as the service has it (docs/decisions/063-what-is-secret.md).
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from opentelemetry.trace import Status, StatusCode, use_span

from stagetrace import config
from stagetrace.guard import guarded
from stagetrace.redaction import redacted_end, redacted_start
from stagetrace.setting_problems import one_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.trace import Span

EVENT: Final = "exception"
MAX_MESSAGE: Final = 4_096  # characters, of which the first are kept
MAX_STACK: Final = 16_000  # of which the last are kept: where it was raised, and the message


@functools.cache
def recorded() -> str:
    """Return how much is recorded: `type`, `message` or `full`."""
    return one_of(config.RECORD_EXCEPTIONS)


def record(span: Span, error: BaseException, timestamp: int | None = None) -> None:
    """Add an exception to a span, as an event."""
    attributes = {"exception.type": name_of(type(error))}
    if recorded() != "type":
        attributes["exception.message"] = _message(error)
    if recorded() == "full":
        attributes["exception.stacktrace"] = _stack(error)
        attributes["exception.escaped"] = "False"  # as of the SDK's own events
    span.add_event(EVENT, attributes, timestamp)


@contextmanager
def current(span: Span, *, ends: bool = True) -> Iterator[Span]:
    """Let a span be the current one in the block, and end with it; an exception of the block is recorded on it."""
    with use_span(span, ends, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        except Exception as error:
            _fail(span, error)
            raise


@guarded
def _fail(span: Span, error: Exception) -> None:
    record(span, error)
    span.set_status(status_of(error))


def name_of(kind: type[BaseException]) -> str:
    """Return the name of an exception's class, with that of its module unless it is built in."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def status_of(error: BaseException) -> Status:
    """Return the status of a span that ends with an exception."""
    name = type(error).__name__
    return Status(StatusCode.ERROR, name if recorded() == "type" else f"{name}: {_message(error)}")


def details(text: str | bytes) -> str | None:
    """Return what is recorded of the details of an error, which the service's code has written: as of a message."""
    if recorded() == "type":
        return None
    whole = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return _encodable(redacted_start(whole, MAX_MESSAGE))


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception as raised:  # noqa: BLE001 -- of the exception's own __str__
        return f"(no text: its __str__ raised {type(raised).__name__})"
    return _encodable(redacted_start(text, MAX_MESSAGE))


def _stack(error: BaseException) -> str:
    """Return the stack traces of an exception and of those that it is chained to."""
    import traceback

    try:
        text = "".join(traceback.format_exception(error))
    except Exception as raised:  # noqa: BLE001 -- a chain or a source file that cannot be shown
        return f"(no stack trace: {type(raised).__name__})"
    return _encodable(redacted_end(text, MAX_STACK))


def _encodable(text: str) -> str:
    """Return the text with what UTF-8 cannot encode written out: surrogates, as of file names that are no text."""
    return text.encode(errors="backslashreplace").decode()
