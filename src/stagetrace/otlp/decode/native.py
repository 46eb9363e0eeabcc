"""The parts of decoding that take the most time: the native implementation if it was built, else the Python one.

`native/decoder_*.c` return the same spans for a tenth of the CPU (docs/decisions/011). If they raise an error that the
Python implementation does not raise, that is logged once, and the Python implementation goes on in their place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stagetrace import log
from stagetrace.native import native
from stagetrace.otlp.decode.spans import Parts, Walked, parts_in_python, walk_in_python

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from stagetrace.otlp.decode.spans import Check

    # How many are NULL, then what Arrow's columnar format prescribes; None where there is no value at all.
    Buffers = tuple[Any, ...] | None


_in_c = native("decoder")
NATIVE = _in_c is not None


def _parts(data: bytes, at: int, end: int, most: int) -> Parts:
    """Do as `parts_in_python`."""
    try:
        return Parts(*_in_c.decode_parts(data, at, end, most))
    except Exception as error:  # noqa: BLE001
        found = parts_in_python(data, at, end, most)  # raises if the fault is in the data
        _log_fault(error)
        return found


def _walk(data: bytes, held: bytes, check: Check | None, most: int) -> Walked:
    """Do as `walk_in_python`."""
    try:
        return Walked(*_in_c.decode_spans(data, held, check, most))
    except Exception as error:  # noqa: BLE001
        walked = walk_in_python(data, held, check, most)  # as in `_parts`
        _log_fault(error)
        return walked


def columns(logs: Sequence[bytes]) -> list[Buffers]:
    """Return the spans that `walk` has written into `logs` as the buffers of FIXED's and SPARSE's columns."""
    found: list[Buffers] = _in_c.decode_columns(logs)
    return found


def find(spans: pa.Array, key: bytes, kind: int, odd: Callable[[bytes], str | None]) -> Buffers:
    """Return the text form of one attribute of each serialized span, as Arrow has it; None where Python has to look.

    `kind`: the tag in an AnyValue that alone is meant, or 0. `odd` does the same for one span: it is asked for those
    that are not written as encoders do.
    """
    if not NATIVE:
        return None
    try:
        known, offsets, data = (b"" if one is None else one.to_pybytes() for one in spans.buffers())
        size, at = 4, spans.offset  # bytes of an offset
        places = offsets[size * at : size * (at + len(spans) + 1)] or bytes(size)
        found: Buffers = _in_c.decode_attribute(data, places, known, at, key, kind, odd)
    except Exception as error:  # noqa: BLE001
        _log_fault(error)
        return None
    return found


def _log_fault(error: Exception) -> None:
    log.once(
        "stagetrace._native.decoder",
        f"stagetrace's decoder in C failed ({type(error).__name__}: {str(error)[:200]}); Python goes on in its place.\n"
        "This is a fault of stagetrace: please report it. STAGETRACE_NATIVE=0 does without the C part.",
    )


parts = _parts if NATIVE else parts_in_python
walk = _walk if NATIVE else walk_in_python
