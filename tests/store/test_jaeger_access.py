"""Token and TLS of `jaeger://` and `jaegers://`: against our own back end and the real Jaeger, as a person asks."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import httpx
import pytest

from backend.processes import until
from backend.running import Up, request, run_up
from backends import run_jaeger
from cli import running
from cli.running import printed
from conftest import need
from pki import make_pki
from stagetrace.errors import StoreError
from stagetrace.store import open_store
from stagetrace.store.access import Access
from stagetrace.store.jaeger.client import parse
from store.feed import entry, export, recent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("services")

VARIABLE = "STAGETRACE_STORE_TOKEN"
TOKEN = "s3cret/+=~"  # noqa: S105 -- made for these tests
OTHER = "wrong-0ne"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pki(tmp_path_factory.mktemp("pki with + and space"))


@pytest.fixture(scope="module")
def sealed(pki: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Run our back end with a token and TLS, holding spans of the service `sealed`."""
    flags = (f"--token={TOKEN}", f"--tls-cert={pki / 'server.pem'}", f"--tls-key={pki / 'server.key'}")
    with run_up(tmp_path_factory.mktemp("sealed"), *flags) as running:
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/x-protobuf"}
        with httpx.Client(verify=ssl.create_default_context(cafile=pki / "ca.pem")) as client:
            sent = request("within", service="sealed").SerializeToString()
            client.post(running.traces, content=sent, headers=headers).raise_for_status()
        yield running


def refused(store: str, **changes: str) -> str:
    """Return what a command says that gets no answer; nothing but our own lines is on stderr."""
    first, second = running.refused("services", "--store", store, **changes).splitlines()
    assert first.startswith(f"stagetrace: {store.partition('?')[0]}: ")
    return f"{first}\n{second}"


def test_our_back_end_is_read_with_token_and_tls(sealed: Up, pki: Path) -> None:
    """Its own ready line names the store; only the authority's file is added."""
    assert sealed.ready["store"] == f"jaegers://127.0.0.1:{sealed.ready['query_grpc_port']}"
    store = f"{sealed.ready['store']}?ca={pki / 'ca.pem'}"
    assert printed("services", "--store", store, STAGETRACE_STORE_TOKEN=TOKEN) == "sealed\n"
    shown = printed("breaches", "--each", STAGETRACE_STORE=store, STAGETRACE_STORE_TOKEN=TOKEN)
    assert "\nAll requests of service sealed since " in shown


@pytest.mark.smoke
def test_a_token_goes_along_without_tls_too(tmp_path: Path) -> None:
    with run_up(tmp_path, f"--token={TOKEN}") as up:
        printed("services", "--store", up.ready["store"], STAGETRACE_STORE_TOKEN=TOKEN)
        text = refused(up.ready["store"])
        assert "it refuses us without a token (no token was sent" in text
        assert text.endswith("\nset STAGETRACE_STORE_TOKEN to the token that this server was started with")
        assert "it refuses the token in STAGETRACE_STORE_TOKEN" in refused(up.ready["store"], **{VARIABLE: OTHER})


def test_the_token_is_shown_nowhere(sealed: Up, pki: Path) -> None:
    store = f"{sealed.ready['store']}?ca={pki / 'ca.pem'}"
    assert OTHER not in refused(store, **{VARIABLE: OTHER})
    assert OTHER not in repr(Access(token=OTHER))


def test_what_goes_wrong_with_tls_is_distinguished(sealed: Up, pki: Path, tmp_path: Path) -> None:
    address = sealed.target("query_grpc_port")
    plain = refused(f"jaeger://{address}")
    assert "a server with TLS does so: jaegers://HOST:PORT" in plain
    unknown = refused(f"jaegers://{address}")
    assert "its certificate is not trusted (unable to get local issuer certificate)" in unknown
    assert "jaegers://HOST:PORT?ca=FILE" in unknown
    wrong = refused(f"jaegers://{address}?ca={pki / 'other.pem'}")
    assert "its certificate is not trusted" in wrong
    assert "check that the file named by ca= is of the authority that signed it" in wrong
    host = refused(f"jaegers://localhost:{sealed.ready['query_grpc_port']}?ca={pki / 'ca.pem'}")
    assert "its certificate is of another host than this" in host
    with run_up(tmp_path) as up:
        assert "not with TLS\nask without TLS: jaeger://HOST:PORT" in refused(
            f"jaegers://{up.target('query_grpc_port')}?ca={pki / 'ca.pem'}"
        )


def test_the_real_jaeger_asks_for_our_certificate(pki: Path, tmp_path: Path) -> None:
    """TLS on its query port with `client_ca_file`: nobody is answered without a certificate of that authority."""
    need("jaeger")
    files = f"cert_file: '{pki}/server.pem', key_file: '{pki}/server.key', client_ca_file: '{pki}/ca.pem'"
    with run_jaeger(tmp_path, also=f"extensions: {{jaeger_query: {{grpc: {{tls: {{{files}}}}}}}}}\n") as jaeger:
        export(jaeger.otlp_grpc, [entry("mutual", recent())])
        store = f"jaegers://{jaeger.query_grpc}?ca={pki / 'ca.pem'}"
        ours = f"{store}&cert={pki / 'client.pem'}&key={pki / 'client.key'}"
        until(lambda: "mutual" in printed("services", "--store", ours).splitlines())  # Jaeger stores in batches
        assert "a server that asks for a client's certificate does so: add cert=FILE&key=FILE" in refused(store)


@pytest.mark.parametrize(
    ("query", "wrong"),
    [
        ("token=x", "'token=x' is none of ca=FILE, cert=FILE, key=FILE"),
        ("ca", "'ca' is none of ca=FILE, cert=FILE, key=FILE"),
        ("cert=c.pem", "a client's certificate needs both files, cert=FILE and key=FILE"),
    ],
)
def test_a_bad_query_names_what_belongs_there(query: str, wrong: str) -> None:
    with pytest.raises(StoreError) as caught:
        open_store(f"jaegers://box?{query}")
    assert str(caught.value).splitlines()[0] == f"cannot open store 'jaegers://box?{query}': {wrong}"


def test_a_bad_file_is_named(pki: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "empty.pem"
    nothing.touch()
    pair = f"cert={pki / 'client.pem'}&key={pki / 'server.key'}"
    locked = f"cert={pki / 'client.pem'}&key={pki / 'locked.key'}"
    for query, named in (
        (f"ca={nothing}", f"cannot use ca={nothing}: "),
        ("ca=/no/such/file", "cannot use ca=/no/such/file: "),
        (pair, f"cannot use cert={pki / 'client.pem'} with key={pki / 'server.key'}: "),
        (locked, f"cannot use cert={pki / 'client.pem'} with key={pki / 'locked.key'}: "),
    ):
        with pytest.raises(StoreError) as caught:
            open_store(f"jaegers://box?{query}")
        first, second = str(caught.value).splitlines()
        assert first.startswith(named)
        assert second.startswith("these must be readable PEM files")


def test_a_token_that_no_header_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGETRACE_STORE_TOKEN", "two words")
    with pytest.raises(StoreError, match="STAGETRACE_STORE_TOKEN has characters that a header cannot carry"):
        open_store("jaeger://box")
    monkeypatch.setenv("STAGETRACE_STORE_TOKEN", "")
    assert parse("jaeger://box") == ("box", 16685, Access())


def test_a_token_leaves_this_machine_over_tls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, TOKEN)
    for url in ("jaeger://box", "jaeger://127.0.0.1.example:1", "jaeger://[2001:db8::1]"):
        text = running.refused("services", "--store", url, **{VARIABLE: TOKEN})
        assert "STAGETRACE_STORE_TOKEN is not sent to" in text
        assert "use TLS (jaegers://" in text
        assert TOKEN not in text
    for url in ("jaeger://localhost", "jaeger://127.0.0.2:1", "jaeger://[::1]", "jaegers://box"):
        assert parse(url)[2].token == TOKEN
    monkeypatch.setenv("STAGETRACE_STORE_INSECURE", "1")
    assert parse("jaeger://box")[2].token == TOKEN
