"""All spans of a request as bytes, when it ends: in C where a compiler was there (docs/decisions/011)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace.native import native
from stagetrace.otlp.encode.span_encoder import encode_entry, encode_stages, stage_head
from stagetrace.recording.segments import coalesced, totals_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stagetrace.recording.own_span import Identity
    from stagetrace.recording.stages import Stages


def _encode_request(
    stages: Stages,
    identity: Identity,
    times: tuple[int, int],
    mark: bytes,
    rest: bytes,
    attributes: Mapping[str, Any],
    model: Mapping[str, Any],
    cuts: Sequence[int],
) -> tuple[bytes, int]:
    """Return all spans of one request, encoded, the entry span last, and how many they are.

    `identity` and `times` (start and end) are the entry span's, which has `rest` (see `encode_entry`), `attributes`,
    those of `model`, and the totals of its stages; `mark` is on each stage (see `encode_stages`), and no visits are
    summed across `cuts` (see `coalesced`).
    """
    few = coalesced(stages.segments(), cuts)
    spans = encode_stages(few, stage_head(identity.context), mark)
    return spans + encode_entry(identity, times, rest, attributes, totals_of(few), model), len(few) + 1


_in_c = native("marks") and native("encoder")
NATIVE = _in_c is not None
encode_request = _encode_request if _in_c is None else _in_c.encode_request
