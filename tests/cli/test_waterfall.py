"""The drawing of a trace, whole: each test compares every line."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from stagetrace import semconv
from stagetrace.output.trace import ASCII, BLOCKS, render, stalls_of
from stagetrace.request.stalls import KINDS
from stagetrace.store import SpanRow, Trace
from stagetrace.store.base import SpanEvent

MS = 1_000_000
T0 = 1_772_366_400_000_000_000  # 2026-03-01T12:00:00Z
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def span(
    number: int,
    name: str,
    start_ms: float,
    end_ms: float,
    parent: int | None = None,
    *,
    service: str = "shop",
    kind: str = "INTERNAL",
    **attributes: Any,
) -> SpanRow:
    """Return a span with ids and times by small numbers."""
    start, end = T0 + round(start_ms * MS), T0 + round(end_ms * MS)
    above = None if parent is None else f"{parent:016x}"
    return SpanRow(TRACE, f"{number:016x}", above, name, service, kind, start, end, attributes)


def stage(number: int, name: str, start_ms: float, end_ms: float, **attributes: Any) -> SpanRow:
    """Return a stage span of span 1."""
    return span(number, name, start_ms, end_ms, 1, **{semconv.ML_STAGE: name, **attributes})


BREACHED: dict[str, Any] = {
    semconv.SLA_BREACHED: True,
    semconv.SLA_OBJECTIVE: "POST /predict within 50ms",
    semconv.SLA_THRESHOLD_MS: 50.0,
    semconv.SLA_OVERRUN_MS: 30.0,
    semconv.SLA_SEVERITY: "major",
    semconv.SLA_BREACH_STAGE: "inference",
    semconv.SLA_BREACH_CAUSE: "pool_wait",
    semconv.SLA_BREACH_EVIDENCE: "inference took 56 ms of 80 ms",
}
KEPT: dict[str, Any] = {semconv.SLA_BREACHED: False, semconv.SLA_THRESHOLD_MS: 2.5}
GOLDEN = """\
trace 4bf92f3577b34da6a3ce929d0e0e4736, 2026-03-01 12:00:00.000000 UTC, 9 spans of 2 services, 80.00 ms
BREACH shop POST /predict: took 80.00 ms, 50 ms allowed, over by 30.00 ms (major)
  stage: inference, 56.00 ms
  cause: pool_wait
  evidence: inference took 56 ms of 80 ms
  objective: POST /predict within 50ms
GOOD users GET /user/{id}: took 2.00 ms, 2.5 ms allowed

shop POST /predict         ────────────────────────────────────────     80.00 ms 100.0 %
  network.receive          ▏                                            0.000 ms   0.0 %
  preprocess               ████████                                     16.00 ms  20.0 % *
    tokenize                ▒▒▒▒                                         8.00 ms  10.0 % *
    GET /user ERROR             ▒▒                                       4.00 ms   5.0 % *
      users GET /user/{id}       ─                                       2.00 ms 100.0 % *
  inference x3                     ████████████████████████████         56.00 ms  70.0 % * < culprit
  postprocess                                                  ████      7.50 ms   9.4 % *
  network.send                                                    ▏     0.500 ms   0.6 % *

* on the critical path: the end waited for it
xN: the sum of N visits, which took turns with those of the lines beside it"""
ENTRY = span(1, "POST /predict", 0, 80, kind="SERVER", **BREACHED)
SPANS = (
    ENTRY,
    stage(2, "network.receive", 0, 0),
    stage(3, "preprocess", 0, 16),
    stage(4, "inference", 16, 72, **{semconv.ML_STAGE_COALESCED: 3}),
    stage(5, "postprocess", 72, 79.5),
    stage(6, "network.send", 79.5, 80),
    span(7, "tokenize", 2, 10, 3),
    replace(span(8, "GET /user", 10, 14, 3, kind="CLIENT"), status="ERROR"),
    span(9, "GET /user/{id}", 11, 13, 8, service="users", kind="SERVER", **KEPT),
)


def drawn(*spans: SpanRow, width: int = 100, look: Any = BLOCKS) -> str:
    return "\n".join(render(Trace(TRACE, spans), width, look))


def test_a_breach_with_its_stages_details_and_another_service() -> None:
    assert drawn(*SPANS) == GOLDEN


def stall(at_ms: float, of: str, samples: int, out_of: int, stack: str, **more: Any) -> SpanEvent:
    """Return an event as the recording side writes it, at the application's line `app.py:41 in predict`."""
    attributes = {
        semconv.STALL_OF: of,
        semconv.STALL_SAMPLES: samples,
        semconv.STALL_OUT_OF: out_of,
        semconv.CODE_FILE_PATH: "app.py",
        semconv.CODE_LINE_NUMBER: 41,
        semconv.CODE_FUNCTION_NAME: "Model.predict",
        semconv.CODE_STACKTRACE: stack,
    }
    return SpanEvent(T0 + round(at_ms * MS), semconv.STALL, {**attributes, **more})


STACK = """\
  File "starlette/routing.py", line 290, in handle
  File "starlette/routing.py", line 76, in app
  File "my app.py", line 41, in predict
  File "sqlalchemy/engine/base.py", line 1967, in _execute
  File "<string>", line 3, in <lambda>"""
STALLS = (
    stall(20, "rival", 1, 1, "of another sender", **{semconv.STALL_GIL_MS: 34.25}),
    stall(52.5, "request", 7, 8, STACK),
    SpanEvent(T0, "exception", {"exception.type": "ValueError"}),
)
STOOD = """\
  objective: POST /predict within 50ms
  stall: the request at app.py:41 in Model.predict, 7 of 8 samples, first 52.50 ms after the start
      ...
      starlette/routing.py:76 in app
      my app.py:41 in predict
      sqlalchemy/engine/base.py:1967 in _execute
      <string>:3 in <lambda>
  stall: a thread that computed meanwhile at app.py:41 in Model.predict, 1 of 1 samples, first 20.00 ms after \
the start; before it, the GIL was held for 34.25 ms
      of another sender"""


def test_a_late_request_has_the_stacks_that_were_sampled() -> None:
    """The one seen most first, of each the innermost places."""
    text = drawn(replace(ENTRY, events=STALLS), *SPANS[1:])
    assert text == GOLDEN.replace("  objective: POST /predict within 50ms", STOOD)


def test_stacks_with_few_samples_are_counted() -> None:
    many = tuple(stall(number, "pool", 9 - number, 30, "") for number in range(6))
    said = drawn(replace(ENTRY, events=many)).splitlines()
    assert [line.partition(" samples")[0] for line in said if line.startswith("  stall:")] == [
        *(f"  stall: a thread of the pool at app.py:41 in Model.predict, {9 - number} of 30" for number in range(4)),
        "  stall: 2 more stacks; --json has all",
    ]


def test_each_kind_of_stack_has_words_and_a_place() -> None:
    """Every kind that services record, in its order: the request first."""
    events = tuple(stall(1, of, 1, 1, "") for of in reversed(KINDS))
    found = stalls_of(replace(ENTRY, events=events))
    assert found[0].of == KINDS[0]
    assert all(one.whose not in KINDS for one in found)
    assert len({one.whose for one in found}) == len(KINDS)


def test_an_event_without_its_attributes_is_shown_all_the_same() -> None:
    said = drawn(replace(ENTRY, events=(SpanEvent(T0, semconv.STALL, {semconv.STALL_OF: "cache"}),)))
    assert "\n  stall: cache at ?:? in ?, first 0.000 ms after the start\n\n" in said


def test_the_order_in_which_spans_come_does_not_matter() -> None:
    assert drawn(*reversed(SPANS)) == GOLDEN


def test_a_narrow_terminal_without_block_characters() -> None:
    """Names are cut where they would leave no room for bars, and the cut shows."""
    long = span(10, "a detail span with a very long name", 20, 30, 4)
    assert (
        drawn(ENTRY, SPANS[3], long, width=60, look=ASCII).split("\n\n")[1]
        == """\
shop POST /pred~ ----------     80.00 ms 100.0 %
  inference x3     #######      56.00 ms  70.0 % * < culprit
    a detail sp~    =           10.00 ms  12.5 % *"""
    )


def test_a_detail_of_several_calls_says_how_many_and_is_waited_for_if_they_fill_it() -> None:
    def tokenize(number: int, took_ms: float) -> SpanRow:
        attributes: dict[str, Any] = {semconv.DETAIL_CALLS: 400, semconv.DETAIL_TIME_MS: took_ms}
        return span(number, "tokenize", 20 * number - 120, 20 * number - 110, 4, **attributes)

    text = drawn(ENTRY, stage(4, "inference", 0, 72), tokenize(7, 1.0), tokenize(8, 10.0))
    (first, second) = [line for line in text.splitlines() if "tokenize x400" in line]
    assert (first.endswith("*"), second.endswith("*")) == (False, True)
    assert text.endswith("xN of a library: N calls of this stage, from the first begin to the last end")


def test_no_line_of_the_tree_is_wider_than_asked() -> None:
    for width in (60, 80, 100, 237):
        tree = drawn(*SPANS, width=width).split("\n\n")[1].splitlines()
        assert max(map(len, tree)) <= width


def test_sentences_are_wrapped_where_the_terminal_is_narrow_and_units_stay_with_their_numbers() -> None:
    text = "inference took 56.0 ms of 80.0 ms: 40.0 ms waiting for a CPU (usually 0.4 ms), 10 % computing"
    entry = replace(ENTRY, attributes={**ENTRY.attributes, semconv.SLA_BREACH_EVIDENCE: text})
    trace = Trace(TRACE, (entry,))
    whole = render(trace, 60, BLOCKS)
    shown = render(trace, 60, BLOCKS, wrapped=True)
    assert max(map(len, shown)) <= 60 < max(map(len, whole))
    assert " ".join(" ".join(shown).split()) == " ".join(" ".join(whole).split())
    assert not any(line.split()[0] in ("ms", "%") for line in shown if line.strip())


def test_stages_laid_end_to_end_touch_on_screen() -> None:
    stages = [stage(n, f"s{n}", (n - 2) * 7.3, (n - 1) * 7.3) for n in range(2, 9)]
    entry = span(1, "e", 0, 7 * 7.3, kind="SERVER")
    tree = drawn(entry, *stages, width=90).split("\n\n")[1].splitlines()
    bars = [(line.index("█"), line.rindex("█") + 1) for line in tree[1:]]
    assert [right for _, right in bars[:-1]] == [left for left, _ in bars[1:]]
    assert (bars[0][0], bars[-1][1]) == (tree[0].index("─"), tree[0].rindex("─") + 1)


def test_spans_without_their_parents_are_shown_and_marked() -> None:
    """A parent that is elsewhere, and parents that form a circle: each span is drawn once, and nothing hangs."""
    spans = (
        span(1, "lost", 0, 10, 99),
        span(2, "below lost", 2, 3, 1),
        span(3, "round", 5, 6, 4),
        span(4, "and round", 5, 7, 3),
        span(5, "own parent", 8, 9, 5),
    )
    assert (
        drawn(*spans, width=72)
        == """\
trace 4bf92f3577b34da6a3ce929d0e0e4736, 2026-03-01 12:00:00.000000 UTC, 5 spans of 1 service, 10.00 ms

(parent 0000000000000063 is not in this store)
shop lost       ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒     10.00 ms
  below lost           ▒▒▒                             1.00 ms         *
(parent 0000000000000004 is below this span: a circle)
shop round                       ▒▒▒                   1.00 ms
  and round                      ▒▒▒▒▒▒                2.00 ms
(parent 0000000000000005 is below this span: a circle)
shop own parent                           ▒▒▒▒         1.00 ms

* on the critical path: the end waited for it"""
    )


def test_each_entry_span_has_its_own_stages() -> None:
    """Without totals on the entry spans, the stages beneath each are summed, and not those of the other."""
    late = span(11, "POST /again", 100, 130, service="other", kind="SERVER", **BREACHED)
    theirs = span(12, "inference", 100, 125, 11, service="other", **{semconv.ML_STAGE: "inference"})
    took = [line for line in drawn(ENTRY, SPANS[3], late, theirs).splitlines() if line.startswith("  stage:")]
    assert took == ["  stage: inference, 56.00 ms", "  stage: inference, 25.00 ms"]


@pytest.mark.parametrize(
    ("attributes", "line"),
    [
        ({}, "NOT JUDGED shop POST /predict: took 80.00 ms"),
        ({semconv.SLA_VERDICT: "excluded"}, "EXCLUDED shop POST /predict: took 80.00 ms"),
        ({semconv.SLA_BREACHED: False}, "GOOD shop POST /predict: took 80.00 ms"),
        ({semconv.SLA_BREACHED: True}, "BREACH shop POST /predict: took 80.00 ms"),
        ({**KEPT, semconv.SLA_THRESHOLD_MS: 100}, "GOOD shop POST /predict: took 80.00 ms, 100 ms allowed"),
    ],
)
def test_the_verdict_line_names_what_is_known_and_no_more(attributes: dict[str, Any], line: str) -> None:
    lines = drawn(span(1, "POST /predict", 0, 80, kind="SERVER", **attributes)).splitlines()
    assert lines[1:3] == [line, ""]


def test_a_span_whose_clock_stepped_back_is_drawn() -> None:
    lines = drawn(span(1, "back", 5, 3, kind="SERVER")).splitlines()
    assert lines[-1].split() == ["shop", "back", "▏", "-2.00", "ms"]


def test_ten_thousand_levels_are_no_problem() -> None:
    chain = [span(1, "e", 0, 1), *(span(n, "e", 0, 1, n - 1) for n in range(2, 10_001))]
    assert len(drawn(*chain).splitlines()) == 10_004
