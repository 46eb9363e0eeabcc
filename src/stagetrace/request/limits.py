"""The longest value of an attribute: longer values are cut, and the span counts them.

Jaeger's storage refuses a whole batch for one value of about 65,000 bytes, and an endless one costs the service memory.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any, Final

from stagetrace import settings
from stagetrace.semconv import STAGETRACE_DROPPED_ATTRIBUTES, STAGETRACE_TRUNCATED_ATTRIBUTES
from stagetrace.system.setting_problems import limit, one_of
from stagetrace.text import redacted_end, redacted_start
from stagetrace.tracing.span import ChangedSpan, Event, Limits, Link

DEFAULT_LONGEST = 16_384
MAX_ATTRIBUTES = 128
_NUMBER = 8  # the length that a number or a None counts as in a list


@functools.cache
def longest() -> int:
    """Return how many characters a value may have: as OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT says, else 16,384."""
    given = limit(settings.SPAN_VALUE_LENGTH, limit(settings.VALUE_LENGTH, DEFAULT_LONGEST))
    return DEFAULT_LONGEST if given is None else given


@functools.cache
def span_limits() -> Limits:
    """Return what OTEL_*_LIMIT allow a span; one character more, so that `bounded` can detect values that were cut."""
    most = limit(settings.ATTRIBUTES, MAX_ATTRIBUTES)
    return Limits(
        limit(settings.SPAN_ATTRIBUTES, most),
        limit(settings.EVENT_ATTRIBUTES, most),
        limit(settings.LINK_ATTRIBUTES, most),
        limit(settings.EVENTS, MAX_ATTRIBUTES),
        limit(settings.LINKS, MAX_ATTRIBUTES),
        longest() + 1,
    )


def cut(attributes: Mapping[str, Any]) -> tuple[Mapping[str, Any], int]:
    """Return the attributes with values no longer than the limit, and how many values were cut."""
    limit = longest()
    shorter = {key: _short(value, limit) for key, value in attributes.items() if _size(value, limit) > limit}
    return ({**attributes, **shorter} if shorter else attributes), len(shorter)


def shorten(attributes: dict[str, Any]) -> None:
    """Cut the values that are longer than the limit, and add an attribute that counts them."""
    shorter, count = cut(attributes)
    if count:
        attributes.update(shorter)
        attributes[STAGETRACE_TRUNCATED_ATTRIBUTES] = count


def _size(value: Any, limit: int) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple):
        size = 0
        for item in value:
            size += len(item) if isinstance(item, str | bytes) else _NUMBER
            if size > limit:
                break
        return size
    return len(str(value)) if isinstance(value, Mapping) else 0


def _short(value: Any, limit: int) -> Any:
    if isinstance(value, str | bytes):
        return value[:limit]
    if isinstance(value, Mapping):
        return str(value)[:limit]
    kept: list[Any] = []
    for item in value:
        if isinstance(item, str | bytes):
            kept.append(item[:limit])
            limit -= len(item)
        else:
            kept.append(item)
            limit -= _NUMBER
        if limit <= 0:
            break
    return kept


def bounded(span: Any, cut_before: int = 0) -> Any:
    """Return a finished span with nothing longer than the limit in it, marked if that took cutting.

    `cut_before` values, which are to stand on it too, have been cut already.
    """
    attributes, count = cut(span.attributes or {})
    events, links = [], []
    for event in span.events:
        shorter, more = cut(event.attributes or {})
        dropped = event.dropped_attributes
        events.append(Event(event.name, shorter, event.timestamp, dropped) if more else event)
        count += more
    for link in span.links:
        shorter, more = cut(link.attributes or {})
        links.append(Link(link.context, shorter, link.dropped_attributes) if more else link)
        count += more
    if not count + cut_before:
        return span
    mark = {STAGETRACE_TRUNCATED_ATTRIBUTES: count + cut_before}
    return ChangedSpan(span, {**attributes, **mark}, events=events, links=links)


def plain(attributes: Mapping[str, Any], texts: Collection[str] = ()) -> dict[str, Any]:
    """Return what a person gave a stage as attributes that can be sent: the text of what is no plain value.

    Those that `texts` names become text whatever they are.
    What is too long is cut, what is too much or has no text is left out, and both are counted in attributes of ours.
    """
    limit = longest()
    kept: dict[str, Any] = {}
    dropped = truncated = 0
    for key, value in attributes.items():
        if len(kept) >= MAX_ATTRIBUTES:
            dropped = len(attributes) - MAX_ATTRIBUTES
            break
        try:
            text = value if _is_plain(value) and (key not in texts or isinstance(value, str)) else str(value)
        except Exception:  # noqa: BLE001 -- the person's own __str__
            dropped += 1
            continue
        if isinstance(text, str) and len(text) > limit:
            text = text[:limit]
            truncated += 1
        kept[key] = text
    if dropped:
        kept[STAGETRACE_DROPPED_ATTRIBUTES] = dropped
    if truncated:
        kept[STAGETRACE_TRUNCATED_ATTRIBUTES] = truncated
    return kept


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | bool | float) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)


# --- What is recorded of an exception: its type; with STAGETRACE_RECORD_EXCEPTIONS its message and its stack trace,
# too.
#
# Credentials in them are redacted. For what stagetrace records on its own account: what the service's code records with
# the OpenTelemetry API is as the service has it (docs/decisions/063-what-is-secret.md).

EVENT: Final = "exception"
MAX_MESSAGE: Final = 4_096  # characters, of which the first are kept
MAX_STACK: Final = 16_000  # of which the last are kept: where it was raised, and the message


@functools.cache
def recorded() -> str:
    """Return how much is recorded: `type`, `message` or `full`."""
    return one_of(settings.RECORD_EXCEPTIONS)


def record(span: Any, error: BaseException, timestamp: int | None = None) -> None:
    """Add an exception to a span, as an event."""
    attributes = {"exception.type": name_of(type(error))}
    if recorded() != "type":
        attributes["exception.message"] = _message(error)
    if recorded() == "full":
        attributes["exception.stacktrace"] = _stack(error)
        attributes["exception.escaped"] = "False"  # as of the SDK's own events
    span.add_event(EVENT, attributes, timestamp)


def name_of(kind: type[BaseException]) -> str:
    """Return the name of an exception's class, with that of its module unless it is built in."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def description_of(error: BaseException) -> str:
    """Return how the status of a span describes the exception that it ends with."""
    name = type(error).__name__
    return name if recorded() == "type" else f"{name}: {_message(error)}"


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
