"""The Collector's section; test_end_to_end.py runs it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from backends import CONFIG
from rules.policies import OTHERS, PREDICT, policy
from stagetrace.policy.objective import NEVER_NS, Objective
from stagetrace.rules.base import RulesOptions
from stagetrace.rules.collector import BUCKETS_MS, DIMENSIONS, buckets, decision_wait_s, render

if TYPE_CHECKING:
    from stagetrace.policy.policy import Policy


def section(of: Policy) -> dict[str, Any]:
    """Return the section as the Collector reads it."""
    found: dict[str, Any] = yaml.safe_load(render(of, RulesOptions()))
    return found


def test_breaches_are_kept_and_counted_before_that() -> None:
    """The policies of tail sampling are alternatives; the pipeline that counts has no sampling."""
    found = section(policy())
    breaches, others = found["processors"]["tail_sampling"]["policies"]
    assert breaches["boolean_attribute"] == {"key": "sla.breached", "value": True}
    assert others["type"] == "probabilistic"
    pipelines = found["service"]["pipelines"]
    assert [name for name, one in pipelines.items() if "tail_sampling" in one["processors"]] == ["traces"]
    assert [name for name, one in pipelines.items() if "spanmetrics" in one["exporters"]] == ["traces/counted"]
    assert "spanmetrics" not in pipelines["traces"]["exporters"]


def test_each_bound_is_a_bucket() -> None:
    """In order, once, and also where it is no whole number of milliseconds."""
    odd = [replace(PREDICT, name=str(one), within_ns=one) for one in (120_000_000, 1_234_567_000, 2_500_000, 999)]
    of_odd = buckets(policy(PREDICT, OTHERS, *odd))
    assert [one for one in of_odd if one not in buckets(policy())] == ["999ns", "2500us", "120ms", "1234567us"]
    assert len(set(of_odd)) == len(of_odd)
    usual = buckets(policy(PREDICT))
    assert usual == buckets(policy(OTHERS))  # 250 ms and 1 s are among them


@pytest.mark.parametrize(
    ("objectives", "wait_s"),
    [
        ((PREDICT,), 10),
        ((PREDICT, replace(OTHERS, within_ns=30_000_000_000)), 125),
        ((replace(PREDICT, within_ns=NEVER_NS, first_chunk_ns=10**9),), 10),
        ((PREDICT, replace(OTHERS, within_ns=NEVER_NS, excludes=True)), 10),
    ],
)
def test_a_trace_is_judged_once_its_spans_are_there(objectives: tuple[Objective, ...], wait_s: int) -> None:
    """Four times the longest bound, and the time of a batch, in which spans are sent."""
    assert decision_wait_s(policy(*objectives)) == wait_s
    assert section(policy(*objectives))["processors"]["tail_sampling"]["decision_wait"] == f"{wait_s}s"


def test_spans_are_counted_as_by_collector_yaml() -> None:
    """The same labels, and the same buckets beside those of objectives: the board shows both."""
    ours = section(policy())["connectors"]["spanmetrics"]
    theirs = yaml.safe_load((CONFIG / "collector.yaml").read_text("utf-8"))["connectors"]["spanmetrics"]
    assert ours["histogram"] == theirs["histogram"]
    assert {name: theirs[name] for name in ours} == ours
    assert len(BUCKETS_MS) == len(theirs["histogram"]["explicit"]["buckets"])
    assert len(DIMENSIONS) == len(theirs["dimensions"])
