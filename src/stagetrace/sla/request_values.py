"""What a request has for the keys of conditions and segments: attributes, headers, baggage; looked up on demand."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace import log
from stagetrace.guard import report
from stagetrace.redaction import is_secret
from stagetrace.sla.objective import BAGGAGE, HEADER, MOST_CHARACTERS, RECORDED_HEADERS, SERVICE_KEY
from stagetrace.span_attributes import as_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stagetrace.sla.request import Request


class Values:
    """The values of one request that has ended, as a policy asks for them by key; each is looked up once.

    None for a value that the request does not have, that is secret, or that cannot be read.
    """

    __slots__ = ("_found", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._found: dict[str, str | None] = {}

    def __call__(self, key: str) -> str | None:
        """Return the value for a key, in text form; never raises."""
        found = self._found
        if key not in found:
            found[key] = None
            try:
                found[key] = _value(self._request, key)
            except Exception as error:  # noqa: BLE001 -- as `guarded`, which would take the key for a method's
                report("stagetrace.sla.request_values.Values", error)
        return found[key]


def _value(request: Request, key: str) -> str | None:
    if key.startswith((HEADER, BAGGAGE)):
        if not _is_readable(key):
            return None
        found = _baggage(request, key.removeprefix(BAGGAGE)) if key.startswith(BAGGAGE) else _header(request, key)
    else:
        places = _of_service(request) if key == SERVICE_KEY else _attributes(request)
        found = next((one[key] for one in places if key in one), None)
    return None if found is None else as_text(found)[:MOST_CHARACTERS]


@functools.lru_cache(maxsize=1_024)
def _is_readable(key: str) -> bool:
    """Return whether the name of a header or of baggage is none of a secret; log it, if it is."""
    if not is_secret(key.partition(":")[2]):
        return True
    log.once(
        f"secret {key}",
        f"the policy asks for {key}, which is not read: by its name the value is a secret. Conditions on it never hold."
        "\nName another header in the policy, or an attribute that the service sets.",
    )
    return False


def _header(request: Request, key: str) -> str | None:
    name, record = key.removeprefix(HEADER).lower(), request.record
    found = None if record is None else record.header(name)
    if found is None and request.span is not None:
        own = request.span.attributes or {}
        found = next((own[prefix + name] for prefix in RECORDED_HEADERS if prefix + name in own), None)
    return ", ".join(map(str, found)) if isinstance(found, list | tuple) else found


def _baggage(request: Request, name: str) -> Any:
    context = getattr(request.span, "parent_context", None)
    if context is not None:
        from opentelemetry import baggage

        return baggage.get_baggage(name, context)
    return None if request.record is None else request.record.baggage.get(name)


def _of_service(request: Request) -> Iterator[Mapping[str, Any]]:
    """Yield where the name of the service is: a policy for one service asks it of each request."""
    if request.span is not None:
        yield request.span.attributes or {}
        yield request.span.resource.attributes


def _attributes(request: Request) -> Iterator[Mapping[str, Any]]:
    """Yield the attributes of the entry span, what its code has set first, then of its model, and of the resource."""
    span, record = request.span, request.record
    is_ours = getattr(span, "adapter", None) is not None
    if span is not None:
        yield span.attributes or {}
    if is_ours:
        blocks, client, rest = span.described()
        yield from (one.attributes for one in (*blocks, client))
        yield rest
        yield span.added or {}
    if record is not None:
        yield record.close(request.start, request.end).model
        if not is_ours:
            yield record.transfer_attributes(request.start)
    if span is not None:
        yield span.resource.attributes
