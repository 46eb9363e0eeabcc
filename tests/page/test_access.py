"""Who is shown the page: the token once by a form, then a cookie, which opens pages and nothing else."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect
from starlette.requests import Request

from backend.running import run_up
from page.conftest import settle, violations
from page.data import fill
from page.own_loop import run_alone
from page.paths import PARTS, SHELLS
from page.serving import AS_BROWSER, AS_PART, TOKEN, Served, run_page
from pki import make_pki
from stagetrace.backend.refusal import Refused
from stagetrace.page import login
from stagetrace.page.login import LOGIN, LOGOUT, SESSION_S, Attempts, Sessions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.usefixtures("services")

SERVICE = "ticket-router"  # of the demo
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "object-src 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store") / "data"
    fill(folder, "demo")
    return folder


@pytest.fixture(scope="module")
def locked(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run one that asks for the token. All tests are one peer of it, so few of them send a wrong one."""
    with run_page(tmp_path_factory.mktemp("locked"), str(store), f"--token={TOKEN}") as running:
        yield running


@pytest.fixture(scope="module")
def session(locked: Served) -> dict[str, str]:
    """Return the cookie of somebody who is logged in."""
    return dict(locked.log_in().cookies)


def is_page(response: httpx.Response) -> bool:
    """Check the headers of a document or part; return whether it is one."""
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS
    return bool(response.headers.get("content-type") == "text/html; charset=utf-8")


@pytest.mark.parametrize("path", [*SHELLS, *PARTS, "/no/such/page"])
def test_without_the_token_a_browser_gets_the_form_and_a_program_an_error(locked: Served, path: str) -> None:
    refused = locked.get(f"{path}?since=6h&route=a%26b")
    assert refused.status_code == 401
    assert is_page(refused)
    assert f'name="next" value="{path}?since=6h&amp;route=a%26b"' in refused.text
    assert SERVICE not in refused.text
    assert str(locked.ready["store"]) not in refused.text
    for accept in ("*/*", "application/json"):
        program = locked.get(path, headers={"accept": accept})
        assert (program.status_code, program.headers["www-authenticate"]) == (401, "Bearer")
        assert program.json()["error"]["httpCode"] == 401


def test_a_part_asks_to_log_in_where_the_session_has_ended(locked: Served) -> None:
    refused = locked.get(PARTS[0], headers=AS_PART)
    assert refused.status_code == 401
    assert is_page(refused)
    assert "<form" not in refused.text
    assert '<a href="">Log in</a>' in refused.text  # which asks for the page once more


def test_static_files_and_the_form_are_there_without_a_token(locked: Served) -> None:
    form = locked.get(LOGIN)
    assert form.status_code == 200
    assert is_page(form)
    addresses = re.findall(r'"(/static/[^"]+)"', form.text)
    assert len(addresses) == 4
    for address in addresses:
        file = locked.get(address)
        assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")
        assert "immutable" in file.headers["cache-control"]
    assert locked.get("/static/0/no.js").status_code == 404


def test_the_token_opens_pages_by_a_cookie(locked: Served) -> None:
    response = locked.log_in(path="/stages?since=6h&route=%2Fa")
    assert (response.status_code, response.headers["location"]) == (303, "/stages?since=6h&route=%2Fa")
    name, _, rest = response.headers["set-cookie"].partition("=")
    value, *flags = rest.split("; ")
    assert name == f"stagetrace-{locked.ready['port']}"
    assert {*flags} == {"HttpOnly", f"Max-Age={SESSION_S}", "Path=/", "SameSite=strict"}
    assert len(value) > 40
    assert TOKEN not in value
    for path in SHELLS:
        assert locked.get(path, cookies={name: value}).status_code == 200
    for path in PARTS:
        assert locked.get(path, cookies={name: value}, headers=AS_PART).status_code in (200, 400, 404)  # no such trace
    assert locked.get("/", cookies={name: f"{value[:-1]}x"}).status_code == 401
    assert locked.get("/", cookies={name: TOKEN}).status_code == 401


def test_the_cookie_opens_nothing_else(store: Path, tmp_path: Path) -> None:
    """Neither the API, nor the figures, nor receiving: these need the token itself."""
    fill(tmp_path / "data", "one")
    with run_up(tmp_path, f"--token={TOKEN}") as up:
        port = up.ready["query_http_port"]
        served = Served({"url": f"{up.url('query_http_port')}/"}, up.process, store)
        cookies = dict(served.log_in().cookies)
        assert list(cookies) == [f"stagetrace-{port}"]
        assert served.get("/", cookies=cookies).status_code == 200
        led = served.get("/search?service=shop&lookback=1h", cookies=cookies)  # as links to Jaeger's page have it
        assert (led.status_code, led.headers["location"]) == (303, "/breaches?service=shop&since=1h")
        for path in ("/metrics", "/api/v3/services", "/api/v3/traces/1", "/api/v3/no"):
            for headers in ({}, AS_BROWSER):
                program = served.get(path, cookies=cookies, headers=headers)
                assert (program.status_code, program.json()["error"]["httpCode"]) == (401, 401)
        assert httpx.post(up.traces, cookies=cookies).status_code == 401
        with_token = {"authorization": f"Bearer {TOKEN}", **AS_BROWSER}
        assert served.get("/api/v3/services", headers=with_token).status_code == 200
        assert served.get("/", headers=with_token).status_code == 200
        assert served.get("/api/v3/no", headers=with_token).json()["error"]["httpCode"] == 404
        metrics = served.get("/metrics", headers=with_token).text
        assert 'stagetrace_logins_total{result="accepted"} 1' in metrics


@pytest.mark.parametrize(
    "path",
    [
        *("//evil.example/", "https://evil.example/", "/\\evil.example", "\\\\evil.example", "javascript:alert(1)"),
        *("/\t/evil.example", "/a\r\nx: y", " /a", "evil", "", "/login", "/logout", "/b\u00f6se"),
    ],
)
def test_logging_in_leads_to_this_site_alone(locked: Served, path: str, session: dict[str, str]) -> None:
    response = locked.log_in(path=path)
    assert (response.status_code, response.headers["location"]) == (303, "/")
    assert "x" not in response.headers
    shown = locked.get(LOGIN, params={"next": path}, cookies=session)
    assert (shown.status_code, shown.headers["location"]) == (303, "/")
    assert 'name="next" value="/"' in locked.get(LOGIN, params={"next": path}).text


def test_a_wrong_token_shows_the_form_again_and_keeps_the_path(locked: Served) -> None:
    response = locked.log_in("wrong", "/stages?since=6h")
    assert response.status_code == 401
    assert is_page(response)
    assert "set-cookie" not in response.headers
    assert "This is not the token." in response.text
    assert 'value="/stages?since=6h"' in response.text
    assert "wrong" not in response.text
    assert locked.log_in("\u00fcml\u00e4ut").status_code == 401


def test_wrong_tokens_are_counted_and_then_refused_unread(store: Path, tmp_path: Path) -> None:
    with run_page(tmp_path, str(store), f"--token={TOKEN}") as page:
        cookies = page.log_in().cookies
        assert [page.log_in(f"guess {number}").status_code for number in range(11)] == [401] * 10 + [429]
        late = page.log_in()  # the right one
        assert (late.status_code, 0 < int(late.headers["retry-after"]) <= 60) == (429, True)
        assert "Too many wrong tokens" in late.text
        assert page.get("/", cookies=cookies).status_code == 200
        metrics = page.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
        for result, count in {"accepted": 1, "refused": 10, "throttled": 2}.items():
            assert f'stagetrace_logins_total{{result="{result}"}} {count}\n' in metrics
        assert page.stop() == 0
        assert page.log.read_text() == "stagetrace: a login with a wrong token was refused; it came from 127.0.0.1\n"


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"origin": "http://evil.example"}, 403, "refused"),
        ({"origin": "null"}, 403, "refused"),
        ({"sec-fetch-site": "cross-site"}, 403, "refused"),
        ({"sec-fetch-site": "same-site"}, 403, "refused"),
        ({}, 403, "sent by no page of this site"),
        ({"sec-fetch-site": "none"}, 403, "sent by no page of this site"),
        ({"sec-fetch-site": "same-origin"}, 303, ""),
    ],
)
def test_only_our_own_form_logs_in(locked: Served, headers: dict[str, str], status: int, words: str) -> None:
    data = {"token": TOKEN}
    response = locked.ask("POST", LOGIN, data=data, headers={**AS_BROWSER, **headers})
    assert response.status_code == status
    assert ("set-cookie" in response.headers) is (status == 303)
    assert words in response.text
    assert is_page(response) is (status != 303)


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/json", b"{}", 400),
        ("application/x-www-form-urlencoded", b"token=" + b"x" * (64 << 10), 413),
        ("application/x-www-form-urlencoded", b"a=1&" * 100, 400),
        ("application/x-www-form-urlencoded", b"token=\xff", 400),
    ],
)
def test_a_form_that_is_none(locked: Served, kind: str, body: bytes, status: int) -> None:
    headers = {"origin": locked.url, "content-type": kind, **AS_BROWSER}
    assert locked.ask("POST", LOGIN, content=body, headers=headers).status_code == status


def test_a_form_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "_BODY_S", 0.01)

    async def receive() -> Any:
        await asyncio.Event().wait()

    kind = [(b"content-type", b"application/x-www-form-urlencoded")]
    with pytest.raises(Refused, match="not received within"):
        run_alone(login.read_form(Request({"type": "http", "headers": kind}, receive)))


def test_logging_out_ends_the_session(locked: Served) -> None:
    cookies = locked.log_in().cookies
    assert locked.get(LOGOUT, cookies=cookies).status_code == 405  # a link must not do it
    foreign = {**AS_BROWSER, "origin": "http://evil.example"}
    assert locked.ask("POST", LOGOUT, cookies=cookies, headers=foreign).status_code == 403
    assert locked.get("/", cookies=cookies).status_code == 200
    response = locked.ask("POST", LOGOUT, cookies=cookies, headers={"origin": locked.url})
    assert (response.status_code, response.headers["location"]) == (303, LOGIN)
    assert "Max-Age=0" in response.headers["set-cookie"]
    assert locked.get("/", cookies=cookies).status_code == 401


def test_over_tls_the_cookie_is_sent_over_tls_alone(store: Path, tmp_path: Path) -> None:
    authority, *pair = (make_pki(tmp_path) / name for name in ("ca.pem", "server.pem", "server.key"))
    flags = (f"--token={TOKEN}", f"--tls-cert={pair[0]}", f"--tls-key={pair[1]}")
    with run_page(tmp_path, str(store), *flags) as page:
        assert (page.url.partition(":")[0], page.ready["tls"]) == ("https", True)
        with httpx.Client(verify=ssl.create_default_context(cafile=authority), base_url=page.url) as client:
            response = client.post(LOGIN, data={"token": TOKEN}, headers={"origin": page.url})
            cookie = response.headers["set-cookie"]
            assert cookie.startswith(f"__Host-stagetrace-{page.ready['port']}=")
            assert "; Secure" in cookie
            assert client.get("/").status_code == 200


def test_without_a_token_there_is_nothing_to_log_in_to(store: Path, tmp_path: Path) -> None:
    with run_page(tmp_path, str(store)) as page:
        assert page.get(LOGIN).status_code == 404
        assert page.log_in().status_code == 404
        assert LOGOUT not in page.get("/").text


def test_sessions_end_after_hours_and_are_few() -> None:
    now = 0.0
    sessions = Sessions(lambda: now)
    first = sessions.open()
    now = SESSION_S - 1.0
    second = sessions.open()
    assert sessions.holds(first)
    now = SESSION_S + 1.0
    assert [sessions.holds(one) for one in (first, second, "", "\udcff")] == [False, True, False, False]
    for _ in range(login._SESSIONS - 1):
        sessions.open()
    assert sessions.holds(second)
    last = sessions.open()
    assert [sessions.holds(one) for one in (second, last)] == [False, True]
    assert len(sessions._until) == login._SESSIONS


def test_attempts_of_one_peer_hinder_no_other_and_are_forgotten() -> None:
    now = 0.0
    attempts = Attempts(lambda: now)
    for _ in range(login._TRIES):
        assert attempts.wait_s("a") == 0
        attempts.fail("a")
        now += 1
    assert attempts.wait_s("a") == login._TRIES_S - login._TRIES
    assert attempts.wait_s("b") == 0
    now = login._TRIES_S + 0.5  # the first one is a minute ago, the second not yet
    assert attempts.wait_s("a") == 0
    attempts.fail("a")
    assert attempts.wait_s("a") == 0.5
    for number in range(login._PEERS):
        attempts.fail(str(number))
    assert len(attempts._failed) == login._PEERS
    assert attempts.wait_s("a") == 0


@pytest.mark.parametrize("path", [*SHELLS, *PARTS])
def test_every_page_is_only_read(locked: Served, session: dict[str, str], path: str) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
        response = locked.ask(method, path, cookies=session, headers=AS_BROWSER)
        assert (response.status_code, {*response.headers["allow"].split(", ")}) == (405, {"GET", "HEAD"})
        assert is_page(response)
    assert locked.ask("POST", path, cookies=session).json()["error"]["httpCode"] == 405


@pytest.mark.parametrize("path", SHELLS)
def test_pages_have_their_headers_and_are_asked_for_by_head_too(
    locked: Served, session: dict[str, str], path: str
) -> None:
    assert is_page(locked.get(path, cookies=session))
    head = locked.ask("HEAD", path, cookies=session, headers=AS_BROWSER)
    assert (head.status_code, head.content) == (200, b"")
    assert is_page(head)


@pytest.mark.parametrize("path", PARTS)
def test_parts_have_their_headers(locked: Served, session: dict[str, str], path: str) -> None:
    response = locked.get(path, cookies=session, headers=AS_PART)
    assert {name: response.headers.get(name) for name in HEADERS} == HEADERS


def test_errors_are_pages_in_a_browser_and_json_in_a_program(locked: Served, session: dict[str, str]) -> None:
    missing = locked.get("/no/such/page", cookies=session)
    assert missing.status_code == 404
    assert is_page(missing)
    assert "There is no such page." in missing.text
    assert "no/such" not in missing.text
    assert "www-authenticate" not in missing.headers
    assert locked.get("/board?since=yesterday", cookies=session).status_code == 400
    named = locked.get("/no", headers={"authorization": f"Bearer {TOKEN}"})
    assert (named.status_code, named.json()["error"]["httpCode"]) == (404, 404)
    rebound = locked.get("/", headers={**AS_BROWSER, "host": "evil.example"})
    assert rebound.status_code == 403
    assert is_page(rebound)
    assert "--allow-host NAME" in rebound.text


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_may_link_here_and_nothing_else(
    locked: Served, session: dict[str, str], site: str
) -> None:
    fetched = {**AS_PART, "sec-fetch-site": site, "sec-fetch-mode": "cors", "sec-fetch-dest": "empty"}
    framed = {**AS_BROWSER, "sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "iframe"}
    for path in (*SHELLS, *PARTS):
        for headers in (fetched, framed):
            assert locked.get(path, cookies=session, headers=headers).status_code == 403
    linked = {**AS_BROWSER, "sec-fetch-site": site, "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
    assert locked.get("/board", cookies=session, headers=linked).status_code == 200
    # The browser keeps a strict cookie back, so the form asks again, as a page of this site. Only once.
    kept_back = locked.get("/board?since=6h&route=%2Fa", headers=linked)
    again = re.search(r'<meta http-equiv="refresh" content="0; url=([^"]+)">', kept_back.text)
    assert again
    landed = locked.get(again[1].replace("&amp;", "&"), cookies=session)
    assert (landed.status_code, landed.headers["location"]) == (303, "/board?since=6h&route=%2Fa")
    assert "refresh" not in locked.get(again[1]).text


def test_urls_have_limits(locked: Served, session: dict[str, str]) -> None:
    for query in ("&".join(f"a{number}=1" for number in range(101)), "route=" + "x" * 2001, "segment=a%3Db&" * 21):
        for path in ("/board", PARTS[0]):
            refused = locked.get(f"{path}?{query}", cookies=session)
            assert refused.status_code == 400
            assert is_page(refused)
            assert "shorten the URL" in refused.text
    assert locked.get("/board?x=" + "y" * (16 << 10), cookies=session).status_code == 431


def test_it_serves_health_to_all_and_metrics_with_the_token(locked: Served) -> None:
    probe = locked.get("/health", headers={"host": "10.0.0.7"})
    assert (probe.status_code, probe.json()) == (200, {"status": "ok"})
    assert locked.get("/metrics").status_code == 401
    metrics = locked.get("/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    assert re.search(r'stagetrace_connections_total\{port="page"\} [1-9]', metrics)


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(10_000)
    yield context.new_page()
    context.close()


def test_the_keyboard_logs_in_and_the_link_is_kept(locked: Served, tab: Page) -> None:
    tab.goto(f"{locked.url}/stages?since=6h&service={SERVICE}")
    expect(tab.get_by_label("Token")).to_be_focused()
    assert violations(tab) == []
    tab.keyboard.type("sesame")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("alert")).to_have_text("This is not the token.")
    assert violations(tab) == []
    tab.keyboard.type(TOKEN)
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    expect(tab).to_have_url(f"{locked.url}/stages?since=6h&service={SERVICE}")
    settle(tab)
    assert tab.locator(".error").count() == 0
    tab.get_by_role("link", name="Board").click()
    expect(tab.locator("h1")).to_have_text("Board")
    tab.get_by_role("button", name="Log out").click()
    expect(tab).to_have_url(f"{locked.url}{LOGIN}")
    tab.goto(f"{locked.url}/stages")
    expect(tab.get_by_label("Token")).to_be_visible()


def test_a_link_on_another_site_finds_the_session(locked: Served, tab: Page) -> None:
    """And a session that has ended is named in each part, with a way back."""
    tab.goto(f"{locked.url}{LOGIN}")
    tab.get_by_label("Token").fill(TOKEN)
    tab.get_by_role("button", name="Log in").click()
    expect(tab.locator("h1")).to_have_text("Board")
    cookies = tab.context.cookies()
    link = f"{locked.url}/stages?since=6h"
    tab.route(
        "http://elsewhere.example/", lambda route: route.fulfill(body=f'<a href="{link}">', content_type="text/html")
    )
    tab.goto("http://elsewhere.example/")
    tab.evaluate("document.querySelector('a').click()")
    expect(tab).to_have_url(link)
    expect(tab.locator("h1")).to_have_text("Stages")
    assert [one["sameSite"] for one in cookies] == ["Strict"]
    settle(tab)
    tab.context.clear_cookies()
    tab.keyboard.press("r")
    expect(tab.locator(".part .error").first).to_contain_text("You are not logged in, or no longer.")
    tab.get_by_role("link", name="Log in").first.click()
    expect(tab.get_by_label("Token")).to_be_visible()
    expect(tab.locator("[name=next]")).to_have_value("/stages?since=6h")


def test_the_end_does_not_wait_for_a_part(tmp_path: Path) -> None:
    """A Jaeger that accepts and never responds; browsers that wait for a part, or hold a connection."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with run_page(tmp_path, f"jaeger://127.0.0.1:{silent.getsockname()[1]}") as page:
            parts = [socket.create_connection(("127.0.0.1", page.ready["port"])) for _ in range(8)]
            for number, part in enumerate(parts):
                part.sendall(f"GET {PARTS[0]}?x={number} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
            silent.accept()[0].close()  # the first one is asked
            assert page.stop() == 0
        for part in parts:
            part.close()
    assert page.log.read_text() == ""


@pytest.mark.parametrize(
    ("address", "peer"),
    [
        (("192.0.2.1", 5), "192.0.2.1"),
        (("::ffff:192.0.2.1", 5, 0, 0), "192.0.2.1"),
        (("2001:db8:1:2:3:4:5:6", 5, 0, 0), "2001:0db8:0001:0002"),
        (("fe80::1%eth0", 5, 0, 2), "fe80:0000:0000:0000"),
    ],
)
def test_a_peer_is_an_address_or_what_one_site_has_of_ipv6(address: tuple[Any, ...], peer: str) -> None:
    assert login.peer_of(address) == peer
