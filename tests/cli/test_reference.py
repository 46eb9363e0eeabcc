"""docs/cli.md cannot go stale: its reference is what the parsers say, and its keys are what `--json` prints."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from cli import reference
from cli.running import printed
from stagetrace.analysis.breach_details import Group, Groups, Hop, Owner
from stagetrace.cli.registry import VERBS
from stagetrace.output import breaches, trace
from stagetrace.store import Breaches, Entry, SpanRow, Trace
from stagetrace.store.base import Lost, SpanEvent, Tally
from store.feed import entry, recent

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("page", reference.PAGES, ids=lambda path: path.name)
def test_the_tables_are_what_the_code_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == reference.PAGES[page](text), "run: PYTHONPATH=src python tests/cli/reference.py"


def test_the_page_has_each_verb_once_and_each_shared_option_once() -> None:
    rows = Counter(re.findall(r"^\| `-.+ \|$", reference.reference(), re.MULTILINE))
    assert rows["| `--fail` | exit with 1 if there is a breach, and with 2 if no request was judged |"] == 1
    often = [row for row, times in rows.items() if times > 2]
    assert not often, "an option that many verbs share stands in reference.SHARED"
    shared = [flag for one in reference.SHARED for flag in one.flags]
    assert len(re.findall(r"^\|.*\| `--", reference.shared(), re.MULTILINE)) == len(shared) == len(set(shared))


def test_a_verb_has_its_own_options_and_names_those_that_it_shares() -> None:
    page = reference.reference()
    breaches = page.partition("### `stagetrace breaches`")[2].partition("\n### ")[0]
    assert "| `--fail` |" in breaches
    assert "| `--route" not in breaches
    shared = (
        "Shared options: selection, breaches, judging, `--long`; `--limit` by default: the newest 15, with --json all."
    )
    assert shared in breaches
    tail = page.partition("### `stagetrace tail`")[2].partition("\n### ")[0]
    assert "Shared options: selection without `--until`, breaches." in tail


def test_percent_signs_are_shown_as_help_prints_them() -> None:
    """Parsers have them twice in what it formats; no page and no shell shows that."""
    assert "%%" not in reference.PAGE.read_text(encoding="utf-8")
    assert "| only changes by this much or more; default: 5% |" in reference.reference()
    for shell in ("bash", "fish", "zsh"):
        assert "%%" not in printed("completion", shell)


def test_every_argument_names_what_it_means() -> None:
    for verb in VERBS:
        assert all(action.help for action in reference.arguments(verb))


def test_every_json_key_is_described() -> None:
    text = reference.PAGE.read_text(encoding="utf-8")
    sections = {part.partition("`\n")[0]: part for part in text.split("\n## `")[1:]}
    made = entry("svc", recent())
    row = SpanRow(made.trace_id, made.span_id, None, "n", "svc", "SERVER", made.start, made.end, {})
    row = replace(row, events=(SpanEvent(made.start, "stall", {}),))
    nothing = (None, None, None, None, None)  # threshold, overrun, objective, stage, severity
    one = Entry(made.trace_id, made.span_id, "svc", "n", None, made.start, made.end, *nothing)
    tally = Tally(lost=(Lost("inference", "gc", 1, 2.0),))
    listed = breaches.as_json(Breaches((one,), "why", tally), [Owner((Hop("svc", None, 1.0),), "why")])
    drawn = trace.as_json(Trace(made.trace_id, (row,), "why"))
    breach = listed["breaches"][0]
    assert _described(sections["breaches --each --json"]) == {
        *(*listed, *listed["lost"][0]),
        *(*breach, *breach["owner"], *breach["path"][0]),
    }
    group = Group("svc", "/", "inference", "gc", None, 1, 2, 3, 4.0, 5.0, 6.0, made.trace_id)
    grouped = breaches.groups_as_json(Groups((group,), 1), tally, "why")
    new = {key: grouped[key] for key in grouped if key not in listed}
    assert _described(sections["breaches --json"]) == {*new, *grouped["groups"][0]}
    assert _described(sections["trace --json"]) == {*drawn, *drawn["spans"][0], *drawn["spans"][0]["events"][0]}


def _described(section: str) -> set[str]:
    """Return the words in the first column of the section's tables."""
    cells = re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
