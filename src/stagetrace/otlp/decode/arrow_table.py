"""Decoded spans as an Arrow table."""

from __future__ import annotations

from array import array
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from stagetrace.otlp.decode.columns import FIXED, SHARED, SPARSE, arrow
from stagetrace.otlp.decode.spans import NativeSpanColumns, join_logs

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from stagetrace.otlp.decode.request import Decoded, Run

_CODES: Final = {"i": "int32", "q": "int64"}


def table(requests: Sequence[Decoded]) -> pa.Table:
    """Return the spans of some requests, without `seq` and columns that none has; shared ones dictionary-coded."""
    pa = arrow()
    # All are native, or none is, unless the native implementation has failed in between.
    groups = groupby((one.spans for one in requests), type)
    parts = [pa.table((_from_native if kind is NativeSpanColumns else _from_lists)([*group])) for kind, group in groups]
    spans = pa.concat_tables(parts or [pa.table(_from_lists([]))], promote_options="default")
    runs = [run for one in requests for run in one.runs]
    for at, (name, kind) in enumerate(SHARED):
        spans = spans.append_column(name, _shared(runs, at, kind))
    return spans


def repeat(pairs: Iterable[tuple[int, int]], code: str) -> pa.Array:
    """Return an array of the numbers of (number, times), each so many times; `code` is that of `array`."""
    pa = arrow()
    numbers = array(code)
    for number, times in pairs:
        numbers.extend(array(code, (number,)) * times)
    return pa.Array.from_buffers(getattr(pa, _CODES[code])(), len(numbers), [None, pa.py_buffer(numbers)])


def _shared(runs: Sequence[Run], at: int, kind: str) -> pa.Array:
    """Return one dictionary-coded column."""
    pa = arrow()
    numbers: dict[str | bytes, int] = {}
    codes = repeat([(numbers.setdefault(run.shared[at], len(numbers)), run.size) for run in runs], "i")
    return pa.DictionaryArray.from_arrays(codes, pa.array(list(numbers), getattr(pa, kind)()))


def _from_native(spans: Sequence[Any]) -> dict[str, pa.Array]:
    pa = arrow()
    size = sum(one.size for one in spans)
    arrays = {}
    for (name, kind), column in zip((*FIXED, *SPARSE), join_logs(spans), strict=True):
        if column is not None:
            nulls, *given = column
            buffers = [None if one is None else pa.py_buffer(one) for one in given]
            arrays[name] = pa.Array.from_buffers(getattr(pa, kind)(), size, buffers, nulls)
    return arrays


def _from_lists(spans: Sequence[Any]) -> dict[str, pa.Array]:
    pa = arrow()
    fixed = {name for name, _ in FIXED}
    arrays = {}
    for name, kind in (*FIXED, *SPARSE):
        if name in fixed or any(name in one.columns for one in spans):
            arrays[name] = _join(spans, name, getattr(pa, kind)())
    return arrays


def _join(spans: Sequence[Any], name: str, kind: pa.DataType) -> pa.Array:
    """Return a column that perhaps few spans have: values at their places, NULL elsewhere."""
    import pyarrow.compute as pc

    pa = arrow()
    places: list[int] = []
    values: list[Any] = []
    offset = 0
    for one in spans:
        found = one.columns.get(name, ((), ()))
        places += [place + offset for place in found[0]] if offset else found[0]
        values += found[1]
        offset += one.size
    if len(values) == offset:
        return pa.array(values, kind)
    indices = pc.call_function(
        "inverse_permutation", [pa.array(places, pa.int32())], pc.InversePermutationOptions(max_index=offset - 1)
    )
    return pa.array(values, kind).take(indices)
