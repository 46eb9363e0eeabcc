"""The error for a name that a store does not know: an empty result would look like good news."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import islice
from typing import Final, Protocol

from stagetrace import semconv
from stagetrace.errors import StoreError
from stagetrace.span_attributes import text
from stagetrace.store.base import Selection, SpanRow
from stagetrace.store.entries import objectives_of, path, request_text, route, segment

SAMPLED: Final = 2000  # requests that are looked at for names, of stores that hold many
_NAMED: Final = 10
_LONGEST: Final = 100  # of a name in a message


class Names(Protocol):
    """The part of a reader that knows names."""

    def services(self) -> tuple[str, ...]:
        """Return the names of all services."""
        ...

    def has(self, selection: Selection) -> bool:
        """Return whether there is any such request."""
        ...

    def newest_requests(self, service: str | None) -> Iterable[SpanRow]:
        """Yield entry spans of a service, or of all, in which its names can be looked up; not all of very many."""
        ...


def check(selection: Selection, names: Names, store: str) -> None:
    """Raise StoreError if no request, of any time, has a name of `selection`: its service, route, model, code ..."""
    if selection.service is not None:
        check_service(selection.service, names.services(), store)
    ever = Selection(0, 2**63 - 1, service=selection.service)
    of = "" if selection.service is None else f" of {selection.service}"
    for what, key, one in _each_filter(selection, ever):
        if not names.has(one):
            sample = list(islice(names.newest_requests(selection.service), SAMPLED))
            raise StoreError(f"{store}: no request{of} has {what}\n{_instead(one, key, sample)}")


def check_service(service: str, known: Sequence[str], store: str) -> None:
    """Raise StoreError if `service` is not among the `known` ones of `store`."""
    if service not in known:
        has = f"it holds {nearest(service, known)}" if known else "it holds no spans of any service yet"
        raise StoreError(f"{store}: there is no service {service!r}\n{has}")


def nearest(wanted: str, known: Iterable[str]) -> str:
    """Return names, those most alike first, and how many more there are."""
    names = sorted(set(known), key=lambda name: (-SequenceMatcher(None, wanted, name).ratio(), name))
    shown = [name if len(name) <= _LONGEST else f"{name[:_LONGEST]}..." for name in names[:_NAMED]]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(map(_quoted, shown))}{more}"


def _quoted(name: str) -> str:
    """Return a name, in quotes where it is empty or has characters that do not show."""
    return name if name and name.isprintable() and "," not in name else repr(name)


def _each_filter(selection: Selection, ever: Selection) -> Iterator[tuple[str, str | None, Selection]]:
    """Yield for each filter but the service its text, the key of a segment, and the filter alone."""
    if selection.route is not None:
        yield f"the route {selection.route!r}", None, replace(ever, route=selection.route)
    if selection.model is not None:
        yield f"the model {selection.model!r}", None, replace(ever, model=selection.model)
    if selection.judged_by is not None:
        yield f"the objective {selection.judged_by!r}", None, replace(ever, judged_by=selection.judged_by)
    for code in selection.codes:
        yield f"the line of code {code!r}", None, replace(ever, codes=(code,))
    for key, value in selection.segments.items():
        yield f"the attribute {key}={value}", key, replace(ever, segments={key: value})


def _instead(one: Selection, key: str | None, sample: Sequence[SpanRow]) -> str:
    """Return the names that the requests have instead."""
    if one.route is not None:
        names = {name if (name := route(span.attributes)) is not None else span.name for span in sample}
        if " " in one.route:
            names = {request_text(span.name, route(span.attributes) or path(span.attributes)) for span in sample}
        return f"there are {nearest(one.route, names)}" if names else "there is none with a route"
    if one.model is not None:
        names = {name for span in sample if (name := text(span.attributes, semconv.ML_MODEL_NAME)) is not None}
        return f"there are {nearest(one.model, names)}" if names else "no model is known of any of them"
    if one.judged_by is not None:
        names = {name for span in sample for name in objectives_of(span)}
        return f"there are {nearest(one.judged_by, names)}" if names else "no objective is known of any of them"
    if one.codes:
        codes = {name for span in sample if (name := text(span.attributes, semconv.SLA_BREACH_CODE)) is not None}
        return f"there are {nearest(one.codes[0], codes)}" if codes else "no line of code is known of any of them"
    (wanted,) = one.segments.values()
    values = {value for span in sample if (value := segment(span, key or "")) is not None}
    if values:
        return f"{key} is {nearest(wanted, values)}"
    keys = {name for span in sample for has in (span.resource, span.attributes) for name in has}
    return f"they have the attributes {nearest(key or '', keys)}" if keys else "they have no attributes"
