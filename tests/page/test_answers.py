"""The ten answers: each has a card and a page, its command and its JSON; what a URL may ask for, and what not."""

from __future__ import annotations

import html
import json
import re
import shlex
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import httpx
import pytest
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.testclient import TestClient

from answers.test_every_answer import close
from cli.running import cli
from page.conftest import settle, violations
from page.data import fill
from stagetrace.backend.counters import Counters
from stagetrace.backend.options import Options
from stagetrace.cli.ask import answer_of, options_of
from stagetrace.cli.registry import ANSWERS
from stagetrace.page.app import Page
from stagetrace.page.base import Site
from stagetrace.page.login import Login
from stagetrace.page.queries import KEPT_S
from stagetrace.page.views import answers
from stagetrace.page.views.answers import QUESTIONS
from stagetrace.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from playwright.sync_api import Browser

    from page.conftest import OpenPage
    from stagetrace.output.answer import Answer

ALL = (*ANSWERS, "bench", "what-if")
OPTIONS: dict[str, dict[str, str | list[str]]] = {
    "segments": {"by": "http.route", "top": "3"},
    "compare": {"a": "http.route=/predict", "b": "http.route=/explain", "quantiles": "p50", "once": "1"},
    "cost": {"price": ["per_hour=1.20", "currency=EUR"], "by": ["model", "http.route"]},
    "capacity": {"rate": "500", "objective": "p99:50ms"},
    "bottleneck": {"by": "http.route"},
    "report": {"credits": "99.9:10%,99:25%"},
    "drift": {"least": "20%"},
    "causes": {"against": "2020-01-01T00:00:00Z..2100-01-01T00:00:00Z"},  # the same whenever it is asked
}
# Each would read a file, open a store or a URL, run on, or select otherwise than the page shows.
REFUSED = {
    "cost": {"prices": "/etc/passwd"},
    "compare": {"a": "store=/etc", "b": "version=2"},
    "drift": {"webhook": "http://localhost/"},
    "capacity": {"format": "keda"},
    "report": {"bench": "/etc/passwd"},
    "bench": {"url": "http://localhost/"},
    "slo": {"store": "/etc"},
    "segments": {"limit": "3"},
    "bottleneck": {"trace": "latest"},
    "causes": {"--against": "1h..10m"},
    "what-if": {"store": "/etc"},
}
FILES = re.compile("FILE|URL|PATH|DIR|VERB")


def test_each_answer_is_here_with_the_question_of_the_docs() -> None:
    assert set(QUESTIONS) == set(ALL) == set(answers.ALLOWED)
    docs = (Path(__file__).parents[2] / "docs/answers/README.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| \[`([\w-]+)`\]", docs, re.MULTILINE)
    assert {verb: (reason, question) for reason, question, verb in rows} == QUESTIONS


@pytest.mark.parametrize("verb", ALL)
def test_no_option_that_is_allowed_names_a_file_or_runs_on(verb: str) -> None:
    described = {one.flag: one for one in options_of(verb)}
    allowed = [described[flag] for flag in answers.ALLOWED[verb]]
    assert not [one.flag for one in allowed if FILES.search(one.metavar or "")]
    assert not {one.flag for one in allowed} & {"--store", "--watch", "--webhook", "--format", "--all", "--with"}


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("verb", ALL)
def test_what_is_not_allowed_is_refused(site: Callable[[str], str], verb: str) -> None:
    for part in ("", "/card", "/whole", "/json"):
        response = httpx.get(f"{site('demo')}/answers/{verb}{part}?{urlencode(REFUSED[verb])}")
        assert response.status_code == 400, part
        assert "on this page" in response.text or "which a URL may not" in response.text


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("verb", ANSWERS)
def test_json_is_that_of_the_command_which_is_shown(site: Callable[[str], str], verb: str) -> None:
    """With options, in a window that has ended."""
    since, until = (time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - ago)) for ago in (3000, 0))
    query = urlencode({"since": since, "until": until, "tz": "Europe/Berlin", **OPTIONS.get(verb, {})}, doseq=True)
    address = f"{site('demo')}/answers/{verb}"
    shell = httpx.get(f"{address}?{query}").raise_for_status().text
    command = html.unescape(re.findall(r'<pre id="command"[^>]*>(.*?)</pre>', shell)[0])
    response = httpx.get(f"{address}/json?{query}", timeout=60).raise_for_status()
    program, *arguments = shlex.split(command)
    done = cli(*arguments, "--json")
    assert program == "stagetrace"
    assert response.headers["content-type"] == "application/json"
    assert close(response.json(), json.loads(done.stdout)), (command, done.stderr)


@pytest.mark.usefixtures("services")
def test_what_only_breaches_meet_narrows_no_answer_that_needs_good_requests(site: Callable[[str], str]) -> None:
    """And the page says so; where the verb has the option, it does narrow."""
    query = urlencode({"cause": "cpu_wait", "code": "app.py:1"})
    for verb, is_narrowed in (("slo", False), ("bottleneck", True)):
        address = f"{site('demo')}/answers/{verb}"
        shell = httpx.get(f"{address}?{query}").raise_for_status().text
        for name in ("cause", "line of code"):
            assert (f"The chosen {name} does not narrow this answer" in shell) is not is_narrowed, (verb, name)
        assert (httpx.get(f"{address}/json?{query}", timeout=60).status_code == 200) is not is_narrowed, verb


def test_cards_load_one_by_one_and_lead_to_the_whole(open_page: OpenPage) -> None:
    page = open_page("demo", "/answers?since=2h")
    cards = page.locator(".cards article")
    assert cards.count() == len(ALL)
    assert page.locator(".cards .sentence").count() == len(ALL)
    assert page.locator(".cards svg.chart").count() > len(ALL) / 2
    expect(page.locator("#card-slo .sentence")).to_have_class("sentence bad")
    first = page.locator("#card-bottleneck .sentence").text_content()
    page.get_by_role("link", name=QUESTIONS["bottleneck"].question).click()
    expect(page).to_have_url(re.compile(r"/answers/bottleneck\?since=2h$"))
    settle(page)
    assert page.locator("#whole .sentence").text_content() == first
    assert page.locator("#whole table").count() > 2
    page.go_back()
    settle(page)
    assert page.locator(".cards .sentence").count() == len(ALL)


def test_options_are_in_the_url_and_in_the_command(open_page: OpenPage) -> None:
    page = open_page("demo", "/answers/segments?since=2h")
    page.get_by_text("Options", exact=True).click()
    page.get_by_label("--by").fill("http.route")
    page.get_by_role("button", name="Ask").click()
    expect(page).to_have_url(re.compile(r"since=2h&by=http.route$"))
    settle(page)
    expect(page.locator("#command")).to_contain_text("--since=2h --by=http.route")
    expect(page.locator("#whole .sentence")).to_contain_text("http.route")
    page.locator("#filter input[name=service]").fill("ticket-router")  # the selection keeps the options
    page.get_by_role("button", name="Show").click()
    expect(page).to_have_url(re.compile("by=http.route"))


def test_sliders_ask_what_if(open_page: OpenPage) -> None:
    """One that is moved is an option of the question, and all of them can be put back."""
    page = open_page("demo", "/answers/what-if?since=2h")
    workers = page.locator("#sliders input[data-name=workers]")
    with page.expect_response(re.compile(r"/answers/what-if/whole\?since=2h&workers=3$")):
        workers.fill("3")
    expect(page.locator("#sliders output").first).to_have_text("3")
    with page.expect_response(re.compile(r"workers=3&rate=x1\.5$")):
        page.locator("#sliders input[data-name=rate]").fill("1.5")
    expect(page.locator("#whole .sentence")).to_be_visible()
    expect(page.locator("#command")).to_contain_text("--workers=3 --rate=x1.5")
    page.reload()
    settle(page)
    expect(page.locator("#sliders output").first).to_have_text("3")
    expect(page.locator("#command")).to_contain_text("--workers=3 --rate=x1.5")
    with page.expect_response(re.compile(r"/answers/what-if/whole\?since=2h$")):
        page.get_by_role("button", name="As it is").click()
    expect(page.locator("#sliders output").first).to_have_text("as it is")


@pytest.mark.usefixtures("services")
def test_the_error_of_one_card_leaves_the_others(browser: Browser, site: Callable[[str], str]) -> None:
    """Whether it has a response or none."""
    page = browser.new_page()
    page.route("**/answers/report/card**", lambda route: route.abort())
    page.route("**/answers/causes/card**", lambda route: route.fulfill(status=500, body='<p class="error">no</p>'))
    page.goto(f"{site('demo')}/answers")
    expect(page.locator("#card-bench .sentence")).to_be_visible(timeout=20_000)
    expect(page.locator("#card-causes .error")).to_be_visible()
    expect(page.locator(".cards .sentence")).to_have_count(len(ALL) - 2, timeout=30_000)
    page.close()


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("name", ["none", "one"])
def test_every_answer_is_made_of_little_data(site: Callable[[str], str], name: str) -> None:
    for verb in ALL:
        response = httpx.get(f"{site(name)}/answers/{verb}/whole", timeout=60)
        assert response.status_code == 200, verb
        assert 'class="sentence' in response.text, verb
        assert "<img" not in response.text, verb


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_an_answer_with_its_pictures_is_accessible_and_fits_a_phone(open_page: OpenPage, scheme: str) -> None:
    for path in ("bottleneck?by=http.route", "compare?once=1"):
        page = open_page("demo", f"/answers/{path}", color_scheme=scheme)
        page.set_viewport_size({"width": 390, "height": 800})
        assert violations(page) == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path
        page.close()


@pytest.mark.thorough
def test_what_takes_too_long_is_ended_and_leaves_the_reader(tmp_path: Path) -> None:
    """A query that never ends is interrupted after the limit; the next question is answered."""
    fill(tmp_path, "one")

    def ask(verb: str, reader: Any, wanted: Any, options: Any, zone: Any) -> Answer:
        if verb == "causes":
            with reader.relations(wanted) as relations:
                list(relations.select("SELECT count(*) FROM range(100000000000) a, range(1000000) b")[1])
        return answer_of(str(tmp_path), verb, reader, wanted, options, zone)

    site = Site(str(tmp_path), lambda: open_store(str(tmp_path)), ask, options=options_of, limit_s=2.0)
    with ExitStack() as stack:
        page = Page(site, Login(Options(tmp_path), 0, Counters()), stack)
        client = stack.enter_context(TestClient(Starlette(routes=page.routes)))
        late = client.get("/answers/causes/card")
        assert late.status_code == 503
        assert "more than 2 s" in late.text
        assert client.get("/answers/slo/card").status_code == 200
    assert not [one for one in threading.enumerate() if one.name == "stagetrace-page-limit"]


def test_a_slow_card_holds_no_other(open_page: OpenPage, site: Callable[[str], str]) -> None:
    """Each is asked for, the quickest answers first; one that never responds leaves nine with theirs."""
    address = site("demo")
    page = open_page(address, "/board?since=24h")
    asked: list[str] = []
    page.route(re.compile("/answers/drift/card"), lambda _route: None)  # never responds
    page.on("request", lambda one: asked.append(one.url) if "/card" in one.url else None)
    page.goto(f"{address}/answers?since=24h")
    expect(page.locator(".cards .part .waiting")).to_have_count(1, timeout=60_000)
    verbs = [url.split("/")[-2] for url in asked]
    assert set(verbs) == set(ALL)
    assert set(verbs[:3]) == {"bench", "slo", "compare"}
    assert page.locator("#card-drift .waiting").count() == 1
    page.unroute_all(behavior="ignoreErrors")


def test_a_card_shows_its_last_answer_while_it_is_asked_again(open_page: OpenPage, site: Callable[[str], str]) -> None:
    address = site("demo")
    page = open_page(address, "/answers?since=23h")
    first = page.locator("#card-slo .took").inner_text()
    time.sleep(KEPT_S + 1)
    card = httpx.get(f"{address}/answers/slo/card?since=23h").raise_for_status().text
    assert first.removeprefix("asked at ") in card
    assert "This is the last answer. Asking again" in card
    page.reload()
    settle(page)
    expect(page.locator("#card-slo .anew")).to_have_count(0, timeout=30_000)
    expect(page.locator("#card-slo .took")).not_to_have_text(first)
    assert page.locator("#card-slo .sentence").count() == 1
