"""Stages: the figures are those of the commands, shares add up, and what is chosen is in the URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import Locator, expect

from cli.running import answered
from page.conftest import containing, settle
from page.data import fill
from stagetrace.output.units import milliseconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Page

    from page.conftest import OpenPage


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """Give a function that returns what a command answers about the data of the demo."""
    folder = tmp_path_factory.mktemp("stages") / "data"
    fill(folder, "demo")

    def answer(verb: str, *options: str) -> dict[str, Any]:
        found: dict[str, Any] = answered(verb, "--since", "1h", "--store", str(folder), *options)
        return found

    return answer


def table(page: Page, name: str) -> dict[str, dict[str, str]]:
    """Return a table of numbers: row -> column -> text."""
    cells = page.locator(f"#{name} tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(one => one.innerText))"
    )
    (_, *columns), *rows = cells
    return {row[0].strip(): dict(zip(columns, row[1:], strict=True)) for row in rows}


def share(text: str) -> float:
    """Return the share of a cell such as `73.8 % [31, 87]`."""
    return 0.0 if text == "0" else float(text.partition(" %")[0]) / 100


def sums(bars: Locator, size: str) -> list[float]:
    """Return how long (`width`) or high (`height`) all parts of each bar are together."""
    script = "(bars, size) => bars.map(bar => [...bar.querySelectorAll('rect')].map(one => +one.getAttribute(size)))"
    return [sum(parts) for parts in bars.evaluate_all(script, size)]


def test_shares_are_those_of_bottleneck(open_page: OpenPage, asked: Callable[..., dict[str, Any]]) -> None:
    found = asked("bottleneck")
    page = open_page("demo", "/stages")
    shown = table(page, "shares")
    for name in ("p50", "p95", "p99"):
        for one in found["stages"]:
            assert share(shown[one["stage"]][name]) == pytest.approx(one["share"][name], abs=6e-4)
        total = float(shown["total"][name].removesuffix(" ms"))
        assert total == pytest.approx(found["total_ms"][name], rel=0.01)
    low, high = next(one["interval"]["p95"] for one in found["stages"] if one["stage"] == "queue")
    assert shown["queue"]["p95"].endswith(f"[{100 * low:.0f}, {100 * high:.0f}]")
    assert "At p95" in page.locator("#whole .sentence").inner_text()


@pytest.mark.parametrize("name", ["demo", "many", "one"])
def test_shares_add_up(open_page: OpenPage, name: str) -> None:
    """Each bar is filled: those of the whole, and those of groups."""
    filled = sums(open_page(name, "/stages?p=90").locator("svg.bar"), "width")
    assert filled
    assert filled == pytest.approx([100] * len(filled), abs=1e-3)


def test_times_are_those_of_stages(open_page: OpenPage, asked: Callable[..., dict[str, Any]]) -> None:
    (group,) = asked("stages", "--model", "ExtraTreesClassifier")["groups"]
    shown = table(open_page("demo", "/stages?model=ExtraTreesClassifier"), "stage-times")
    whole = {**group, "stage": "(request)", "count": group["requests"], "share": 1.0}
    for one in (whole, *group["stages"]):
        row = shown[one["stage"]]
        assert row["requests"] == str(one["count"])
        assert [row[name] for name in ("p50", "p95", "p99", "max")] == [
            milliseconds(one[f"{name}_ms"]) for name in ("p50", "p95", "p99", "max")
        ]
        assert share(row["share"]) == pytest.approx(one["share"], abs=6e-4)


def test_groups_are_those_of_bottleneck(open_page: OpenPage, asked: Callable[..., dict[str, Any]]) -> None:
    """Of an attribute; each leads to what it is alone, its breaches and its part of the heat map."""
    found = asked("bottleneck", "--by", "service.version")["groups"]
    page = open_page("demo", "/stages?by=service.version&p=50")
    shown = table(page, "by-group")
    assert shown.keys() == {one["by"]["service.version"] or "(none)" for one in found}
    for group in found:
        row = shown[group["by"]["service.version"] or "(none)"]
        assert row["requests"] == str(group["requests"])
        for one in group["stages"]:
            assert share(row[one["stage"]]) == pytest.approx(one["share"]["p50"], abs=6e-4)
    links = [one.get_attribute("href") or "" for one in page.locator("#by-group tbody a").all()]
    assert {one.partition("?")[0] for one in links} == {"/stages", "/breaches", "/heatmap"}
    page.locator("#by-group a", has_text="2026.11").first.click()
    settle(page)
    expect(page).to_have_url(containing("segment=service.version%3D2026.11"))
    assert list(table(page, "by-group")) == ["2026.11"]


def test_a_column_groups_by_its_attribute(open_page: OpenPage) -> None:
    page = open_page("demo", "/stages?by=verdict")
    page.get_by_role("link", name="breach", exact=True).click()
    settle(page)
    expect(page).to_have_url(containing("segment=sla.verdict%3Dbreach"))
    assert list(table(page, "by-group")) == ["breach"]


def test_groups_that_are_cut_off_are_counted(open_page: OpenPage) -> None:
    page = open_page("demo", "/stages?by=ml.stage.preprocess.ms")
    text = page.locator("#groups p").first.inner_text()
    assert text.startswith("20 of ")
    assert "those with most requests" in text
    assert page.locator("#by-group tbody tr").count() == 20
    hostile = open_page("demo", "/stages?by=no.such%22';--%3Cb%3E")
    assert "No request has no.such\"';--<b>" in hostile.locator("#groups").inner_text()


def test_what_is_chosen_is_in_the_url(open_page: OpenPage) -> None:
    """By keyboard: a link, the field for any percentile, the field for an attribute; and back again."""
    page = open_page("demo", "/stages?model=LogisticRegression")
    chosen = page.locator('[aria-label="Percentile"] [aria-current]')
    expect(chosen).to_have_text("p95")
    page.get_by_role("link", name="p99", exact=True).focus()
    page.keyboard.press("Enter")
    expect(chosen).to_have_text("p99")
    settle(page)
    assert "At p99" in page.locator("#whole .sentence").inner_text()
    page.locator(".controls input[name=p]").fill("97.5")
    page.keyboard.press("Tab")
    page.keyboard.type("service")
    page.locator(".controls input[name=by]").fill("service")
    page.keyboard.press("Enter")
    expect(chosen).to_have_count(0)
    settle(page)
    expect(page).to_have_url(containing("p=97.5&by=service"))
    expect(page).to_have_url(containing("model=LogisticRegression"))
    assert "p97.5" in table(page, "shares")["total"]
    assert list(table(page, "by-group")) == ["ticket-router"]
    page.go_back()
    expect(chosen).to_have_text("p99")
    page.go_back()
    expect(chosen).to_have_text("p95")


def test_over_time_a_step_can_be_entered(open_page: OpenPage) -> None:
    """Its picture has a table; steps with too few requests show their mean, which is said."""
    page = open_page("demo", "/stages?p=99&show=share")
    assert "fewer than 200 requests: their mean is shown, faded" in page.locator("#course p").first.inner_text()
    filled = sums(page.locator(".course g"), "height")
    assert len(filled) == page.locator("#over-time tbody tr").count() > 1
    assert filled == pytest.approx([100] * len(filled), abs=1e-2)
    page.get_by_text("In numbers").click()
    page.locator("#over-time a").first.click()
    settle(page)
    expect(page).to_have_url(containing("since=20"))
    expect(page).to_have_url(containing("until=20"))


def test_with_few_requests_the_mean_is_shown(open_page: OpenPage) -> None:
    page = open_page("one", "/stages")
    text = page.locator("#whole").inner_text()
    assert "Not enough requests for p95 (40 would be enough); on average" in text
    assert "inference takes 60 % of the time" in text
    assert table(page, "shares")["inference"] == {
        "mean": "60.0 %",
        **dict.fromkeys(("p50", "p90", "p95", "p99"), "-"),
        "breaches": "of inference",
    }
    assert "No requests" in open_page("none", "/stages").locator("#whole").inner_text()


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("text", ["0", "100", "fast", "9" * 30, "-1", "<b>"])
def test_what_is_no_percentile_is_refused(site: Callable[[str], str], text: str) -> None:
    for path in ("/stages", "/stages/whole"):
        response = httpx.get(site("none") + path, params={"p": text})
        assert response.status_code == 400
        assert "is no percentile from 1 to 99.999" in response.text
        assert "<b>" not in response.text


@pytest.mark.usefixtures("services")
def test_what_makes_no_groups_is_refused(site: Callable[[str], str]) -> None:
    for path in ("/stages", "/stages/groups"):
        response = httpx.get(site("none") + path, params={"by": "stages"})
        assert (response.status_code, "makes no groups" in response.text) == (400, True)
