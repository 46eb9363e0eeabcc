"""What a notebook is given: rows, the answer of a verb, one trace. Each shows itself, and what it lacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from stagetrace.errors import StagetraceError
from stagetrace.output import answer, trace
from stagetrace.output.units import UTC, Zone
from stagetrace.read import shown
from stagetrace.store import base
from stagetrace.text import printable

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa

_WIDTH: Final = 100


@dataclass(frozen=True)
class Rows(base.Partial):
    """Rows of a store. With a `reason` there are more than these, or less is known of them."""

    _table: pa.Table
    what: str  # requests, spans, rows
    reason: str | None = None

    def arrow(self) -> pa.Table:
        """Return them as a table of PyArrow."""
        return self._table

    def df(self) -> pd.DataFrame:
        """Return them as a DataFrame of pandas. Raise StagetraceError where that is not installed."""
        try:
            import pandas  # noqa: F401, ICN001 -- PyArrow's own error does not say what to install
        except ImportError:
            raise _needs("df", "pandas") from None
        return self._table.to_pandas()

    def polars(self) -> pl.DataFrame:
        """Return them as a DataFrame of polars. Raise StagetraceError where that is not installed."""
        try:
            from polars import DataFrame, from_arrow
        except ImportError:
            raise _needs("polars", "polars") from None
        found = from_arrow(self._table)
        assert isinstance(found, DataFrame)  # noqa: S101 -- of a table
        return found

    def __len__(self) -> int:
        """Return how many rows there are here."""
        return int(self._table.num_rows)

    def __repr__(self) -> str:
        return f"<{self._sentence()}>"

    def _sentence(self) -> str:
        return f"{len(self):,} {self.what}, {_completeness(self)}"

    def _repr_html_(self) -> str:
        return shown.rows(self._table, self._sentence())


@dataclass(frozen=True, repr=False)
class Answer(answer.Answer):
    """The answer of a verb, as the command prints it: `sentence`, `keys` of its JSON, `complete` and `reason`."""

    zone: Zone = UTC

    def as_json(self) -> dict[str, Any]:
        """Return the object that `--json` prints."""
        return answer.as_json(self)

    def __repr__(self) -> str:
        return f"<{printable(self.sentence)} ({_completeness(self)})>"

    def _repr_html_(self) -> str:
        return shown.answer(self, self.zone)


@dataclass(frozen=True, repr=False)
class Trace(base.Trace):
    """One trace: `spans`, by start. Its text is what `stagetrace trace` prints."""

    zone: Zone = UTC
    note: str | None = None  # what `latest` means, where there is no request

    def as_json(self) -> dict[str, Any]:
        """Return the object that `stagetrace trace --json` prints."""
        return trace.as_json(self)

    def __str__(self) -> str:
        return "\n".join(trace.render(self, _WIDTH, trace.BLOCKS, self.zone, wrapped=True))

    def __repr__(self) -> str:
        return f"<trace {self.trace_id}, {len(self.spans)} spans, {_completeness(self)}>"

    def _repr_html_(self) -> str:
        return shown.trace(self, self.zone, self.note)


def _completeness(found: base.Partial) -> str:
    return "complete" if found.reason is None else f"incomplete: {printable(found.reason)}"


def _needs(method: str, package: str) -> StagetraceError:
    return StagetraceError(f".{method}() needs {package}: pip install {package}")
