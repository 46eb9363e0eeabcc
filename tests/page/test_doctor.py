"""Doctor: what runs here with commands that work, traced processes with their losses, the counters of the back end."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from playwright.sync_api import expect

from backend.running import environment as clean
from backend.running import post, request, run_up
from backends import LOOPBACK
from page.conftest import settle, violations
from page.serving import AS_BROWSER, TOKEN
from services import run_service
from stagetrace.backend.counters import Counters
from stagetrace.backend.options import Options, Ports
from stagetrace.cli.up import to_ask, to_send
from stagetrace.store.local import LocalStore
from test_status import environment, status_in

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser

PORTS = ("grpc_port", "http_port", "query_grpc_port", "query_http_port")
SECRET = "s3cret-of-the-receiver"  # noqa: S105 -- made for these tests


def texts(body: str, pattern: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(pattern, body, re.DOTALL)]


@pytest.mark.usefixtures("services")
def test_it_names_what_runs_and_how_to_ask_it(tmp_path: Path) -> None:
    """Each port, wherever it is; the store, whatever it is called; each command answers."""
    folder = tmp_path / "a <b> & 'c'"
    folder.mkdir()
    with run_up(folder) as up:
        post(up, request("POST /predict").SerializeToString()).raise_for_status()
        body = httpx.get(f"{up.url('query_http_port')}/doctor").raise_for_status().text
        shown = texts(body, "<dd><code>(.*?)</code>")
        for port in PORTS:
            assert [text for text in shown if f"{LOOPBACK}:{up.ready[port]}" in text], port
        assert up.ready["data"] in shown
        assert "<b>" not in body
        send, ask = texts(body, "<pre [^>]*>(.*?)</pre>")
        assert f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{LOOPBACK}:{up.ready['grpc_port']}" in send
        assert [*shlex.split(send)[:1], *shlex.split(send)[-2:]] == ["STAGETRACE=1", "uvicorn", "app:app"]
        commands = ask.splitlines()
        assert len(commands) == 6
        for command in commands:
            program, *arguments = shlex.split(command)
            assert program == "stagetrace"
            argv = [sys.executable, "-m", "stagetrace.cli.main", *(one for one in arguments if one != "-f")]
            done = subprocess.run(argv, env=clean(), capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, (command, done.stderr)


def test_addresses_are_those_by_which_clients_reach_it(tmp_path: Path) -> None:
    everywhere = Options(data=tmp_path, host="0.0.0.0", token=TOKEN)  # noqa: S104
    *_, remote = to_ask(everywhere, Ports())
    send = "\n".join(to_send(everywhere, Ports()))
    assert remote.startswith("STAGETRACE_STORE_INSECURE=1 STAGETRACE_STORE_TOKEN=TOKEN stagetrace breaches --store ")
    assert remote.endswith("jaeger://HOST:16685")
    assert "0.0.0.0" not in remote + send  # noqa: S104
    assert "OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer TOKEN'" in send
    assert TOKEN not in remote + send
    secure = Options(data=tmp_path, host="::1", tls_cert=tmp_path / "c", tls_key=tmp_path / "k")
    assert to_ask(secure, Ports())[-1].endswith("jaegers://[::1]:16685")
    assert "https://[::1]:4317 " in "".join(to_send(secure, Ports()))


@pytest.mark.usefixtures("services")
def test_a_traced_process_is_shown_with_its_losses(tmp_path: Path, browser: Browser) -> None:
    """One that cannot deliver and drops spans, and counts of the back end; without a secret, and accessibly."""
    status = tmp_path / "status"
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {SECRET}", "OTEL_BSP_MAX_QUEUE_SIZE": "40"}
    env = environment(status, f"http://user:{SECRET}@127.0.0.1:1", **headers)
    with run_up(tmp_path, env={"STAGETRACE_STATUS": str(status)}) as up, run_service(tmp_path, env=env) as service:
        for _ in range(20):  # of which three fit into the queue
            service.call("POST", "/predict", json={"inference_s": 0})
        one = status_in(status, lambda one: one["trouble"] is not None and one["spans"]["dropped"] > 0)
        post(up, b"no protobuf")
        page = browser.new_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
        page.goto(f"{up.url('query_http_port')}/doctor")
        settle(page)
        shown = page.locator("article.process")
        expect(shown).to_have_count(1)
        expect(shown.locator("h3")).to_contain_text(f"shop process {one['pid']} fails")
        expect(shown.locator(".finding.fail")).to_contain_text("cannot deliver to")
        expect(shown.locator(".finding.warn").first).to_contain_text("dropped for want of room")
        expect(shown.locator("tr.bad").first).to_contain_text("dropped")
        expect(page.locator("#counted tr.bad")).to_contain_text("malformed 1")
        assert SECRET not in page.content()
        assert violations(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.close()
        # Nothing is changed: the files of the processes are as they were.
        assert len(list(status.iterdir())) == 1


@pytest.mark.usefixtures("services")
def test_what_the_store_holds_is_listed(tmp_path: Path) -> None:
    with run_up(tmp_path, f"--token={TOKEN}", "--retention=7d") as up:
        url = f"{up.url('query_http_port')}/doctor"
        assert httpx.get(url).status_code == 401
        shown = httpx.get(url, headers={**AS_BROWSER, "authorization": f"Bearer {TOKEN}"}).text
        assert "up to 168 hours ago" in shown
        assert TOKEN not in shown


def test_every_figure_is_explained(tmp_path: Path) -> None:
    with LocalStore.open(tmp_path) as store:
        figures = Counters().figures({f"store_{name}": value for name, value in store.stats().items()})
    assert not [one.name for one in figures if not one.meaning]
    assert {"store_bytes", "refused_requests", "connections"} <= {one.name for one in figures}
