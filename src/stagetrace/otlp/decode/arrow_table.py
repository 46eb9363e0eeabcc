"""Decoded spans as an Arrow table."""

from __future__ import annotations

from array import array
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, Final

from stagetrace.otlp.decode.columns import FIXED, SHARED, SPARSE, arrow
from stagetrace.otlp.decode.native import columns
from stagetrace.otlp.decode.spans import Lists

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pyarrow as pa

    from stagetrace.otlp.decode.request import Run

_CODES: Final = {"i": "int32", "q": "int64"}


def table(runs: Sequence[Run]) -> pa.Table:
    """Return the spans of some runs, without `seq` and columns that none has; shared ones dictionary-coded."""
    pa = arrow()
    # All are lists, or all are logs, unless the native implementation has failed in between.
    groups = [list(group) for _, group in groupby(runs, lambda run: isinstance(run.spans, Lists))] or [[]]
    parts = [
        pa.table(_from_logs(one) if one and isinstance(one[0].spans, list) else _from_lists(one)) for one in groups
    ]
    spans = parts[0] if len(parts) == 1 else pa.concat_tables(parts, promote_options="default")
    for at, (name, kind) in enumerate(SHARED):
        spans = spans.append_column(name, _shared(runs, at, kind))
    return spans


def repeated(pairs: Iterable[tuple[int, int]], code: str) -> pa.Array:
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
    codes = repeated([(numbers.setdefault(run.shared[at], len(numbers)), run.size) for run in runs], "i")
    return pa.DictionaryArray.from_arrays(codes, pa.array(list(numbers), getattr(pa, kind)()))


def _from_logs(runs: Sequence[Run]) -> dict[str, pa.Array]:
    pa = arrow()
    size = sum(run.size for run in runs)
    logs: list[Any] = [run.spans for run in runs]
    found = columns(list(chain.from_iterable(logs)))
    arrays = {}
    for (name, kind), column in zip((*FIXED, *SPARSE), found, strict=True):
        if column is not None:
            nulls, *given = column
            buffers = [None if one is None else pa.py_buffer(one) for one in given]
            arrays[name] = pa.Array.from_buffers(getattr(pa, kind)(), size, buffers, nulls)
    return arrays


def _from_lists(runs: Sequence[Run]) -> dict[str, pa.Array]:
    pa = arrow()
    lists: list[Any] = [run.spans for run in runs]
    arrays = {
        name: pa.array(list(chain.from_iterable(one.fixed[at] for one in lists)), getattr(pa, kind)())
        for at, (name, kind) in enumerate(FIXED)
    }
    for name, kind in SPARSE:
        values = _sparse(runs, name, getattr(pa, kind)())
        if values is not None:
            arrays[name] = values
    return arrays


def _sparse(runs: Sequence[Run], name: str, kind: pa.DataType) -> pa.Array | None:
    """Return a column that few spans have: values at their places, NULL elsewhere; None if there is no value."""
    import pyarrow.compute as pc

    pa = arrow()
    places: list[int] = []
    values: list[Any] = []
    offset = 0
    for run in runs:
        spans: Any = run.spans
        if found := spans.sparse.get(name):
            places += [place + offset for place in found[0]] if offset else found[0]
            values += found[1]
        offset += run.size
    if not places:
        return None
    indices = pc.call_function(
        "inverse_permutation", [pa.array(places, pa.int32())], pc.InversePermutationOptions(max_index=offset - 1)
    )
    return pa.array(values, kind).take(indices)
