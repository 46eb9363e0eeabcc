"""What a critical path leaves out, and what was changed for it, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stagetrace.output.units import milliseconds

if TYPE_CHECKING:
    from stagetrace.analysis.critical_path import Path
    from stagetrace.analysis.span_tree import Tree


def notes(tree: Tree, path: Path) -> Iterator[str]:
    """Yield notes on changes to the spans, and on parts that the picture lacks."""
    if path.shifted_ns:
        most = max(path.shifted_ns.values(), key=abs)
        services = sorted({tree.spans[place].service for place in path.shifted_ns})
        yield (
            f"{_spans(len(path.shifted_ns))} of {', '.join(services)} moved by up to {milliseconds(most / 1e6)}: "
            "a clock was skewed."
        )
    if path.negative:
        yield f"{_spans(path.negative)} ended before they started, and count as of no duration."
    if path.other_roots:
        yield f"{_spans(path.other_roots)} have no parent here either, and this is not their path."
    if path.circular:
        yield f"The parents of {_spans(path.circular)} form a circle: they are on no path."


def _spans(count: int) -> str:
    return f"{count} span" if count == 1 else f"{count} spans"
