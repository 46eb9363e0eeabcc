"""From the events of one request to its encoded spans: the part of a request's end that takes the most time.

`tiled_in_python` and `request_in_python` are the reference. `native/encoder.c` gives the same bytes for a tenth of the
CPU where a C compiler was there at the installation (docs/decisions/011).
"""

from __future__ import annotations

from random import getrandbits
from typing import TYPE_CHECKING, Any

from stagetrace.guard import report
from stagetrace.native import native
from stagetrace.otlp.encode.span_encoder import encode_entry, encode_stages, stage_head
from stagetrace.recording.segments import coalesced
from stagetrace.recording.tiler import Tiler

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stagetrace.recording.marks import Event
    from stagetrace.recording.own_span import Identity
    from stagetrace.recording.segments import Segment
    from stagetrace.recording.stages import Stages as Tiled

    # the spans, how many they are, nanoseconds by stage, attributes of the first inference
    Stages = tuple[bytes, int, dict[str, int], Mapping[str, Any]]
    Tile = Callable[..., Stages]  # as `tiled_in_python`
    Request = tuple[bytes, int]
    Make = Callable[..., Request]  # as `request_in_python`


def tiled_in_python(
    events: list[Event],
    start: int,
    now: int,
    end: int,
    head: bytes,
    ids: bytes,
    mark: bytes,
    cuts: Sequence[int] = (),
) -> Stages:
    """Tile [start, end), in nanoseconds, with the stages that `events` make up, and encode these.

    At most MAX_SEGMENTS - 1 events; `now` is when the last of them is over. `head`, `ids`, eight bytes for each event
    and eight more, and `mark` are as in `encode_stages`; `cuts` as in `coalesced`.
    """
    tiler = Tiler(start)
    tiler.take(events)
    return encoded(coalesced(tiler.close(now, start, end), cuts), tiler.model, head, ids, mark)


def request_in_python(  # noqa: PLR0913, PLR0917 -- as `native/encoder.c` takes them
    events: list[Event],
    start: int,
    end: int,
    identity: Identity,
    ids: bytes,
    mark: bytes,
    rest: bytes,
    attributes: Mapping[str, Any],
    cuts: Sequence[int] = (),
) -> Request:
    """Return all spans of one request, encoded, the entry span last, and how many they are.

    As `tiled`, then `encode_entry` with its `identity`, `rest` and `attributes`.
    """
    head = stage_head(identity.context)
    spans, count, totals, model = tiled_in_python(events, start, end, end, head, ids, mark, cuts)
    return spans + encode_entry(identity, (start, end), rest, attributes, totals, model), count + 1


def encode_request(
    stages: Tiled,
    identity: Identity,
    times: tuple[int, int],
    mark: bytes,
    rest: bytes,
    attributes: Mapping[str, Any],
    model: Mapping[str, Any],
    cuts: Sequence[int] = (),
) -> tuple[bytes, int]:
    """Return all spans of one request, encoded, the entry span last, and how many they are.

    `times` are its start and end in nanoseconds since the epoch. `mark` is as in `encode_stages`, `rest`, `attributes`
    and `model` as in `encode_entry`, `cuts` as in `coalesced`.
    """
    segments = coalesced(stages.segments(), cuts)
    ids = getrandbits(64 * len(segments) + 64).to_bytes(8 * len(segments) + 8, "little")  # as the SDK's: not secret
    spans = encode_stages(segments, stage_head(identity.context), ids, mark)
    return spans + encode_entry(identity, times, rest, attributes, stages.totals(), model), len(segments) + 1


def encoded(segments: Sequence[Segment], model: Mapping[str, Any], head: bytes, ids: bytes, mark: bytes) -> Stages:
    """Encode stages that are worked out already."""
    totals: dict[str, int] = {}
    for segment in segments:
        stage = segment.stage
        totals[stage] = totals.get(stage, 0) + segment.end - segment.start
    return encode_stages(segments, head, ids, mark), len(segments), totals, model


_twins = native("encoder")
_in_c: tuple[Tile, Make] | None = None if _twins is None else (_twins.encode_stages, _twins.encode_request)
NATIVE = _in_c is not None
_tiled_in_c, _request_in_c = _in_c or (tiled_in_python, request_in_python)


def _tiled(
    events: list[Event],
    start: int,
    now: int,
    end: int,
    head: bytes,
    ids: bytes,
    mark: bytes,
    cuts: Sequence[int] = (),
) -> Stages:
    """Do as `tiled_in_python`."""
    try:
        return _tiled_in_c(events, start, now, end, head, ids, mark, cuts)
    except Exception as error:  # noqa: BLE001
        # Raises where the fault is not the twin's.
        stages = tiled_in_python(events, start, now, end, head, ids, mark, cuts)
        report("stagetrace._native.encoder", error)
        return stages


def _request(  # noqa: PLR0913, PLR0917
    events: list[Event],
    start: int,
    end: int,
    identity: Identity,
    ids: bytes,
    mark: bytes,
    rest: bytes,
    attributes: Mapping[str, Any],
    cuts: Sequence[int] = (),
) -> Request:
    """Do as `request_in_python`."""
    try:
        return _request_in_c(events, start, end, identity, ids, mark, rest, attributes, cuts)
    except Exception as error:  # noqa: BLE001
        made = request_in_python(events, start, end, identity, ids, mark, rest, attributes, cuts)  # as in `_tiled`
        report("stagetrace._native.encoder", error)
        return made


tiled: Tile = _tiled if NATIVE else tiled_in_python
request: Make = _request if NATIVE else request_in_python
