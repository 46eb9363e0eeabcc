"""A selection as a TraceQL search, which finds each trace that has a request of the selection, and may find others."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from math import isfinite
from typing import Final

from stagetrace import semconv
from stagetrace.columns import names_of
from stagetrace.semconv import as_text
from stagetrace.store.base import Selection
from stagetrace.store.entries import HTTP_ROUTE, HTTP_TARGET, RPC_METHOD, URL_PATH, code_pattern, is_whole

_PLAIN: Final = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)  # a name of an attribute that needs no quotes
_ROUTES: Final = (f"span.{HTTP_ROUTE}", f"span.{RPC_METHOD}")
_MOST_SPLITS: Final = 8
_JSON: Final = ("[", "{")  # begins the text form of a list or a map, which TraceQL cannot compare
_DELETE: Final = 0x7F
_GREATEST: Final = 2**63 - 1


def query(selection: Selection, *, texts: bool = False) -> str:
    """Return the search; of a selection by time alone, that for any trace.

    `texts`: the store keeps all values as text, and takes no name of an attribute in quotes.
    """
    if not selection.is_filtered:
        return "{}"
    return f"{{ {' && '.join(_conditions(selection, texts=texts))} }}"


def _conditions(selection: Selection, *, texts: bool) -> Iterator[str]:
    yield "kind = server"
    if selection.service is not None:
        yield f"resource.service.name = {literal(selection.service)}"
    if selection.breached:
        yield f"span.{semconv.SLA_BREACHED} = true"
    if selection.route is not None:
        yield from _any(_routes(selection.route))
    if selection.model is not None:
        yield f"span.{semconv.ML_MODEL_NAME} = {literal(selection.model)}"
    if selection.judged_by is not None:
        listed = f"(?s).*{re.escape(selection.judged_by)}.*"
        own = f"span.{semconv.SLA_OBJECTIVE} = {literal(selection.judged_by)}"
        yield from _any([own, f"span.{semconv.SLA_VERDICTS} =~ {literal(listed)}"])
    yield from _any(f"span.{semconv.SLA_BREACH_CAUSE} = {literal(cause)}" for cause in selection.causes)
    if selection.codes:
        code = f"span.{semconv.SLA_BREACH_CODE}"
        if all(map(is_whole, selection.codes)):
            yield from _any(f"{code} = {literal(text)}" for text in selection.codes)
        else:
            yield f"{code} =~ {literal(code_pattern(selection.codes))}"
    for key, value in selection.segments.items():
        yield from _any(_segment(key, value, texts=texts))


def _any(conditions: Iterable[str]) -> Iterator[str]:
    """Yield the condition that one of these holds, if there is one."""
    found = list(conditions)
    if found:
        yield found[0] if len(found) == 1 else f"({' || '.join(found)})"


def _routes(route: str) -> Iterator[str]:
    """Yield the conditions of which one holds for each request of a route; it may be the text of a request in lists."""
    spaces = [at for at, character in enumerate(route) if character == " "]
    if len(spaces) > _MOST_SPLITS:
        return
    yield from (f"{name} = {literal(route)}" for name in ("name", *_ROUTES))
    for at in spaces:
        path = route[at + 1 :]
        target = f"span.{HTTP_TARGET} =~ {literal(f'(?s){re.escape(path)}([?].*)?')}"
        (of_path,) = _any([*(f"{name} = {literal(path)}" for name in (*_ROUTES, f"span.{URL_PATH}")), target])
        yield f"(name = {literal(route[:at])} && {of_path})"


def _segment(key: str, value: str, *, texts: bool) -> Iterator[str]:
    """Yield conditions of which one holds where an attribute has this text form; none if that cannot be asked."""
    names = [f"span.{_name(one)}" for one in names_of(key)] + [f"resource.{_name(key)}"]
    if value.startswith(_JSON) or not key.isprintable() or not key or (texts and not _PLAIN.fullmatch(key)):
        return
    values = [literal(value)] if texts else [literal(value), *_typed(value)]
    for name in names:
        yield from (f"{name} = {one}" for one in values)


def _typed(value: str) -> Iterator[str]:
    """Yield the values of other types that have this text form, as literals."""
    if value in ("true", "false"):
        yield value
    try:
        number = float(value)
    except ValueError:
        return
    if isfinite(number) and as_text(number) == value:
        digits = format(Decimal(repr(number)), "f")
        yield digits if "." in digits else f"{digits}.0"
    if re.fullmatch(r"-?\d{1,19}", value, re.ASCII) and str(int(value)) == value and abs(int(value)) <= _GREATEST:
        yield value


def _name(attribute: str) -> str:
    """Return the name of an attribute behind its scope."""
    if _PLAIN.fullmatch(attribute):
        return attribute
    escaped = attribute.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def literal(text: str) -> str:
    """Return a text as Go, and so TraceQL, writes one."""
    return f'"{"".join(map(_character, text))}"'


def _character(one: str) -> str:
    if one in '"\\':
        return f"\\{one}"
    if "\ud800" <= one <= "\udfff":  # half of a surrogate pair, which no text in a store has
        return "\\ufffd"
    return f"\\u{ord(one):04x}" if one < " " or ord(one) == _DELETE else one
