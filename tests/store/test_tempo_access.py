"""Where a Tempo is, as who it is asked, and what is said when that goes wrong: as a person asks."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import pytest

from cli import running
from cli.running import printed
from pki import make_pki
from stagetrace.errors import StoreError
from stagetrace.store import Selection, open_store
from stagetrace.store.tempo.address import Address, parse
from stagetrace.store.tempo.client import TempoClient
from stagetrace.store.tempo.reader import TempoReader
from store.feed import entry, recent
from tempo import Tempo, basic, run_tempo

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.service

VARIABLE = "STAGETRACE_STORE_TOKEN"
TOKEN = "s3cret/+=~"  # noqa: S105 -- made for these tests


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(tmp_path_factory.mktemp("pki with + and space"))


def context(pki: Path, *, mutual: bool = False) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_cert_chain(pki / "server.pem", pki / "server.key")
    if mutual:
        made.load_verify_locations(pki / "ca.pem")
        made.verify_mode = ssl.CERT_REQUIRED
    return made


def refused(store: str, **changes: str) -> str:
    """Return what a command says that gets no answer: what is wrong, and what fixes it."""
    first, second = running.refused("services", "--store", store, **changes).splitlines()
    assert first.startswith(f"stagetrace: {store.partition('?')[0]}: ")
    return f"{first}\n{second}"


def test_a_url_says_where_and_as_who() -> None:
    for url, name in {
        "tempo://box": "tempo://box:3200",
        "TEMPO://box:1": "tempo://box:1",
        "tempo://box/": "tempo://box:3200",
        "tempo://box/a/b c/": "tempo://box:3200/a/b%20c",
        "tempo://[::1]:2/x": "tempo://[::1]:2/x",
        "tempos://7@grafana.example/tempo": "tempos://grafana.example:443/tempo",
        "tempo://box:10428/select/tempo?tenant=a": "tempo://box:10428/select/tempo",
    }.items():
        assert parse(url).name == name
    assert parse("tempos://7%2F8@box").user == "7/8"
    assert parse("tempo://box?tenant=a%7Cb").headers == {"X-Scope-OrgID": "a|b"}
    assert parse("tempo://box/select/tempo").is_victoria


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("tempo://", "the host is missing"),
        ("tempo:///x", "the host is missing"),
        ("tempo://box:no", "Port could not be cast to integer value as 'no'"),
        ("tempo://box:0", "no server listens on port 0"),
        ("tempo://@box", "the user before the @ is missing"),
        ("tempo://box?org=1", "'org=1' is none of tenant=NAME"),
        ("tempo://box?ca=c.pem", "'ca=c.pem' is none of tenant=NAME"),
        ("tempos://box?token=x", "'token=x' is none of ca=FILE, cert=FILE, key=FILE, tenant=NAME"),
        ("tempos://box?cert=c.pem", "a client's certificate needs both files, cert=FILE and key=FILE"),
        ("tempo://box?tenant=two%20words", "the tenant has characters that a header cannot carry"),
    ],
)
def test_a_bad_url_names_what_is_wrong(url: str, wrong: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(url)
    first, second = str(caught.value).splitlines()
    assert first.startswith("cannot open store 'tempo")
    assert first.endswith(wrong)
    assert "tempo://HOST:PORT[/PREFIX]" in second


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(StoreError, match=f"would show the password: set {VARIABLE} to it") as caught:
        open_store("tempos://me:h0rse@box/x")
    assert "h0rse" not in str(caught.value)


def test_a_token_goes_along_as_bearer_or_as_the_password_of_a_user() -> None:
    for user, header in {"": f"Bearer {TOKEN}", "7@": basic("7", TOKEN)}.items():
        with run_tempo(Tempo(headers={"Authorization": header})) as tempo:
            tempo.add([entry("guarded", recent())])
            store = tempo.url.replace("://", f"://{user}")
            assert printed("services", "--store", store, STAGETRACE_STORE_TOKEN=TOKEN) == "guarded\n"
            said = refused(tempo.url)
            assert "it refuses us without a token (authentication error: invalid credentials)" in said
            assert f"\nset {VARIABLE} to the token of this server" in said
            wrong = refused(tempo.url, **{VARIABLE: "wr0ng"})
            assert f"it refuses the token in {VARIABLE}" in wrong
            assert "wr0ng" not in wrong
    assert TOKEN not in repr(Address("tempo", "box", 1, "", parse("tempo://localhost").access))


def test_a_token_leaves_this_machine_over_tls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)
    with pytest.raises(
        StoreError, match=rf"{VARIABLE} is not sent to box: .*\nuse TLS \(tempos://box:PORT\)"
    ) as caught:
        parse("tempo://box")
    assert TOKEN not in str(caught.value)
    assert parse("tempo://localhost").headers == parse("tempos://box").headers
    monkeypatch.setenv("STAGETRACE_STORE_INSECURE", "1")
    assert parse("tempo://box").headers == {"Authorization": f"Bearer {TOKEN}"}


def test_a_tenant_is_named_by_the_url() -> None:
    with run_tempo(Tempo(headers={"X-Scope-OrgID": "team-a"})) as tempo:
        tempo.add([entry("of-a-tenant", recent())])
        assert printed("services", "--store", f"{tempo.url}?tenant=team-a") == "of-a-tenant\n"
        assert refused(tempo.url).endswith(
            "it holds several tenants, and none is named\nname one: tempo://HOST:PORT?tenant=NAME"
        )


def test_tls_with_an_authority_and_a_certificate_of_ours(pki: Path) -> None:
    with run_tempo(tls=context(pki)) as tempo:
        tempo.add([entry("sealed", recent())])
        assert printed("services", "--store", f"{tempo.url}?ca={pki / 'ca.pem'}") == "sealed\n"
        assert "its certificate is not trusted" in refused(tempo.url)
        assert "tempos://HOST:PORT?ca=FILE" in refused(tempo.url)
        wrong = refused(f"{tempo.url}?ca={pki / 'other.pem'}")
        assert "check that the file named by ca= is of the authority that signed it" in wrong
        host = refused(f"{tempo.url.replace('127.0.0.1', 'localhost')}?ca={pki / 'ca.pem'}")
        assert "its certificate is of another host than this" in host
        assert "tempos://HOST:PORT" in refused(tempo.url.replace("tempos", "tempo"))
    with run_tempo(tls=context(pki, mutual=True)) as tempo:
        tempo.add([entry("mutual", recent())])
        ours = f"{tempo.url}?ca={pki / 'ca.pem'}&cert={pki / 'client.pem'}&key={pki / 'client.key'}"
        assert printed("services", "--store", ours) == "mutual\n"
        assert "add cert=FILE&key=FILE" in refused(f"{tempo.url}?ca={pki / 'ca.pem'}")
    with run_tempo() as tempo:
        plain = refused(f"{tempo.url.replace('tempo', 'tempos')}?ca={pki / 'ca.pem'}")
        assert plain.endswith("not with TLS\nask without TLS: tempo://HOST:PORT")


def test_nobody_there_no_such_host_and_another_server() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        assert "no server listens there" in refused(f"tempo://127.0.0.1:{silent.getsockname()[1]}")
    assert "there is no host of this name" in refused("tempo://no-such-host.invalid:3200")
    with run_tempo(Tempo(prefix="/elsewhere")) as tempo:
        said = refused(tempo.url.removesuffix("/elsewhere"))
        assert "there is no Tempo at this path\nname the host, port and path of its HTTP API: " in said
        reader = open_store(tempo.url.removesuffix("/elsewhere"))
        with reader, pytest.raises(StoreError, match="there is no Tempo at this path"):
            reader.trace("ab" * 16)


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (500, "disk\n\tgone " + "x " * 500, "it reports 500: disk gone x x"),
        (503, "", "it reports 503: no details"),
        (429, "job queue full", "it refuses more queries for now (job queue full)"),
        (400, "limit 1 exceeds max limit 0", "refuses every search (limit 1 exceeds max limit 0)"),
        (302, "", "it redirects to another address (302)"),
        (200, "<html>a page", "a server answers there, but not as Tempo does: /api/search has no JSON object"),
        (200, '{"traces": [{"traceID": "../x"}]}', "/api/search has a trace that is none: {'traceID': '../x'}"),
        (200, "[]", "a server answers there, but not as Tempo does: /api/search has no JSON object: []"),
    ],
)
def test_an_error_of_the_server_is_shown(status: int, text: str, expected: str) -> None:
    with run_tempo(Tempo(refuse=(status, text))) as tempo:
        reader = open_store(tempo.url)
        with reader, pytest.raises(StoreError) as caught:
            reader.breaches(Selection(0, 10_000))
    lines = str(caught.value).splitlines()
    assert expected in lines[0]
    assert len(lines) == 2
    assert max(map(len, lines)) < 320


def test_what_never_answers_is_given_up_and_what_is_slow_can_be_interrupted() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"tempo://127.0.0.1:{silent.getsockname()[1]}"
        reader = TempoReader(TempoClient(parse(url), timeout_s=0.2))
        with (
            reader,
            pytest.raises(StoreError, match=r"no response within 0\.2 s\ncheck that this is Tempo's HTTP port"),
        ):
            reader.services()
        with TempoReader(TempoClient(parse(url))) as reader:
            for ask in (reader.services, lambda: list(reader.traces(["ab" * 16] * 20))):
                threading.Timer(0.2, reader.interrupt).start()
                began = time.monotonic()
                with pytest.raises(StoreError, match="the question was interrupted"):
                    ask()
                assert time.monotonic() - began < 10


def test_a_connection_that_the_server_closed_meanwhile_is_opened_again() -> None:
    with run_tempo() as tempo:
        tempo.add([entry("svc", recent())])
        client = TempoClient(parse(tempo.url))
        with TempoReader(client) as reader:
            assert reader.services() == ("svc",)
            (kept,) = client._idle
            assert kept.sock is not None
            kept.sock.shutdown(socket.SHUT_RDWR)
            assert reader.services() == ("svc",)
