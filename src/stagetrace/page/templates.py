"""The templates of the page. Whatever they show is escaped: names and attributes of spans are anybody's text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from stagetrace import __version__, semconv
from stagetrace.output.chart import Chart
from stagetrace.output.chart_table import chart_table
from stagetrace.output.html_page import table
from stagetrace.output.svg import svg
from stagetrace.output.table_layout import Table
from stagetrace.output.times import UTC, Zone
from stagetrace.output.units import milliseconds, percent, q_value, threshold
from stagetrace.page.assets import address
from stagetrace.printable import printable

_FOLDER: Final = Path(__file__).parent / "templates"


@cache
def environment() -> Environment:
    """Return the environment of all templates."""
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=_finalized,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters |= {
        "ms": milliseconds,
        "threshold": threshold,
        "percent": percent,
        "q_value": q_value,
        "number": lambda value: f"{value:,.0f}",
    }
    made.globals |= {"static": address, "version": __version__, "drawn": drawn, "stage_class": stage_class}
    return made


def render(template: str, **values: Any) -> str:
    """Return a template filled in."""
    return environment().get_template(template).render(values)


def drawn(part: str | Table | Chart, zone: Zone = UTC) -> Markup:
    """Return a part of an answer as HTML: a line, a table, or a picture with its values."""
    if isinstance(part, str):
        return Markup("<p>{}</p>").format(printable(part)) if part else Markup()
    # Both escape what they show.
    if isinstance(part, Table):
        return Markup(table(part))  # noqa: S704
    values = table(chart_table(part, zone))
    return Markup(f"{svg(part, zone)}<details><summary>Values</summary>{values}</details>\n")  # noqa: S704


def stage_class(stage: str | None) -> str:
    """Return the class that gives an element the colour of a stage, as `--stage`."""
    return f"stage-{stage.replace('.', '-') if stage in semconv.STAGES else 'other'}"


def _finalized(value: Any) -> Any:
    """Return a value as it is to be escaped: text with the characters written out that do not show."""
    if value is None:
        return "-"
    return printable(value) if type(value) is str else value
