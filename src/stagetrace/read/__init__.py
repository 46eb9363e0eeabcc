"""Read a store from Python, in a notebook above all: rows as Arrow, pandas or polars, the answers of the commands.

`import stagetrace.read as st; store = st.open("local:///data")`. Needs the extra `backend`.
"""

from __future__ import annotations

from stagetrace.read.results import Answer, Rows, Trace
from stagetrace.read.store import Store, open  # noqa: A004 -- as in `st.open`

__all__ = ["Answer", "Rows", "Store", "Trace", "open"]
