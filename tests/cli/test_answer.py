"""An answer in each form: for people, as JSON, as Markdown and as a page."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import stagetrace
from stagetrace import semconv
from stagetrace.cli.ask import LONG, format_option, print_answer
from stagetrace.cli.registry import Option, UsageError, add_options
from stagetrace.output.answer import Answer
from stagetrace.output.chart import ASCII, Bars, Histogram, Points, Series, Stacked, lines
from stagetrace.output.html import STAGES, chart_table, svg
from stagetrace.output.table import Column, Table

NOON = 1_772_366_400_000_000_000
MINUTE = 60 * 10**9
BARS = Bars("Time by stage", [("inference", 30.0, "30 ms"), ("queue", 7.5, "7.5 ms"), ("preprocess", None, "?")])
STACKED = Stacked("Shares", [("p50", {"queue": 0.25, "inference": 0.75}), ("p99", {"queue": 0.5, "inference": 0.5})])
HISTOGRAM = Histogram("Durations", [0, 10, 20, 40], [5, 20, 1], "ms", [(40, "p99")])
SERIES = Series("p99", [10, None, 20, 40], NOON, MINUTE, "ms", [(NOON + 2 * MINUTE, "deploy")])
MEASURED, CURVE = [(1, 50), (2, 100), (4, 200), (8, 195)], [(0, 0), (4, 200), (8, 200)]
POINTS = Points("Throughput", MEASURED, CURVE, "in flight", "/s", [(4, "knee")])
CHARTS = (BARS, STACKED, HISTOGRAM, SERIES, POINTS)
TABLE = Table((Column("stage"), Column("p99", is_number=True)), ["shop <b>", ("queue|x", "1.00 ms")], "Stages")
ANSWER = Answer("A & B", "p99 is <fine>.", {"stages": [1.5, None]}, ("A line.", TABLE, BARS), is_bad=True)


def arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser, [Option("--json", "JSON"), format_option("keda"), LONG])
    return parser.parse_args(given)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert print_answer(arguments("--json"), ANSWER) == 1
    expected = {"complete": True, "sentence": "p99 is <fine>.", "stages": [1.5, None]}
    assert json.loads(capsys.readouterr().out) == expected


def test_an_incomplete_answer_is_marked_in_each_form(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer("T", "S.", {}, reason="cut & off")
    for form, shown in (("text", ""), ("markdown", "**Incomplete:** cut & off"), ("html", "Incomplete: cut &amp; off")):
        assert print_answer(arguments("--format", form), answer) == 0
        out, err = capsys.readouterr()
        assert shown in out
        assert err == "stagetrace: INCOMPLETE: cut & off\n"


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(arguments("--long"), ANSWER)
    shown = "p99 is <fine>.\n\nA line.\n\nStages\nstage        p99\nshop <b>\nqueue|x  1.00 ms\n"
    assert capsys.readouterr().out.startswith(shown)


def test_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(arguments("--format", "markdown"), ANSWER)
    assert capsys.readouterr().out.startswith(
        "# A & B\n\np99 is \\<fine\\>.\n\nA line.\n\nStages\n\n| stage | p99 |\n| --- | --: |\n"
        "| shop \\<b\\> |  |\n| queue\\|x | 1.00 ms |\n\nTime by stage\n\n```text\n"
    )


def test_a_page_is_whole_and_escapes_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    print_answer(arguments("--format", "html"), ANSWER)
    page = capsys.readouterr().out
    assert "<b>" not in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert '<p class="sentence bad">p99 is &lt;fine&gt;.</p>' in page


def test_two_forms_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="two forms"):
        print_answer(arguments("--json", "--format", "html"), ANSWER)


def test_pictures_in_characters() -> None:
    assert lines(BARS, 60, ASCII) == [
        "Time by stage",
        f"  inference   {'#' * 39} 30 ms",
        f"  queue       {'#' * 10} 7.5 ms",
        "  preprocess  ?",
    ]
    assert lines(Bars("x", [("a", 1.0, "a long text")]), 60, ASCII)[1] == f"  a  {'#' * 43} a long text"
    assert lines(STACKED, 60, ASCII) == [
        "Shares",
        f"  p50  {'#' * 13}{'=' * 40}",
        f"  p99  {'#' * 26}{'=' * 27}",
        "       # queue  = inference",
    ]
    assert lines(HISTOGRAM, 60, ASCII) == [
        "Durations",
        f"  0 to 10 ms   {'#' * 9} 5",
        f"  10 to 20 ms  {'#' * 36} 20",
        "  20 to 40 ms  ## 1  < p99",
    ]
    assert lines(SERIES, 60, ASCII) == [
        "p99",
        "       40 ms          ##",
        "                      ##",
        "                   #####",
        "           0  ###  #####",
        "                   ^ deploy",
        "              2026-03-01 12:00:00 to 2026-03-01 12:04:00 UTC",
    ]
    assert lines(POINTS, 60, ASCII) == [
        "Throughput",
        f"      200 /s  {' ' * 22}o{' ' * 22}o",
        *[""] * 5,
        f"{' ' * 25}o",
        "",
        f"{' ' * 20}o",
        *[""] * 2,
        "           0  .",
        f"{' ' * 36}^ knee",
        f"{' ' * 14}0{'8 in flight':>45}",
    ]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda one: type(one).__name__)
def test_pictures_for_a_page(chart: Bars) -> None:
    """Each is well-formed, and shows its title and each label."""
    drawn = ET.fromstring(svg(chart._replace(title="<Title> & more")))  # noqa: S314 -- our own
    texts = " ".join(drawn.itertext())
    assert "<Title> & more" in texts
    for expected in {
        "Bars": ["inference", "7.5 ms"],
        "Histogram": ["p99"],
        "Series": ["deploy", "40 ms"],
        "Points": ["knee", "/s"],
    }.get(type(chart).__name__, ["p50", "queue 25.0 %"]):
        assert expected in texts


@pytest.mark.parametrize("chart", CHARTS, ids=lambda one: type(one).__name__)
def test_the_values_of_a_picture_are_a_table(chart: Bars) -> None:
    """Each has a header for each cell, and all that is drawn."""
    made = chart_table(chart)
    cells = [cell for row in made.rows for cell in row]
    assert all(len(row) == len(made.columns) for row in made.rows)
    assert all(column.name for column in made.columns)
    for expected in {
        "Bars": ["inference", "7.5 ms"],
        "Histogram": ["p99"],
        "Series": ["deploy", "2026-03-01 12:00:00", "-"],
        "Points": ["knee", "200"],
    }.get(type(chart).__name__, ["p50", "25.0 %"]):
        assert expected in cells


def test_an_overspent_budget_is_a_full_bar_in_the_colour_of_what_is_bad() -> None:
    """The others are as long as what is left of theirs, however much the greatest has."""
    chart = Bars("Error budget left", [("a", 0.25, "25 %"), ("b", -10.0, "11 x spent"), ("c", 0.0, "0 %")], whole=1.0)
    bars = [line.count("#") for line in lines(chart, 60, ASCII)[1:]]
    assert bars == [11, 44, 0]
    assert re.findall(r'<rect width="([\d.]+)%"[^>]*class="(first|spent)"', svg(chart)) == [
        ("25.00", "first"),
        ("100.00", "spent"),
        ("0.00", "first"),
    ]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda one: type(one).__name__)
def test_empty_pictures(chart: Bars) -> None:
    empty = ("rows", "values", "edges", "counts", "marks", "points", "curve")
    changes: dict[str, Any] = {name: [] for name in chart._fields if name in empty}
    nothing = chart._replace(**changes)
    assert lines(nothing, 60)[0] == chart.title
    ET.fromstring(svg(nothing))  # noqa: S314 -- our own


def test_stages_have_the_colours_of_the_page() -> None:
    sheet = (Path(stagetrace.__file__).parent / "page/static/page.css").read_text()
    assert set(STAGES) == set(semconv.STAGES)
    for stage, colour in STAGES.items():
        assert f"--{stage.replace('.', '-')}: {colour};" in sheet
