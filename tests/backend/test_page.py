"""The query port in a browser: a page that says what this is, what runs, and commands that work."""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from backend.running import Up, environment, post, request, run_up
from backends import LOOPBACK
from stagetrace.backend.options import Options, Ports
from stagetrace.backend.page import page

TOKEN = "s3cret"  # noqa: S105 -- made for these tests
PORTS = ("grpc_port", "http_port", "query_grpc_port", "query_http_port")


def home(up: Up, **headers: str) -> httpx.Response:
    return httpx.get(f"{up.url('query_http_port')}/", headers=headers)


def texts(body: str, tag: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(rf"<{tag}>(.*?)</{tag}>", body, re.DOTALL)]


@pytest.mark.usefixtures("services")
@pytest.mark.smoke
def test_the_page_names_what_runs_and_how_to_ask_it(tmp_path: Path) -> None:
    """Each port, wherever it is; the store, whatever it is called; each command answers."""
    folder = tmp_path / "a <b> & 'c'"
    folder.mkdir()
    with run_up(folder) as up:
        response = home(up)
        post(up, request("POST /predict").SerializeToString()).raise_for_status()
        body = response.text
        assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
        said = texts(body, "code")
        for port in PORTS:
            assert [text for text in said if f"{LOOPBACK}:{up.ready[port]}" in text], port
        assert up.ready["data"] in said
        assert "<b>" not in body
        send, ask = texts(body, "pre")
        assert f"OTEL_EXPORTER_OTLP_ENDPOINT=http://{LOOPBACK}:{up.ready['grpc_port']}" in send
        commands = [*ask.splitlines(), said[-1]]
        assert len(commands) == 6
        for command in commands:
            program, *arguments = shlex.split(command)
            assert program == "stagetrace"
            argv = [sys.executable, "-m", "stagetrace.cli.main", *(one for one in arguments if one != "-f")]
            done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, (command, done.stderr)


@pytest.mark.usefixtures("services")
def test_the_page_loads_nothing_and_no_other_path_has_one(up: Up) -> None:
    response = home(up)
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search(r"src=|href=|url\(|@import|<script", response.text)
    for path in ("/search", "/index.html"):
        other = httpx.get(f"{up.url('query_http_port')}{path}")
        assert (other.status_code, other.headers["content-type"]) == (404, "application/json")


@pytest.mark.usefixtures("services")
def test_without_the_token_the_page_reveals_nothing(tmp_path: Path) -> None:
    with run_up(tmp_path, f"--token={TOKEN}") as up:
        refused = home(up)
        assert (refused.status_code, refused.headers["content-type"]) == (401, "application/json")
        assert not [
            told for told in (str(tmp_path), TOKEN, *(str(up.ready[port]) for port in PORTS)) if told in refused.text
        ]
        taken = home(up, authorization=f"Bearer {TOKEN}")
        assert taken.status_code == 200
        assert TOKEN not in taken.text
        assert "STAGETRACE_STORE_TOKEN=TOKEN" in taken.text


def test_addresses_are_those_by_which_clients_reach_it() -> None:
    everywhere = page(Options(Path("/data"), host="0.0.0.0", token=TOKEN), Ports())  # noqa: S104
    assert (
        "STAGETRACE_STORE_INSECURE=1 STAGETRACE_STORE_TOKEN=TOKEN stagetrace breaches --store jaeger://HOST:1668"
        in everywhere
    )
    assert "0.0.0.0" not in everywhere  # noqa: S104
    secure = Options(Path("/data"), host="::1", tls_cert=Path("c"), tls_key=Path("k"))
    assert "jaegers://[::1]:16685" in page(secure, Ports())
    assert "https://[::1]:16686/api/v3" in page(secure, Ports())
