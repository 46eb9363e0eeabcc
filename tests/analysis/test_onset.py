"""When the breach rate changed: at the moment that was planted, and never where none was."""

from __future__ import annotations

import numpy as np
import pytest

from stagetrace.analysis.onset import changes

S = 1_000_000_000


def test_a_step_is_found_where_it_is() -> None:
    rng = np.random.default_rng(1)
    starts = np.sort(rng.integers(0, 3600 * S, 5000))
    breached = rng.random(5000) < np.where(starts >= 2400 * S, 0.15, 0.02)
    order = rng.permutation(5000)
    (one,) = changes(starts[order].tolist(), breached[order].tolist())
    assert abs(one.at_unix_nano - 2400 * S) < 40 * S
    assert one.before == pytest.approx(0.02, abs=0.01)
    assert one.after == pytest.approx(0.15, abs=0.02)


def test_an_incident_has_two_ends() -> None:
    rng = np.random.default_rng(2)
    starts = np.arange(6000) * S
    inside = (starts >= 2000 * S) & (starts < 2600 * S)
    found = changes(starts.tolist(), (rng.random(6000) < np.where(inside, 0.4, 0.01)).tolist())
    assert [round(one.at_unix_nano / S / 50) for one in found] == [40, 52]
    assert found[0].after == found[1].before


def test_nothing_changes_where_the_rate_is_the_same() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert changes(rng.integers(0, 10**12, 2000).tolist(), (rng.random(2000) < 0.1).tolist()) == []


def test_a_mix_of_routes_that_changes_is_no_change() -> None:
    rng = np.random.default_rng(3)
    starts = np.arange(6000)
    slow = rng.random(6000) < np.where(starts > 3000, 0.7, 0.1)
    breached = (rng.random(6000) < np.where(slow, 0.3, 0.01)).tolist()
    assert changes(starts.tolist(), breached, strata=slow.tolist()) == []
    assert changes(starts.tolist(), breached) != []


@pytest.mark.parametrize("starts", [[5] * 300, list(range(30)), []])
def test_without_two_sides_there_is_no_moment(starts: list[int]) -> None:
    assert changes(starts, [place % 3 == 0 for place in range(len(starts))]) == []
