"""Breached entry spans out of one trace: the rules by which every store reports a breach, and selects by code. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from stagetrace import semconv
from stagetrace.columns import names_of
from stagetrace.policy import entry_span
from stagetrace.policy.entry_span import read
from stagetrace.semconv import as_text, number, stage_totals, text
from stagetrace.store.base import SERVER, Entry, Missed, Selection, SpanRow, Value

if TYPE_CHECKING:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    from stagetrace.store.rows import ServiceSpan

_IN: Final = " in "  # between the line and its function
_REST: Final = rf"(?::[0-9]+)?(?:{_IN}.*)?"  # of a code that is named by its file, or by file and line


def is_whole(text: str) -> bool:
    """Return whether a text selects the one code that equals it."""
    return _IN in text and "*" not in text


@lru_cache(maxsize=64)
def code_pattern(texts: tuple[str, ...]) -> str:
    """Return the regular expression, of Python's and of RE2, that matches the codes which one of these texts selects.

    `app.py` selects all lines of the file, `app.py:41` this one in any function, `*` stands for any characters.
    """
    each = (".*".join(map(re.escape, text.split("*"))) + ("" if _IN in text else _REST) for text in texts)
    return f"(?s)(?:{'|'.join(each)})"


def is_one_of(code: str | None, texts: tuple[str, ...]) -> bool:
    """Return whether one of these texts selects a code."""
    return code is not None and re.fullmatch(code_pattern(texts), code) is not None


# --- The verdict of one objective on a request: that of the entry span, or one of those that `sla.verdicts` lists.
# Pure.
#
# The list has the first 64 of a request; of an objective behind these nothing is known.

BREACH: Final = "breach"
_ANY: Final = "good|breach|excluded"


def word_of(objective: str, shown: str | None, word: str | None, verdicts: str | None) -> str | None:
    """Return the word of its verdict; None where it did not judge the request.

    `shown` is the objective of the entry span, `word` its verdict, `verdicts` the list, where there is one.
    """
    if shown == objective:
        return word
    listed = read(verdicts)[0] if verdicts else ()
    return next((one.word for one in listed if one.objective == objective), None)


def verdict_pattern(objective: str, *, breached: bool) -> str:
    """Return the regular expression, of Python's and of RE2, that finds its verdict, or only a breach, in a list."""
    return rf"(?s)(?:^|; )(?:{BREACH if breached else _ANY}): {re.escape(objective)} \([^()]+\)(?:; |$)"


# --- Breached entry spans out of one trace: the rules by which every store reports a breach.

HTTP_ROUTE: Final = "http.route"
RPC_METHOD: Final = "rpc.method"
URL_PATH: Final = "url.path"
HTTP_TARGET: Final = "http.target"  # its older name; with the query
_MISSED: Final = re.compile(r"(\w+): ([\d.]+(?:e[+-]\d+)?) ms, ([\d.]+(?:e[+-]\d+)?) ms allowed")


def breached_entries(trace: Sequence[ServiceSpan], selection: Selection) -> Iterator[Entry]:
    """Yield the breached entry spans in this trace that are selected; one that was delivered twice comes twice."""
    for one in trace:
        in_window = selection.since_ns <= one.span.start_time_unix_nano < selection.until_ns
        if in_window and selection.service in (None, one.service) and is_breached_entry(one.span):
            read = one.row()
            if matches(read, selection):
                children = (other.row() for other in trace if other.span.parent_span_id == one.span.span_id)
                yield entry_of(read, children)


def matches(span: SpanRow, selection: Selection) -> bool:
    """Return whether this is an entry span that `selection` means, its limit aside."""
    return (
        span.kind == SERVER
        and selection.since_ns <= span.start_unix_nano < selection.until_ns
        and selection.service in (None, span.service)
        and (selection.route is None or selection.route in _routes(span))
        and selection.model in (None, text(span.attributes, semconv.ML_MODEL_NAME))
        and selection.breached in (None, span.attributes.get(semconv.SLA_BREACHED) is True)
        and (selection.judged_by is None or _is_judged(span, selection.judged_by, breached=bool(selection.breached)))
        and (not selection.causes or text(span.attributes, semconv.SLA_BREACH_CAUSE) in selection.causes)
        and (not selection.codes or is_one_of(text(span.attributes, semconv.SLA_BREACH_CODE), selection.codes))
        and all(segment(span, key) == wanted for key, wanted in selection.segments.items())
    )


def verdict_of(span: SpanRow, objective: str) -> str | None:
    """Return the verdict of one objective on an entry span's request; None where it did not judge it."""
    read = span.attributes
    word = BREACH if read.get(semconv.SLA_BREACHED) is True else text(read, semconv.SLA_VERDICT) or ""
    return word_of(objective, text(read, semconv.SLA_OBJECTIVE), word, text(read, semconv.SLA_VERDICTS))


def objectives_of(span: SpanRow) -> Iterator[str]:
    """Yield the objectives that judged an entry span's request."""
    shown, verdicts = text(span.attributes, semconv.SLA_OBJECTIVE), text(span.attributes, semconv.SLA_VERDICTS)
    if shown is not None:
        yield shown
    yield from (one.objective for one in entry_span.read(verdicts or "")[0])


def _is_judged(span: SpanRow, objective: str, *, breached: bool) -> bool:
    """Return whether an objective judged the request, or was missed."""
    word = verdict_of(span, objective)
    return word == BREACH if breached else word is not None


def _routes(span: SpanRow) -> tuple[str | None, str]:
    """Return the values of `Selection.route` that select an entry span."""
    found = route(span.attributes)
    return found, request_text(span.name, path(span.attributes) if found is None else found)


def request_text(name: str, path: str | None) -> str:
    """Return the text of a request in lists: its name, and its route or path where the name has none."""
    return name if path is None or path in name else f"{name} {path}"


def path(attributes: Mapping[str, Value]) -> str | None:
    """Return the path that was asked for, by the name of today or, without its query, the one before."""
    found = text(attributes, URL_PATH)
    older = text(attributes, HTTP_TARGET)
    return older.partition("?")[0] if found is None and older is not None else found


def segment(span: SpanRow, key: str) -> str | None:
    """Return the text form of an attribute of the span or its resource, or None where neither has it."""
    for name in names_of(key):
        if name in span.attributes:
            return as_text(span.attributes[name])
    return as_text(span.resource[key]) if key in span.resource else None


def entry_of(span: SpanRow, spans: Iterable[SpanRow]) -> Entry:
    """Return the record of one entry span; `spans`, read only if it has no stage totals, holds its children."""
    read = span.attributes
    return Entry(
        trace_id=span.trace_id,
        span_id=span.span_id,
        service=span.service,
        name=span.name,
        route=route(read),
        start_unix_nano=span.start_unix_nano,
        end_unix_nano=span.end_unix_nano,
        threshold_ms=number(read, semconv.SLA_THRESHOLD_MS),
        overrun_ms=number(read, semconv.SLA_OVERRUN_MS),
        objective=text(read, semconv.SLA_OBJECTIVE),
        stage=text(read, semconv.SLA_BREACH_STAGE),
        severity=text(read, semconv.SLA_SEVERITY),
        cause=text(read, semconv.SLA_BREACH_CAUSE),
        evidence=text(read, semconv.SLA_BREACH_EVIDENCE),
        code=text(read, semconv.SLA_BREACH_CODE),
        model=text(read, semconv.ML_MODEL_NAME),
        stages=stage_totals(span, spans),
        missed=missed(text(read, semconv.SLA_BREACH_MISSED)),
    )


def missed(bounds: str | None) -> tuple[Missed, ...]:
    """Return the bounds that a breach missed, the decisive one first; empty if that is the duration alone."""
    return tuple(Missed(bound, float(took), float(allowed)) for bound, took, allowed in _MISSED.findall(bounds or ""))


def route(attributes: Mapping[str, Value]) -> str | None:
    """Return the route of an entry span with these attributes: that of an HTTP request, or the method of an RPC."""
    found = text(attributes, HTTP_ROUTE)
    return text(attributes, RPC_METHOD) if found is None else found


def is_breached_entry(span: Span) -> bool:
    """Return whether this is a breached entry span, cheaply: it is asked of every span of every trace read."""
    if span.kind != span.SPAN_KIND_SERVER:
        return False
    return any(item.key == semconv.SLA_BREACHED and item.value.bool_value for item in span.attributes)
