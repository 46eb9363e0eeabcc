"""Gates of `compare --gate`: by how much the second side may be slower, and whether it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from stagetrace.analysis.comparison import Comparison


class Gate(NamedTuple):
    """By how much b may be slower at a quantile, relative to a."""

    q: float
    limit: float
    text: str


def state_of(gate: Gate, compared: Comparison) -> str:
    """Return the state of a gate: with too little data it neither passes nor fails."""
    found = next(one.adjusted for one in compared.whole.quantiles if one.adjusted.q == gate.q)
    low, high = found.interval
    return "fail" if low > gate.limit else "pass" if high <= gate.limit else "undecided"


def gate_keys(gates: list[tuple[Gate, str]]) -> dict[str, Any]:
    """Return the keys of `--json` about gates: the worst state, and each gate."""
    states = {state for _, state in gates}
    worst = next((state for state in ("fail", "undecided", "pass") if state in states), None)
    return {"gate": worst, "gates": [{"gate": gate.text, "state": state} for gate, state in gates]}
