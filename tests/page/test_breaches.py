"""The list of breaches: every row once, facets that count right, filters and orders in the URL, keys, export."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect

from backend.running import run_up
from page.conftest import containing, settle, violations
from page.data import CODES, MANY
from stagetrace.output.units import UTC, shown
from store.feed import export
from store.oracle import meant
from store.spans import ALL, WHOLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page

    from page.conftest import OpenPage

NARROW = "route=/rank&cause=compute"
FEW = f"{NARROW}&segment=region=eu"  # some pages


@pytest.fixture(scope="module")
def breaches(site: Callable[[str], str]) -> list[dict[str, Any]]:
    """Give all breaches of `many`, as the page exports them."""
    listed = exported(site("many"))
    assert len({one["trace_id"] for one in listed}) == len(listed) == MANY
    return listed


def exported(address: str, query: str = "") -> list[dict[str, Any]]:
    answer = httpx.get(f"{address}/breaches/breaches.json?{query}", timeout=60).raise_for_status()
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["content-disposition"] == 'attachment; filename="breaches.json"'
    found = answer.json()
    assert found["complete"]
    listed: list[dict[str, Any]] = found["breaches"]
    return listed


def traces(page: Page) -> list[str]:
    """Return the traces that the rows link to."""
    links: list[str] = page.eval_on_selector_all(
        "#list [data-row] a[href*='/trace/']", "all => all.map(one => one.pathname)"
    )
    return [link.rpartition("/")[2] for link in links]


def scroll_to_the_end(page: Page, count: int) -> None:
    last = page.locator("#list > *").last
    while page.locator("#list .more").count():
        last.scroll_into_view_if_needed()
        page.wait_for_timeout(20)
    expect(page.locator("#list [data-row]")).to_have_count(count)


@pytest.mark.parametrize("query", [FEW, pytest.param("", marks=pytest.mark.heavy)])
def test_scrolling_shows_every_breach_once(open_page: OpenPage, site: Callable[[str], str], query: str) -> None:
    page = open_page("many", f"/breaches?{query}")
    wanted = exported(site("many"), query)
    assert len(wanted) > 400
    expect(page.locator("#shown")).to_have_text(f"1 to 100 of {len(wanted):,} breaches")
    scroll_to_the_end(page, len(wanted))
    expect(page.locator("#shown")).to_have_text(f"1 to {len(wanted):,} of {len(wanted):,} breaches")
    assert traces(page) == [one["trace_id"] for one in wanted]


@pytest.mark.thorough
@pytest.mark.parametrize(("sort", "key"), [("overrun", "overrun_ms"), ("duration", "duration_ms")])
def test_each_order_has_every_breach_once(site: Callable[[str], str], sort: str, key: str) -> None:
    """Without a browser: by the links from page to page."""
    listed: list[str] = []
    url: str | None = f"/breaches/list?{FEW}&sort={sort}"
    while url is not None:
        text = httpx.get(site("many") + url, timeout=60).raise_for_status().text
        listed += re.findall(r'href="/trace/(\w+)', text)
        more = re.search(r'class="part more" hx-get="([^"]+)"', text)
        url = more and more[1].replace("&amp;", "&")
    wanted = exported(site("many"), FEW)
    assert listed == [one["trace_id"] for one in sorted(wanted, key=lambda one: -one[key])]


def counts(page: Page, facet: str) -> dict[str, str]:
    values = page.locator(f"#facets section[aria-label='{facet}'] li")
    return {one.locator("a, .soft").inner_text(): one.locator(".count").inner_text() for one in values.all()}


def test_facets_count_within_the_filters_and_in_all(open_page: OpenPage, breaches: list[dict[str, Any]]) -> None:
    """A facet's own filter does not count for its other values: these are what a click would add."""
    page = open_page("many", f"/breaches?{NARROW}")
    for facet, matching in (
        ("route", [one for one in breaches if one["cause"] == "compute"]),
        ("cause", [one for one in breaches if one["route"] == "/rank"]),
        ("severity", [one for one in breaches if (one["route"], one["cause"]) == ("/rank", "compute")]),
    ):
        of, all_of = (Counter(one[facet] for one in some) for some in (matching, breaches))
        assert counts(page, facet) == {value: f"{of[value]:,} of {all_of[value]:,}" for value in all_of}
    assert page.locator("#facets").inner_text().count("of all in the window.") == 1
    assert counts(page, "model version") == {"7": f"{len(matching):,} of {len(breaches):,}"}


def test_filters_combine_in_the_url_and_can_be_taken_back(open_page: OpenPage, breaches: list[dict[str, Any]]) -> None:
    page = open_page("many", "/breaches?sort=overrun")

    def click(name: str, within: str = "#facets") -> None:
        page.locator(within).get_by_role("link", name=name).click()
        settle(page)

    def listed() -> str:
        return page.locator("#shown").inner_text()

    def number(*causes: str) -> str:
        return f"{sum(one['cause'] in causes for one in breaches):,}"

    click("lock_wait")
    click("cpu_wait")
    click("major")
    expect(page).to_have_url(containing("?cause=lock_wait&cause=cpu_wait&sort=overrun&segment=sla.severity%3Dmajor"))
    assert listed().endswith(f" of {number('lock_wait', 'cpu_wait')} breaches")
    click("remove the filter cause lock_wait", ".chips")
    assert listed().endswith(f" of {number('cpu_wait')} breaches")
    assert [text[:-2] for text in page.locator(".chips li").all_inner_texts()] == ["cause cpu_wait", "severity major"]
    page.go_back()
    settle(page)
    assert listed().endswith(f" of {number('lock_wait', 'cpu_wait')} breaches")
    click("slowest", ".orders")
    expect(page).to_have_url(containing("sort=duration"))
    took = [float(text.split()[-2]) for text in page.locator("#list li .n:nth-of-type(3)").all_inner_texts()]
    assert took == sorted(took, reverse=True)


def test_a_line_of_code_is_shown_counted_and_filtered_by(open_page: OpenPage, breaches: list[dict[str, Any]]) -> None:
    """Of breaches without one, nothing is shown; a URL may name all lines of a file."""
    page = open_page("many", "/breaches?cause=lock_wait")
    all_of = Counter(one["code"] or "(none)" for one in breaches)
    of = Counter(one["code"] for one in breaches if one["cause"] == "lock_wait")
    assert len(of) == len(CODES["lock_wait"])
    assert counts(page, "line of code") == {
        value: f"{of[value]:,}" if value in of else f"0 of {count:,}" for value, count in all_of.items()
    }
    line = CODES["lock_wait"][0]
    page.locator("#facets").get_by_role("link", name=line).click()
    settle(page)
    expect(page).to_have_url(containing("code=app.py%3A41+in+predict"))
    expect(page.locator("#shown")).to_have_text(f"1 to 100 of {of[line]:,} breaches")
    assert set(page.locator("#list [data-row] code").all_inner_texts()) == {line}
    assert [text[:-2] for text in page.locator(".chips li").all_inner_texts()] == [
        "cause lock_wait",
        f"line of code {line}",
    ]
    page.locator("#facets").get_by_role("link", name=CODES["lock_wait"][1]).click()
    settle(page)
    expect(page.locator("#shown")).to_have_text(f"1 to 100 of {of.total():,} breaches")
    page.goto(page.url.partition("?")[0] + "?code=app.py")
    settle(page)
    expect(page.locator("#shown")).to_have_text(f"1 to 100 of {of.total():,} breaches")
    assert counts(page, "cause")["compute"].startswith("0 of ")
    page.goto(page.url.partition("?")[0] + "?cause=cpu_wait")
    settle(page)
    expect(page.locator("#list [data-row]")).to_have_count(100)
    expect(page.locator("#list [data-row] code")).to_have_count(0)


def test_breaches_that_are_alike_are_groups(open_page: OpenPage, breaches: list[dict[str, Any]]) -> None:
    """Each with its number, first and last, and a link to its list; those without a line say so."""
    page = open_page("many", "/breaches?sort=overrun&cause=lock_wait&cause=cpu_wait")
    page.get_by_role("link", name="groups").click()
    settle(page)
    chosen = [one for one in breaches if one["cause"] != "compute"]
    of = Counter((one["route"], one["cause"], one["code"]) for one in chosen)
    expect(page.locator("#shown")).to_contain_text(f"{len(of)} of {len(of)} groups of breaches")
    assert violations(page) == []
    rows = [[cell.inner_text().strip() for cell in row.locator("td").all()] for row in page.locator("[data-row]").all()]
    found = [(row[1], row[2].split()[-1], None if row[3] == "(none)" else row[3]) for row in rows]
    assert dict(zip(found, (int(row[0].replace(",", "")) for row in rows), strict=True)) == of
    assert [row[0] for row in rows] == [f"{number:,}" for number in sorted(of.values(), reverse=True)]
    at = next(at for at, (_, _, code) in enumerate(found) if code is not None)
    group = [one for one in chosen if (one["route"], one["cause"], one["code"]) == found[at]]
    starts = [one["start_unix_nano"] for one in group]
    assert rows[at][4:6] == [shown(ns, UTC, 0) for ns in (min(starts), max(starts))]
    worst = max(group, key=lambda one: one["overrun_ms"])["trace_id"]
    assert worst in (page.locator("[data-row]").nth(at).get_by_role("link").last.get_attribute("href") or "")
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for _ in range(at + 1):
        page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("#shown")).to_have_text(f"1 to 100 of {len(group):,} breaches")
    expect(page).not_to_have_url(containing("groups"))
    expect(page).to_have_url(containing("sort=overrun"))


def test_groups_are_those_of_the_command(open_page: OpenPage) -> None:
    page = open_page("many", f"/breaches?groups=1&{NARROW}")
    page.get_by_text("The same as JSON").click()
    words = shlex.split(page.locator("#command").inner_text())
    done = subprocess.run([sys.executable, "-m", "stagetrace.cli.main", *words[1:]], capture_output=True, check=True)
    printed = json.loads(done.stdout)["groups"]
    assert page.locator("[data-row] td:first-child").all_inner_texts() == [f"{one['breaches']:,}" for one in printed]
    assert page.locator("[data-row] td:nth-child(4)").all_inner_texts() == [one["code"] for one in printed]


def test_the_keyboard_goes_through_all_rows(open_page: OpenPage) -> None:
    page = open_page("many", f"/breaches?{FEW}")
    for _ in range(2):  # faster than pages come: each waits at the end of what is there
        before = page.locator("#list [data-row]").count()
        for _ in range(before):
            page.keyboard.press("j")
        expect(page.locator(f"#list [data-row] >> nth={before}")).to_be_attached()
    current = page.locator("#list [data-row][aria-current=true] a")
    assert (
        int(page.evaluate("[...document.querySelectorAll('#list [data-row]')].findIndex(one => one.ariaCurrent)")) > 99
    )
    page.keyboard.press("k")
    target = current.get_attribute("href")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**{target}")


def test_all_requests_are_listed_on_demand(open_page: OpenPage) -> None:
    page = open_page("many", "/breaches")
    page.get_by_role("link", name="all requests").click()
    settle(page)
    expect(page.locator("#shown")).to_have_text(f"1 to 100 of {2 * MANY:,} stored requests")
    assert page.locator("#list [data-row]:not(.is-breach)").count() == 50
    assert "stagetrace requests" in str(page.locator("#command").text_content())


def test_the_command_gives_what_the_page_exports(site: Callable[[str], str], open_page: OpenPage) -> None:
    """Of a service with a hostile name, too."""
    page = open_page("one", "/breaches")
    page.locator("#facets li a").first.click()
    settle(page)
    page.get_by_text("The same as JSON").click()
    words = shlex.split(page.locator("#command").inner_text())
    assert words[0] == "stagetrace"
    done = subprocess.run([sys.executable, "-m", "stagetrace.cli.main", *words[1:]], capture_output=True, check=True)
    printed = json.loads(done.stdout)
    url = page.get_by_role("link", name="breaches.json").get_attribute("href")
    assert printed == httpx.get(f"{site('one')}{url}").json()
    assert [one["service"] for one in printed["breaches"]] == ['<img src=x onerror="alert(1)">']


def test_the_owner_of_the_time_is_named(open_page: OpenPage, services: Any, tmp_path: Path) -> None:
    """Of a breach that waited for another service, as `stagetrace breaches` names it."""
    del services
    with run_up(tmp_path) as up:
        export(up.as_jaeger.otlp_grpc, ALL)
        page = open_page(up.url("query_http_port"), "/breaches?since=2000-01-01&service=contract-0&cause=downstream")
        assert page.locator("#list .owner").all_inner_texts() == ["handler > contract-back queue"]


def test_the_breaches_of_an_objective_are_those_that_missed_it(
    open_page: OpenPage, services: Any, tmp_path: Path
) -> None:
    """Whichever one their spans show; to this list alerts link."""
    del services
    with run_up(tmp_path) as up:
        export(up.as_jaeger.otlp_grpc, ALL)
        address, ever = up.url("query_http_port"), "since=2000-01-01"
        page = open_page(address, f"/breaches?{ever}&judged-by=predict")
        missed = meant(replace(WHOLE, judged_by="predict", breached=True))
        assert sorted(traces(page)) == sorted(one.trace_id for one in missed) != []
        assert [text[:-2] for text in page.locator(".chips li").all_inner_texts()] == ["missed predict"]
        assert "--judged-by predict" in str(page.locator("#command").text_content())
        assert len(exported(address, f"{ever}&judged-by=predict")) == len(missed)
        page.get_by_role("link", name="Clear").click()
        settle(page)
        assert "judged-by" not in page.url
        page.goto(f"{address}/breaches?{ever}&judged-by=predict-p99")  # which judged as many, and was never missed
        settle(page)
        assert traces(page) == []
        page.goto(f"{address}/answers/segments?{ever}&judged-by=predict")
        settle(page)
        expect(page.locator("#main")).to_contain_text("The chosen objective does not narrow this answer.")


@pytest.mark.parametrize("query", ["sort=size", "after=1~2", "at=-1"])
@pytest.mark.usefixtures("services")
def test_a_url_that_cannot_be_is_refused(site: Callable[[str], str], query: str) -> None:
    answer = httpx.get(f"{site('one')}/breaches/list?{query}")
    assert answer.status_code == 400
    assert query.partition("=")[0] in answer.text


def test_evidence_is_folded_behind_stage_cause_and_line(open_page: OpenPage) -> None:
    """Unfolding it does not open the trace, as the rest of the row does."""
    page = open_page("many", f"/breaches?since=2h&{FEW}")
    row = page.locator("#list [data-row]").first
    expect(row).to_contain_text("compute")
    expect(row.get_by_text("inference took")).to_be_hidden()
    row.get_by_text("evidence").click()
    expect(row.get_by_text("inference took")).to_be_visible()
    expect(page).to_have_url(containing("/breaches?since=2h"))
