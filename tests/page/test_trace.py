"""The view of one trace, in a browser."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest
from playwright.sync_api import expect

from backend.running import COMMAND, run_up
from page import traces
from page.conftest import containing, settle, violations
from stagetrace.page.base import Site
from stagetrace.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Locator, Page

    from page.conftest import OpenPage

ENTRY = "0000000000000001-server"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a back end that holds `traces`, beside a Jaeger UI."""
    folder = tmp_path_factory.mktemp("traces")
    with LocalStore.open(folder / "data") as store:
        for message in traces.all_of_them():
            assert not store.append(message.SerializeToString()).rejected
    with run_up(folder, "--jaeger-ui", "http://jaeger.test/ui/") as up:
        yield up.url("query_http_port")


@pytest.fixture
def opened(open_page: OpenPage, address: str) -> Callable[..., Page]:
    """Give a function that opens a trace."""

    def open_it(trace: str, query: str = "", **emulated: Any) -> Page:
        page = open_page(address, f"/trace/{trace}{query}", **emulated)
        expect(page.locator("#shown")).to_have_text(re.compile("spans"))
        return page

    return open_it


def row(page: Page, name: str) -> Locator:
    return page.locator(".row").filter(has=page.locator(".label", has_text=re.compile(f"^{re.escape(name)}$")))


def test_a_breach_has_its_verdict_evidence_and_spans(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO)
    card = page.locator(".card.breach")
    expect(card).to_contain_text(
        "BREACH front POST /search: took 100.00 ms, 50 ms allowed, over by 50.00 ms (critical)"
    )
    expect(card).to_contain_text("it waited for ranker")
    expect(card.locator(".blame code")).to_have_text("app.py:41 in search")
    line = card.get_by_role("link", name="breaches at this line")
    assert "service=front&code=app.py%3A41+in+search" in (line.get_attribute("href") or "")
    expect(card.locator("tr.cause")).to_contain_text("downstream60.00 ms")
    assert page.locator(".card.verdict").inner_text().startswith("GOOD ranker POST /rank")
    expect(page.locator(".trace-facts")).to_contain_text("6 spans of front, ranker")
    names = page.locator(".row").locator(".label").all_inner_texts()
    assert names == ["POST /search", "preprocess", "inference", "POST", "POST /rank", "inference"]
    expect(row(page, "POST")).to_contain_text("60.00 ms60.0 %")
    expect(row(page, "POST").locator(".mark")).to_have_text("error")
    assert row(page, "POST /rank").get_attribute("aria-level") == "4"


def test_a_card_and_its_spans_light_each_other(opened: Callable[..., Page]) -> None:
    """The blamed stage and the calls to the peer that it waited for; by the pointer and by the keyboard."""
    page = opened(traces.TWO)
    page.locator(".card.breach").hover()
    lit = page.locator(".row.lit .label")
    expect(lit).to_have_text(["inference", "POST"])
    page.locator("h1").hover()
    expect(lit).to_have_count(0)
    page.locator(".card.breach").focus()
    expect(lit).to_have_text(["inference", "POST"])
    row(page, "POST").hover()
    expect(page.locator(".card.breach.lit")).to_have_count(1)
    row(page, "preprocess").hover()
    expect(page.locator(".card.breach.lit")).to_have_count(0)


def test_stacks_stand_on_a_card_the_most_frequent_first(opened: Callable[..., Page]) -> None:
    """Of the request before those of what was in its way; each with its place, samples, stage and whole stack."""
    page = opened(traces.TWO)
    card = page.locator(".card.stood")
    assert card.locator("h3").all_inner_texts() == ["The request", "A thread that computed meanwhile"]
    texts = [list(filter(None, one.inner_text().split("\n"))) for one in card.locator("li").all()]
    assert [text[0] for text in texts] == [
        "app.py:41 in search 7 of 8 samples",
        "app.py:30 in read 1 of 8 samples",
        "worker.py:9 in <lambda> 2 of 2 samples",
    ]
    assert "preprocess, first 12.00 ms after the start; before it, the GIL was held for 242.00 ms" in texts[1][1]
    assert texts[0][-1] == "Stack, 2 frames"
    expect(card).to_contain_text("3 more stacks were sampled, and not recorded")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    card.locator("summary").first.click()
    card.get_by_role("button", name="Copy the stack").first.click()
    expect(card.get_by_role("button", name="Copied")).to_have_count(1)
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == '  File "app.py", line 41, in search\n  File "httpx/_client.py", line 914, in send'
    assert page.locator(".row.open").count() == 0


def test_a_stack_lights_its_stage_and_its_mark(opened: Callable[..., Page]) -> None:
    """By the pointer and by the keyboard; and a mark leads to its stack."""
    page = opened(traces.TWO)
    stacks, marks = page.locator(".card.stood li"), page.locator(".row .stall")
    assert [mark.get_attribute("aria-label") for mark in marks.all()] == [
        "the request at app.py:41 in search, 7 of 8 samples, first 60.00 ms after the start",
        "the request at app.py:30 in read, 1 of 8 samples, first 12.00 ms after the start",
        "a thread that computed meanwhile at worker.py:9 in <lambda>, 2 of 2 samples, first 60.00 ms after the start",
    ]
    bars = page.locator(".row .bars").first.bounding_box()
    assert bars is not None
    boxes = [one for one in (mark.bounding_box() for mark in marks.all()) if one is not None]
    middles = [(box["x"] + box["width"] / 2 - bars["x"]) / bars["width"] for box in boxes]
    assert middles == pytest.approx([0.6, 0.12, 0.6], abs=0.01)
    stacks.nth(1).hover()
    expect(page.locator(".row.lit .label")).to_have_text("preprocess")
    expect(page.locator(".stall.lit")).to_have_attribute("aria-label", re.compile(re.escape("app.py:30")))
    page.locator("h1").hover()
    expect(page.locator(".lit")).to_have_count(0)
    page.locator(".row").first.focus()
    page.keyboard.press("Tab")
    expect(page.locator(".card.stood li.lit code")).to_have_text("app.py:41 in search")
    page.keyboard.press("Enter")
    expect(stacks.first).to_be_focused()
    expect(stacks.first.locator("pre")).to_be_visible()
    expect(page.locator(".row.lit .label")).to_have_text("inference")
    expect(page.locator("#span-panel")).to_be_hidden()
    page.keyboard.press("+")
    expect(page.locator(".row .stall:visible")).to_have_count(2)  # what is beyond the zoom is not there


def test_unseen_time_is_hatched_and_written(opened: Callable[..., Page]) -> None:
    """Of 80 ms a call covers 60; of the rest 10 were computed, and of 10 the thread waited 6 for a CPU."""
    page = opened(traces.TWO)
    inference = page.locator(".row").nth(2)
    words = inference.locator(".hidden-text").inner_text()
    assert "6.00 ms waiting for a CPU, unseen by spans" in words
    assert "4.00 ms blocked by a lock, the GIL, a device, or input or output, unseen by spans" in words
    widths = [float(one.get_attribute("width") or 0) for one in inference.locator("rect.unseen").all()]
    whole = float(inference.locator("rect.body").get_attribute("width") or 0)
    assert sum(widths) / whole == pytest.approx(10 / 80, rel=0.02)
    assert row(page, "preprocess").locator("rect.unseen").count() == 0


def test_a_clock_that_is_late_is_corrected_and_noted(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO)
    expect(page.locator(".note")).to_have_text(re.compile("moved by up to -?1000.00 ms: a clock was skewed"))
    expect(row(page, "POST /rank")).to_contain_text("from 35.00 ms")


def test_toggles_are_in_the_url(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO)
    page.locator("#flame").click()
    expect(page).to_have_url(containing("view=flame"))
    expect(page.locator("#waterfall")).to_be_hidden()
    expect(page.locator("#flames svg")).to_have_attribute("aria-label", re.compile("^Flame graph of 6 spans"))
    page.keyboard.press("p")
    expect(page.locator("#critical")).to_have_attribute("aria-pressed", "true")
    expect(page).to_have_url(containing("critical=1"))
    page.go_back()
    expect(page.locator("#critical")).to_have_attribute("aria-pressed", "false")
    page.go_back()
    expect(page.locator("#flames")).to_be_hidden()
    page.reload()
    settle(page)
    expect(page.locator("#waterfall")).to_be_visible()


def test_a_link_to_a_span_opens_it(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO, "?span=0000000000000004")
    panel = page.locator("#span-panel")
    expect(panel).to_contain_text("peer.service")
    expect(panel).to_contain_text("exception after 20.00 ms")
    expect(panel.locator("pre", has_text="Traceback")).to_have_text("Traceback:\n  line")
    expect(page.locator(".row.open .label")).to_have_text("POST")


def test_a_span_has_all_of_its_values(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO, f"?span={ENTRY}")
    panel = page.locator("#span-panel")
    long = panel.locator("tr", has=page.get_by_role("rowheader", name="long"))
    assert f"{len(traces.LONG):,} characters" in long.locator("details").inner_text()
    long.locator("summary").click()
    assert len(long.locator("pre").inner_text()) > len(traces.LONG)  # what does not show is escaped
    page.goto(page.url.replace(ENTRY, "0000000000000005"))
    link = page.locator("#span-panel a", has_text=traces.BATCH)
    expect(link).to_have_attribute("href", f"/trace/{traces.BATCH}?span={b'12345678'.hex()}")


def test_keys_move_open_and_close(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO)
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".row:focus .label")).to_have_text("inference")
    page.keyboard.press("Enter")
    expect(page.locator("#span-panel h2")).to_have_text("inference")
    expect(page).to_have_url(containing("span=0000000000000003"))
    page.keyboard.press("k")
    expect(page.locator("#span-panel h2")).to_have_text("preprocess")
    page.keyboard.press("Escape")
    expect(page.locator("#span-panel")).to_be_hidden()
    expect(page).not_to_have_url(containing("span="))
    page.keyboard.press("k")
    page.keyboard.press("x")
    expect(page.locator("#shown")).to_have_text("1 of 6 spans, the others are folded")


def test_time_is_zoomed_and_moved_by_keys(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO)
    page.keyboard.press("+")
    expect(page).to_have_url(containing("zoom=25-75"))
    page.keyboard.press("d")
    expect(page).to_have_url(containing("zoom=37.5-87.5"))
    page.keyboard.press("a")
    page.keyboard.press("s")
    expect(page).not_to_have_url(containing("zoom"))
    page.keyboard.press("w")
    page.keyboard.press("0")
    expect(page).not_to_have_url(containing("zoom"))


def test_a_range_is_dragged_and_summed_by_stage(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO)
    box = page.locator("#axis").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 40)
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + 40)
    page.mouse.up()
    expect(page).to_have_url(containing("range="))
    expect(page).not_to_have_url(containing("span="))
    page.goto(re.sub("range=[^&]*", "range=10-40", page.url))
    cells = page.locator("#sums tbody tr").locator("th, td")
    expect(cells).to_have_count(9)
    assert [cell.strip() for cell in cells.all_inner_texts()] == [
        *("front inference", "20.00 ms", "66.7 %"),
        *("front preprocess", "10.00 ms", "33.3 %"),
        *("ranker inference", "5.00 ms", "16.7 %"),
    ]
    page.locator("#range-to").fill("20")
    page.locator("#range-to").press("Tab")
    expect(page.locator("#sums caption")).to_contain_text("10.00 ms to 20.00 ms")
    page.get_by_role("button", name="Clear the range").click()
    expect(page.locator("#sums")).to_be_hidden()


def test_percentiles_are_those_of_sql(opened: Callable[..., Page]) -> None:
    """Of forty requests of a kind 36 took less than this one: its queue as well; inference took the same in all."""
    page = opened(f"{37:032x}")
    expect(page.locator("#ranks")).to_contain_text("Longer than 90.0 % of 40 requests of kind POST /predict")
    chips = page.locator(".row").locator(".chip").all_inner_texts()
    assert chips == ["p90", "p90", "p0"]
    median = page.locator(".ranks tr", has_text="queue").locator("td").nth(1).inner_text()
    assert float(median.split()[0]) == pytest.approx(20.5, rel=0.02)


def test_a_percentile_of_few_is_hidden(opened: Callable[..., Page]) -> None:
    page = opened(f"{1003:032x}")
    expect(page.locator("#ranks .few")).to_contain_text("19 requests of kind POST /few")
    expect(page.locator("#ranks .few")).to_contain_text("a percentile needs 20")
    assert page.locator(".row").locator(".chip").all_inner_texts() == [""]


def test_many_spans_are_drawn_as_far_as_they_are_in_sight(opened: Callable[..., Page]) -> None:
    page = opened(traces.WIDE)
    expect(page.locator("#shown")).to_have_text("10,000 of 10,000 spans")
    assert page.locator(".row").count() < 100
    assert page.get_by_role("treegrid").get_attribute("aria-rowcount") == "10000"
    page.keyboard.press("End")
    expect(page.locator(".row:focus .label")).to_have_text(f"call {traces.MANY}")
    page.keyboard.press("f")
    expect(page.locator("#shown")).to_have_text(re.compile(r"^[\d,]+ of 10,000 spans drawn: the others are narrower"))


def test_circles_and_missing_parents_survive(opened: Callable[..., Page]) -> None:
    page = opened(traces.BROKEN)
    assert set(page.locator(".row").locator(".label").all_inner_texts()) == {"chicken", "egg", "orphan"}
    assert sorted(page.locator(".row .mark").all_inner_texts()) == ["circle", "parent missing"]
    notes = page.locator(".note").all_inner_texts()
    assert "1 span has a parent that is not in this store." in notes
    assert "The parents of 2 spans form a circle: they are on no path." in notes
    expect(page.locator("#body")).to_contain_text("No entry span is stored of this trace")
    assert violations(page) == []


def test_json_is_what_the_command_prints(opened: Callable[..., Page], address: str) -> None:
    page = opened(traces.TWO)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#copy-json").click()
    expect(page.locator("#copied")).to_have_text("Copied")
    copied = json.loads(page.evaluate("navigator.clipboard.readText()"))
    command = [*COMMAND[:-1], *page.locator("#command").inner_text().split()[1:], "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert copied == json.loads(printed.stdout)
    response = httpx.get(f"{address}/trace/{traces.TWO}/json", timeout=30)
    assert response.headers["content-type"] == "application/json"
    assert f"trace-{traces.TWO}.json" in response.headers["content-disposition"]


def test_links_lead_to_jaeger_and_to_other_views(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO)
    expect(page.locator("#jaeger")).to_have_attribute("href", f"http://jaeger.test/ui/trace/{traces.TWO}")
    href = page.get_by_role("link", name="Breaches around it").get_attribute("href") or ""
    assert "service=front" in href
    heat = page.get_by_role("link", name="Its place in the heat map").get_attribute("href") or ""
    assert "least_ms=80&most_ms=125" in heat
    assert "route=%2Fsearch" in href


def test_a_url_of_jaeger_may_be_a_template() -> None:
    def site(jaeger_ui: str) -> Site:
        return Site("store", lambda: cast("Any", None), cast("Any", None), jaeger_ui=jaeger_ui)

    assert site("").jaeger("ab12") is None
    assert site("https://jaeger/ui").jaeger("ab12") == "https://jaeger/ui/trace/ab12"
    assert (
        site("https://grafana/explore?trace={trace_id}&x=1").jaeger("ab12") == "https://grafana/explore?trace=ab12&x=1"
    )


def test_an_id_may_be_cut_or_be_the_latest(opened: Callable[..., Page], open_page: OpenPage, address: str) -> None:
    opened("a1a1", "?view=flame").wait_for_url(f"**/trace/{traces.TWO}?view=flame")
    opened("latest", "?service=kind").wait_for_url(re.compile(f"/trace/{traces.KIND:032x}"))
    several = open_page(address, "/trace/0000")
    assert violations(several) == []
    expect(several.locator("#find")).to_contain_text("10 traces, and maybe more")
    several.keyboard.press("j")
    several.keyboard.press("Enter")
    several.wait_for_url(re.compile(r"/trace/0{20}"))


@pytest.mark.usefixtures("services")
def test_what_is_not_there_is_an_error(address: str) -> None:
    for path, status, text in (
        (f"/trace/{'f' * 32}/body", 404, "there is no trace ffff"),
        ("/trace/ffff/find", 404, "no trace whose id begins with ffff"),
        (f"/trace/{traces.TWO}/span?span=77", 404, "has no span &#39;77&#39;"),
        ("/trace/<b>", 400, "neither latest nor a trace id"),
    ):
        response = httpx.get(address + path, timeout=30)
        assert response.status_code == status, path
        assert text in response.text
        assert "<b>" not in response.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(opened: Callable[..., Page], scheme: str) -> None:
    page = opened(traces.TWO, "?range=1-5", color_scheme=scheme)
    page.locator(".card.stood summary").first.click()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.locator("#span-panel h2")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("f")
    assert violations(page) == []


def test_it_fits_a_phone(opened: Callable[..., Page]) -> None:
    page = opened(traces.TWO)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_breach_of_the_demo_and_a_hostile_one(open_page: OpenPage) -> None:
    hostile = open_page("one", "/trace/latest")
    hostile.wait_for_url(re.compile("/trace/[0-9a-f]{32}"))
    expect(hostile.locator(".row .service")).to_have_text('<img src=x onerror="alert(1)">')
    demo = open_page("demo", "/trace/4550573dd639b8f1382cebb16c60dcd9")
    expect(demo.locator(".card.breach")).to_contain_text("cause cpu_wait")
    expect(demo.locator(".row .mark.culprit")).to_have_count(1)
    expect(demo.locator(".card .usual")).to_contain_text("more than usual: inference 32.55 ms, usually 7.0")
    expect(demo.locator(".row .chip.high")).to_have_text("p96")
    assert demo.locator("rect.unseen").count() > 0
