"""Typed access to the attributes of a span, as both stores and analyses read them. Pure."""

from __future__ import annotations

import base64
import json
from math import isfinite, isnan
from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_STAGE_ORDER: Final = {stage: place for place, stage in enumerate(semconv.STAGES)}


def text(attributes: Mapping[str, object], key: str) -> str | None:
    """Return a text attribute, or None if it is absent or of another type."""
    found = attributes.get(key)
    return found if isinstance(found, str) else None


def as_text(found: Any) -> str:
    """Return a value's text form, which filters compare: `true`, `3`, `0.5`, text itself, base64 of bytes.

    Lists and maps are JSON without spaces. A whole float has no fraction (`50`), as Jaeger shows it.
    """
    if isinstance(found, str):
        return found
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int):
        return str(found)
    if isinstance(found, float):
        return str(json_value(found)).removesuffix(".0")
    if isinstance(found, bytes):
        return base64.b64encode(found).decode()
    return "" if found is None else json.dumps(json_value(found), ensure_ascii=False, separators=(",", ":"))


def json_value(found: Any) -> Any:
    """Return a value as JSON has it; like OTLP, bytes in base64 and NaN and infinities as words."""
    if isinstance(found, bytes):
        return base64.b64encode(found).decode()
    if isinstance(found, float) and not isfinite(found):
        return "NaN" if isnan(found) else "Infinity" if found > 0 else "-Infinity"
    if isinstance(found, list | tuple):
        return [json_value(item) for item in found]
    if isinstance(found, dict):
        return {key: json_value(item) for key, item in found.items()}
    return found


def number(attributes: Mapping[str, object], key: str) -> float | None:
    """Return a finite numeric attribute, or None if it is absent or something else."""
    found = attributes.get(key)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) and isfinite(found) else None


def named_stages(attributes: Mapping[str, object]) -> dict[str, float]:
    """Return stage -> total ms as the attributes of an entry span give them, in stage order, then by name."""
    stages = ((semconv.stage_of_total(key), number(attributes, key)) for key in attributes)
    return _ordered({stage: total for stage, total in stages if stage and total is not None})


def stage_totals(entry: Any, spans: Iterable[Any]) -> dict[str, float]:
    """Return stage -> total ms in stage order: from the entry span's own attributes, else from its stage spans.

    Both are spans as `store.base.SpanRow` has them.
    """
    totals = named_stages(entry.attributes)
    if not totals:
        nanoseconds: dict[str, int] = {}
        for span in {span.span_id: span for span in spans if span.parent_span_id == entry.span_id}.values():
            stage = text(span.attributes, semconv.ML_STAGE)
            if stage is not None:
                nanoseconds[stage] = nanoseconds.get(stage, 0) + span.duration_ns
        totals = _ordered({stage: total / 1e6 for stage, total in nanoseconds.items()})
    return totals


def _ordered(totals: dict[str, float]) -> dict[str, float]:
    return dict(sorted(totals.items(), key=lambda item: (_STAGE_ORDER.get(item[0], len(_STAGE_ORDER)), item[0])))
