"""The board: what is wrong in a sentence, objectives, breaches over time with deep links, and staying fresh."""

from __future__ import annotations

import json
import random
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from playwright.sync_api import expect

from answers.made import MS, Made, messages, store
from backend.processes import until
from backend.running import post, run_up
from backend.test_alerts import FIRES, POLICY, spans
from page.conftest import settle, violations
from page.data import MANY, request

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page

    from page.conftest import OpenPage

BARS = "#board-bars .u-over"
ROUTES = ("/predict", "/embed", "/rank")


def asked(page: Page) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def values(page: Page) -> dict[str, Any]:
    """Return what the picture shows."""
    found: dict[str, Any] = json.loads(page.locator("#board-data").text_content() or "")
    return found


def test_the_sentence_names_the_worst_objective_and_its_main_cause(open_page: OpenPage) -> None:
    page = open_page("demo", "/?since=24h")
    sentence = page.locator(".status .sentence")
    expect(sentence).to_contain_text("/predict of ticket-router misses its objective “POST /predict within 50ms”")
    expect(sentence).to_contain_text("73 of 304 requests are breaches")
    expect(sentence).to_contain_text("mostly in queue because of lock_wait")
    expect(page).to_have_title("2 missed · Board · stagetrace")  # for a tab that is not looked at
    expect(page.locator(".status .facts")).to_contain_text(re.compile(r"75\s*breaches"))


def test_one_breach_is_all_of_them(open_page: OpenPage) -> None:
    page = open_page("one", "/board?since=24h")
    expect(page.locator(".status .sentence")).to_contain_text(
        re.compile(r"1 of 1 request is a breach at \d\d:\d\d:\d\d, in inference because of compute\.")
    )
    expect(page.locator(".status .sentence")).to_contain_text('/predict of <img src=x onerror="alert(1)">')


def test_a_store_without_spans_says_how_to_send_some(open_page: OpenPage) -> None:
    page = open_page("none", "/board")
    expect(page.locator(".status .sentence")).to_have_text("Nothing has been recorded yet.")
    shown = page.locator(".status pre").inner_text()
    assert re.search(r"^OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://127\.0\.0\.1:\d+/v1/traces$", shown, re.MULTILINE)
    assert "STAGETRACE=1" in shown
    assert "STAGETRACE_SLA=" in shown


def test_a_window_without_requests_leads_to_the_last_ones(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2020-01-01&until=2020-01-02")
    expect(page.locator(".status .sentence")).to_have_text("No requests in this window.")
    page.get_by_role("link", name="Show the ten minutes before it").click()
    settle(page)
    expect(page.locator(".status .sentence")).to_contain_text("misses its objective")


def test_requests_without_a_verdict_ask_for_an_objective(
    open_page: OpenPage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And with one that is met all is well: the board shows it by itself, within ten seconds of being visible."""
    folder = tmp_path_factory.mktemp("unjudged")
    before = time.time_ns() - 60_000 * MS
    store(folder / "data", [Made(number, before) for number in range(1, 6)])
    with run_up(folder) as up:
        page = open_page(up.url("query_http_port"), "/board")
        expect(page.locator(".status .sentence")).to_have_text("5 requests, none judged: no objective matches.")
        expect(page.locator(".status")).to_contain_text("STAGETRACE_SLA=")
        expect(page.locator("#objectives")).to_contain_text("No request was judged")
        page.clock.install()
        page.reload()
        settle(page)
        send(up.traces, [Made(number, before + MS, within_ms=50) for number in range(10, 14)])
        page.clock.run_for(4_000)
        expect(page.locator(".status .sentence")).to_contain_text("5 requests, none judged")
        page.clock.run_for(8_000)
        expect(page.locator(".status .sentence")).to_have_text(
            "All is well: all 4 judged requests met their objective."
        )
        page.evaluate("Object.defineProperty(document, 'hidden', { get: () => true })")
        requests: list[str] = []
        page.on("request", lambda one: requests.append(one.url))
        page.clock.run_for(60_000)
        assert requests == []  # nobody looks


def send(address: str, requests: list[Made]) -> None:
    for message in messages(requests):
        headers = {"content-type": "application/x-protobuf"}
        httpx.post(address, content=message.SerializeToString(), headers=headers).raise_for_status()


def test_objectives_have_their_numbers_and_links(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h")
    rows = page.locator("#objectives tbody tr")
    expect(rows).to_have_count(3)
    counts = [[int(text.replace(",", "")) for text in row.locator("td.n").all_inner_texts()[:2]] for row in rows.all()]
    assert sum(requests for requests, _ in counts) == 2 * MANY
    assert sum(breaches for _, breaches in counts) == MANY
    assert counts == sorted(counts, key=lambda one: -one[1])
    first = rows.first
    expect(first).to_contain_text("POST /* within 50ms, 99 % wanted")
    expect(first).not_to_contain_text("alert")  # nobody evaluates any here
    route = first.locator("td.name a").inner_text()
    for view in ("heatmap", "stages"):
        link = first.locator(f"a[href^='/{view}']").get_attribute("href") or ""
        assert parse_qs(urlsplit(link).query) == {"since": ["2h"], "service": ["shop"], "route": [route]}
    page.locator("#objectives tbody tr").first.click(position={"x": 1, "y": 1})
    for _ in range(20):  # rows of other tables come before
        page.keyboard.press("j")
        if first.get_attribute("aria-current") == "true":
            break
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/breaches\?"))
    assert asked(page) == {"since": ["2h"], "service": ["shop"], "route": [route]}


def test_budgets_and_burn_rates_are_those_of_slo(open_page: OpenPage) -> None:
    """Over each objective's own window, whatever the time shown."""
    page = open_page("many", "/board?since=5m")
    expect(page.locator("#objectives thead")).to_contain_text("in its own window, 28 days")
    wide = open_page("many", "/board?since=24h")
    for route in ROUTES:
        of_both = [
            one.locator("#objectives tr", has_text=f"{route} of shop").locator("td.budget").inner_text()
            for one in (page, wide)
        ]
        assert of_both[0] == of_both[1]
        assert re.match(r"[45]\d x spent", of_both[0])


def test_breaches_over_time_by_cause_or_stage(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h")
    shown = values(page)
    assert {one["name"] for one in shown["series"]} == {"compute", "lock_wait", "cpu_wait"}
    assert sum(sum(one["values"]) for one in shown["series"]) == sum(shown["breaches"]) == MANY
    assert sum(shown["requests"]) == 2 * MANY
    page.get_by_role("link", name="by stage").click()
    settle(page)
    assert asked(page) == {"since": ["2h"], "by": ["stage"]}
    assert [one["name"] for one in values(page)["series"]] == ["inference"]
    page.get_by_role("link", name="6h", exact=True).click()
    assert asked(page) == {"since": ["6h"], "by": ["stage"]}


def test_a_legend_entry_leads_to_its_breaches(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h&service=shop")
    page.locator(".legend").get_by_role("link", name="lock_wait").click()
    expect(page).to_have_url(re.compile(r"/breaches\?"))
    assert asked(page) == {"since": ["2h"], "service": ["shop"], "cause": ["lock_wait"]}


def test_a_cause_narrows_the_picture_and_not_the_objectives(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h&cause=compute")
    assert [one["name"] for one in values(page)["series"]] == ["compute"]
    expect(page.locator(".pictures")).to_contain_text("of compute alone")
    expect(page.locator("#objectives tbody tr")).to_have_count(3)
    assert all("compute" in one for one in page.locator("#newest .why").all_inner_texts())


def test_a_bar_tells_its_numbers_and_narrows_the_time(open_page: OpenPage) -> None:
    """By the mouse, and back by the browser's button; the link is one that anybody can open."""
    page = open_page("many", "/board?since=2h")
    shown = values(page)
    place = max(range(len(shown["breaches"])), key=lambda one: shown["breaches"][one])
    box = page.locator(BARS).bounding_box()
    assert box is not None
    x = box["width"] * (place + 0.5) / len(shown["breaches"])
    page.locator(BARS).hover(position={"x": x, "y": 50})
    expect(page.locator(".readout")).to_contain_text(f"{shown['breaches'][place]:,} breaches of")
    page.locator(BARS).click(position={"x": x, "y": 50})
    settle(page)
    narrowed = values(page)
    assert sum(narrowed["requests"]) == shown["requests"][place]
    assert sum(narrowed["breaches"]) == shown["breaches"][place]
    page.go_back()
    settle(page)
    assert asked(page) == {"since": ["2h"]}


def test_drag_narrows_the_time(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h&by=stage")
    shown = values(page)
    many = len(shown["breaches"])
    box = page.locator(BARS).bounding_box()
    assert box is not None
    first, last = many - 20, many - 11
    page.mouse.move(box["x"] + box["width"] * (first + 0.5) / many, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (last + 0.5) / many, box["y"] + 60, steps=5)
    page.mouse.up()
    page.wait_for_url(re.compile("until="))
    settle(page)
    assert asked(page)["by"] == ["stage"]
    assert sum(values(page)["breaches"]) == sum(shown["breaches"][first : last + 1])


def test_keys_go_from_bar_to_bar(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h")
    shown = values(page)
    page.locator("#board-bars").focus()
    for _ in range(10):
        page.keyboard.press("ArrowLeft")
    place = len(shown["breaches"]) - 10
    expect(page.locator(".readout")).to_contain_text(f"{shown['labels'][place]} to {shown['labels'][place + 1]}:")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("until="))
    settle(page)
    assert sum(values(page)["breaches"]) == shown["breaches"][place]


def test_the_picture_has_a_table(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h")
    page.get_by_text("As a table").click()
    shown = values(page)
    cells = [row.locator("td").all_inner_texts() for row in page.locator("details tbody tr").all()]
    assert [int(row[2].replace(",", "")) for row in cells] == [
        breaches for breaches, requests in zip(shown["breaches"], shown["requests"], strict=True) if requests
    ]
    page.locator("details tbody a").last.click()
    settle(page)
    assert sum(values(page)["requests"]) == int(cells[-1][1].replace(",", ""))


def test_asking_again_moves_nothing(open_page: OpenPage) -> None:
    """The keyboard's row, what is unfolded, the picture and the scroll position stay."""
    page = open_page("many", "/board?since=2h")
    page.get_by_text("As a table").click()
    for _ in range(3):
        page.keyboard.press("j")
    row = page.locator("[data-row][aria-current=true]")
    before = (row.inner_text(), page.evaluate("scrollY"), page.evaluate("document.activeElement.outerHTML"))
    page.evaluate("window.canvas = document.querySelector('#board-bars canvas')")
    first = page.locator("#now .took").inner_text()
    expect(page.locator("#now .took")).to_have_text(first)
    page.wait_for_timeout(2_100)  # a part is kept so long
    page.evaluate("document.body.dispatchEvent(new Event('refresh'))")
    expect(page.locator("#now .took")).not_to_have_text(first)
    settle(page)
    assert (row.inner_text(), page.evaluate("scrollY"), page.evaluate("document.activeElement.outerHTML")) == before
    expect(page.locator("#now details")).to_have_attribute("open", "")
    assert page.evaluate("window.canvas === document.querySelector('#board-bars canvas')")


def test_a_back_end_that_is_gone_is_said(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h")
    page.evaluate("() => { window.fetch = () => Promise.reject(new TypeError('gone')); console.error = () => {} }")
    page.keyboard.press("r")
    expect(page.locator("#now .not-asked")).to_contain_text("The back end did not respond at")
    expect(page.locator("#objectives tbody tr")).to_have_count(3)


def test_newest_breaches_lead_to_their_traces(open_page: OpenPage) -> None:
    page = open_page("many", "/board?since=2h")
    expect(page.locator("#newest tbody tr")).to_have_count(6)
    expect(page.locator("#newest")).to_contain_text("6 of 10,000 in this window")
    times = page.locator("#newest tbody td:first-child").all_inner_texts()
    assert times == sorted(times, reverse=True)
    link = page.locator("#newest tbody a").first.get_attribute("href") or ""
    assert re.match(r"/trace/[0-9a-f]{32}\?since=2h$", link)


@pytest.mark.thorough
def test_a_wrong_parameter_is_explained(site: Callable[[str], str]) -> None:
    response = httpx.get(f"{site('many')}/board/now?by=colour", timeout=30)
    assert response.status_code == 400
    assert "by=&#39;colour&#39; is neither cause nor stage" in response.text


def test_a_phone_shows_all_of_it(open_page: OpenPage) -> None:
    page = open_page("demo", "/board?since=24h")
    page.set_viewport_size({"width": 390, "height": 800})
    expect(page.locator("#board-bars canvas")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_is_unfolded_or_empty_is_accessible(open_page: OpenPage, scheme: str) -> None:
    page = open_page("many", "/board?since=2h&by=stage", color_scheme=scheme)
    page.get_by_text("As a table").click()
    page.set_viewport_size({"width": 390, "height": 800})
    page.locator("#fold").click()
    assert violations(page) == []
    assert violations(open_page("none", "/board", color_scheme=scheme)) == []


def test_on_a_phone_the_rows_of_tables_are_cards(open_page: OpenPage, tmp_path: Path) -> None:
    """All that a row says is on the screen, in a card without blank space; evidence is folded, and unfolds."""
    policy = tmp_path / "sla.yaml"
    policy.write_text(POLICY)
    with run_up(tmp_path, f"--sla={policy}") as up:

        def fires() -> bool:
            post(up, spans(10, "breach")).raise_for_status()
            time.sleep(0.2)
            return up.metric(FIRES) == 1

        until(fires)
        post(up, request(random.Random(1), time.time_ns(), is_late=True, service="shop").SerializeToString())
        page = open_page(up.url("query_http_port"), "/board?since=10m")
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        for table, highest in ((".alerts", 200), (".objectives", 320), ("#newest", 220)):
            rows = page.locator(f"{table} tbody tr")
            expect(rows.first).to_be_visible()
            for row in rows.all():
                box = row.bounding_box()
                assert box is not None
                assert box["height"] <= highest, (table, box)
                for cell in (one.bounding_box() for one in row.locator("td").all()):
                    assert cell is not None
                    assert 0 <= cell["x"] < cell["x"] + cell["width"] <= 390
        expect(page.locator(".alerts")).to_contain_text("shop: 100% of the requests in 20s missed predict")
        newest = page.locator("#newest tr", has_text="inference").first
        expect(newest.get_by_text("inference took")).to_be_hidden()
        newest.get_by_text("evidence").click()
        expect(newest.get_by_text("inference took")).to_be_visible()
        assert violations(page) == []
        page.close()  # it would ask again
