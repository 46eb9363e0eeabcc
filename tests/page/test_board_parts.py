"""Parts of the board without a browser: what they say of samples, of requests without a verdict, of what is cut off."""

from __future__ import annotations

import re
from functools import partial
from html import unescape
from typing import TYPE_CHECKING

import pytest

from answers.made import MS, NOON, Made, store
from stagetrace.analysis import wrong_now
from stagetrace.causes.cause import CAUSES
from stagetrace.cli.ask import answer_of
from stagetrace.page import templates
from stagetrace.page.base import Asked, File, Part, Site
from stagetrace.page.templates import render
from stagetrace.page.views import board
from stagetrace.rules.alerts import FIRING, RESOLVED, Alert
from stagetrace.store import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

HOUR = (("since", "2026-03-01T12:00"), ("until", "2026-03-01T13:00"))
LATE = {"inference": 90.0}


def text_of(name: str, folder: Path, requests: Iterable[Made], *more: tuple[str, str]) -> str:
    """Return a part of the board as one reads it."""
    return as_read(html_of(name, folder, requests, *more))


def html_of(name: str, folder: Path, requests: Iterable[Made], *more: tuple[str, str]) -> str:
    """Return a part of the board."""
    path = str(store(folder / "store", requests))
    with open_store(path) as reader:
        site = Site(path, partial(open_store, path), partial(answer_of, path))
        asked = Asked.of((*HOUR, *more), {}, "1h")
        return html_of_part(board.VIEW.parts[name](asked, reader, site), asked, site)


def html_of_part(part: Part | File, asked: Asked, site: Site) -> str:
    assert isinstance(part, Part)
    return render("part.html", asked=asked, site=site, part=part, took_s=0.0, **part.values)


def as_read(html: str) -> str:
    html = re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", "", re.sub(r"</t[dh]>|<br>", " ", html))).split())


def some(count: int, first: int = 1, **more: object) -> list[Made]:
    return [Made(number, NOON + number * MS, within_ms=50, **more) for number in range(first, first + count)]  # type: ignore[arg-type]


def test_estimates_are_marked(tmp_path: Path) -> None:
    made = [*some(20, probability=0.25), *some(1, 100, probability=0.25, stages=LATE)]
    told = text_of("now", tmp_path, made)
    assert "No objective is known to be missed: 1 of about 81 judged requests is a breach" in told
    assert "~81 requests 1 breaches ~98.8 % met their objective" in told
    told = text_of("objectives", tmp_path, made)
    assert "~81 1 ~98.8 %" in told
    assert "~ is estimated out of sampled requests." in told


def test_lower_bounds_are_marked(tmp_path: Path) -> None:
    made = [*some(20, probability=0.0), *some(1, 100, probability=0.0, stages=LATE)]
    told = text_of("now", tmp_path, made)
    assert "No objective is known to be missed: 1 breach, of how many requests is not known" in told
    assert "Of 1 objective it is not known" in told


def test_a_sample_without_a_breach_is_well(tmp_path: Path) -> None:
    """Since breaches are all there."""
    assert "All is well: all ~40 judged requests met their objective." in text_of(
        "now", tmp_path, some(10, probability=0.25)
    )


def test_excluded_requests_need_no_objective(tmp_path: Path) -> None:
    told = text_of("now", tmp_path, some(3, verdict="excluded"))
    assert "3 requests, none judged: the policy excludes them." in told
    assert "STAGETRACE_SLA" not in told


def test_met_objectives_have_their_breaches_named(tmp_path: Path) -> None:
    told = text_of("now", tmp_path, [*some(200), *some(1, 500, stages=LATE, cause="gc")])
    assert "All objectives are met: 1 of 201 judged requests is a breach, in inference because of gc." in told


def test_a_line_of_code_is_said_to_narrow_nothing(tmp_path: Path) -> None:
    """The figures count all requests, whatever line is chosen."""
    made = [*some(20), *some(2, 100, stages=LATE, attributes={"sla.breach.code": "app.py:41 in predict"})]
    told = text_of("now", tmp_path, made, ("code", "app.py"))
    assert "The chosen line of code does not narrow these figures" in told
    assert "22 requests 2 breaches" in told
    assert "does not narrow" not in text_of("now", tmp_path / "other", made)


def test_many_causes_are_shown_together(tmp_path: Path) -> None:
    made = [
        one for place in range(10) for one in some(10 - place, 100 * place + 1, stages=LATE, cause=f"cause {place}")
    ]
    told = text_of("now", tmp_path, made)
    assert ", for many causes." in told
    assert "because of" not in told
    assert "10 of these breaches: inference / cause 0." in told
    assert "cause 0 10 cause 1 9" in told
    assert "cause 4 6 all others 15" in told
    assert "6 of 10, those with most time." in told


def test_objectives_beyond_the_limit_are_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_now, "OBJECTIVES", 1)
    told = text_of("now", tmp_path, [*some(3), *some(3, 50, route="/other")])
    assert "Incomplete: objectives beyond the 1 with most breaches are counted, but not looked at alone" in told


def test_an_objective_without_requests_in_the_window_keeps_its_budget(tmp_path: Path) -> None:
    earlier = [Made(number, NOON - 7_200_000 * MS + number, within_ms=50, stages=LATE) for number in range(1, 4)]
    told = text_of("objectives", tmp_path, [*earlier, *some(5, 50, route="/other")])
    assert re.search(r"/other of shop .* 5 0 100 % .* /predict of shop .* 0 0 - - - 100 x spent", told)


@pytest.mark.parametrize(("by", "expected"), [("cause", "gc 2"), ("stage", "tokenize 2")])
def test_stages_and_causes_by_the_users_own_names(tmp_path: Path, by: str, expected: str) -> None:
    made = some(2, stages={"tokenize": 80.0, "inference": 5.0}, cause="gc")
    assert expected in text_of("now", tmp_path, made, ("by", by))


def test_alerts_are_listed_as_they_are() -> None:
    """Whatever their labels hold."""
    labels = (("alertname", "SlaNoData"), ("sla_objective", "<b>predict</b>"), ("severity", "ticket"))
    burn = (*labels[1:], ("alertname", "Burn"), ("service", "a b"), ("long_window", "1h"), ("short_window", "5m"))
    summary = (("summary", "5% of the requests missed it"),)
    alerts = [
        Alert("r", burn, summary, FIRING, 60, NOON, is_known=False),
        Alert("r", labels, (), RESOLVED, 60, NOON, NOON + 60_000 * MS),
    ]
    site = Site("store", partial(open_store, "store"), partial(answer_of, "store"), alerts=lambda: alerts)
    asked = Asked.of(HOUR, {}, "1h")
    told = as_read(html_of_part(board.alerts(asked, None, site), asked, site))  # type: ignore[arg-type]
    assert "firing no data now <b>predict</b> of a b Burn over 1h and 5m ticket 2026-03-01 12:00:00 5% of the" in told
    assert "resolved <b>predict</b> SlaNoData ticket 2026-03-01 12:00:00 until 2026-03-01 12:01:00" in told
    other = Asked.of([*HOUR, ("service", "flowers")], {}, "1h")
    told = as_read(html_of_part(board.alerts(other, None, site), other, site))  # type: ignore[arg-type]
    assert "of a b" not in told
    assert "SlaNoData" in told  # which is of no service


def test_each_cause_has_an_icon_and_no_colour() -> None:
    """Colours are of stages alone; a cause that nobody knows has the icon of the unknown."""
    file = templates.files()["causes.svg"]
    icons = re.findall(r'<symbol id="(\w+)"[^>]*>(.*?)</symbol>', file.body.decode())
    assert {name for name, _ in icons} <= set(CAUSES)  # one without has that of the unknown
    assert len({drawn for _, drawn in icons}) == len(icons) > 10
    assert f'href="{file.address}#gc"' in templates.cause_icon("gc")
    assert f'href="{file.address}#unknown"' in templates.cause_icon('"><script>')
    sheets = [one.body.decode() for name, one in templates.files().items() if name.endswith(".css")]
    assert not [word for word in CAUSES for sheet in sheets if f"cause-{word}" in sheet]


def test_an_overspent_budget_is_a_full_bar(tmp_path: Path) -> None:
    """Not an empty one, which is the look of no data; and what is left of another one is its length."""
    made = [*some(89), *some(11, 100, stages=LATE)]
    shown = html_of("objectives", tmp_path, made)
    assert re.search(
        r'<span class="bad">11 x spent</span>\s*<svg[^>]*><rect class="low" width="100" height="4"/>', shown
    )
    kept = html_of("objectives", tmp_path / "kept", [*some(400), *some(1, 500, stages=LATE)])
    assert re.search(r'<span class="">75 %</span>\s*<svg[^>]*><rect class="" width="75', kept)


def test_requests_that_nothing_judged_are_neither_good_nor_bad(tmp_path: Path) -> None:
    shown = html_of("now", tmp_path, [Made(1, NOON)])
    assert '<section class="card status ">' in shown
