"""Decoded spans as an Arrow table."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, Final

from stagetrace.otlp.decode.columns import FIXED, SHARED, SPARSE, arrow
from stagetrace.otlp.decode.spans import IDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from stagetrace.otlp.decode.spans import Decoded, Run, SpanColumns

_CODES: Final = {"i": "int32", "q": "int64"}


def table(requests: Sequence[Decoded]) -> pa.Table:
    """Return the spans of some requests, without `seq` and columns that none has; shared ones dictionary-coded."""
    pa = arrow()
    spans = pa.table(_arrays([one.spans for one in requests]))
    runs = [run for one in requests for run in one.runs]
    for at, (name, kind) in enumerate(SHARED):
        spans = spans.append_column(name, _shared(runs, at, kind))
    return spans


def repeat(pairs: Iterable[tuple[int, int]], code: str) -> pa.Array:
    """Return an array of the numbers of (number, times), each so many times; `code` is that of `array`."""
    numbers = array(code)
    for number, times in pairs:
        numbers.extend(array(code, (number,)) * times)
    return _numbers(numbers)


def _numbers(numbers: array[int]) -> pa.Array:
    pa = arrow()
    return pa.Array.from_buffers(getattr(pa, _CODES[numbers.typecode])(), len(numbers), [None, pa.py_buffer(numbers)])


def _shared(runs: Sequence[Run], at: int, kind: str) -> pa.Array:
    """Return one dictionary-coded column."""
    pa = arrow()
    numbers: dict[str | bytes, int] = {}
    codes = repeat([(numbers.setdefault(run.shared[at], len(numbers)), run.size) for run in runs], "i")
    return pa.DictionaryArray.from_arrays(codes, pa.array(list(numbers), getattr(pa, kind)()))


def _arrays(spans: Sequence[SpanColumns]) -> dict[str, pa.Array]:
    """Return the columns of FIXED and those of SPARSE that some span has."""
    pa = arrow()
    arrays = {}
    for at, (name, kind) in enumerate(FIXED):
        arrays[name] = _fixed([one.fixed[at] for one in spans], name, kind)
    for name, kind in SPARSE:
        if any(name in one.sparse for one in spans):
            arrays[name] = _join(spans, name, getattr(pa, kind)())
    return arrays


def _fixed(parts: Sequence[Any], name: str, kind: str) -> pa.Array:
    """Return a column that each span has."""
    pa = arrow()
    if name in IDS:
        ids = b"".join(parts)
        return pa.Array.from_buffers(pa.binary(IDS[name]), len(ids) // IDS[name], [None, pa.py_buffer(ids)]).cast(
            "binary"
        )
    values = array("q") if kind == "int64" else []
    for part in parts:
        values.extend(part)
    return _numbers(values) if isinstance(values, array) else pa.array(values, getattr(pa, kind)())


def _join(spans: Sequence[SpanColumns], name: str, kind: pa.DataType) -> pa.Array:
    """Return a column that perhaps few spans have: values at their places, NULL elsewhere."""
    import pyarrow.compute as pc

    pa = arrow()
    places: list[int] = []
    values: list[Any] = []
    offset = 0
    for one in spans:
        found = one.sparse.get(name, ((), ()))
        places += [place + offset for place in found[0]] if offset else found[0]
        values += found[1]
        offset += one.size
    if len(values) == offset:
        return pa.array(values, kind)
    indices = pc.call_function(
        "inverse_permutation", [pa.array(places, pa.int32())], pc.InversePermutationOptions(max_index=offset - 1)
    )
    return pa.array(values, kind).take(indices)
