"""Who may ask: the token on both transports and all four ports, TLS from files, and no web page of another site."""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
import yaml
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from backend.running import PROTOBUF, Up, export, ids, names_of, post, raw_call, request, run_up
from pki import make_pki
from stagetrace.backend import options
from stagetrace.backend.options import Options, Ports, host_names
from stagetrace.backend.ports import Access, is_authorized
from stagetrace.backend.receivers import METHOD
from stagetrace.backend.refusal import Refused
from stagetrace.store.jaeger import api_v3

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("services")

TOKEN = "s3cret/+=~"  # noqa: S105 -- made for these tests
GOOD = f"Bearer {TOKEN}"
WRONG: dict[str, str | None] = {
    "none": None,
    "empty": "",
    "another": "Bearer other",
    "its beginning": f"Bearer {TOKEN[:-1]}",
    "more than it": f"Bearer {TOKEN}x",
    "another scheme": f"Basic {TOKEN}",
    "no scheme": TOKEN,
}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Run one beyond loopback, as far as the flags say: on all addresses of this machine."""
    with run_up(tmp_path_factory.mktemp("guarded"), "--host=0.0.0.0", f"--token={TOKEN}", "--insecure") as running:
        yield running


def test_a_token_from_a_file(tmp_path: Path) -> None:
    """By way of a link, as Kubernetes mounts it; readable by others, as it does by default; and not shown in `ps`."""
    held, link = tmp_path / "held", tmp_path / "token"
    held.write_text(f"{TOKEN}\n")
    held.chmod(0o644)
    link.symlink_to(held)
    with run_up(tmp_path, "--host=0.0.0.0", env={"STAGETRACE_TOKEN_FILE": str(link), "STAGETRACE_INSECURE": "1"}) as up:
        assert up.ready["token"] is True
        assert httpx.get(f"{up.query}/services").status_code == 401
        assert httpx.get(f"{up.query}/services", headers={"authorization": GOOD}).status_code == 200
    lines = (tmp_path / "up.log").read_text().splitlines()
    assert lines == [
        f"stagetrace: other users may read or change the token in {link} (mode 0644): chmod 600",
        "stagetrace: --insecure: token and spans are readable on the network that reaches 0.0.0.0",
        "stagetrace: the token has 10 characters and can be guessed: `openssl rand -hex 32` makes one",
    ]
    held.chmod(0o640)  # a group is chosen by the owner
    assert options.read(link) == TOKEN
    assert TOKEN not in repr(Options(tmp_path, token=TOKEN))


def ask(up: Up, given: str | None) -> Any:
    metadata = () if given is None else (("authorization", given),)
    with grpc.insecure_channel(up.target("query_grpc_port")) as channel:
        call = channel.unary_unary(
            api_v3.path("GetServices"),
            request_serializer=api_v3.GetServicesRequest.SerializeToString,
            response_deserializer=api_v3.GetServicesResponse.FromString,
        )
        return call(api_v3.GetServicesRequest(), timeout=30, metadata=metadata)


@pytest.mark.parametrize("case", WRONG)
def test_without_the_token_nothing_is_taken_or_revealed(guarded: Up, case: str) -> None:
    given = WRONG[case]
    headers = {} if given is None else {"authorization": given}
    sent = request("refused").SerializeToString()
    taken = post(guarded, sent, **headers)
    assert (taken.status_code, taken.headers["www-authenticate"]) == (401, "Bearer")
    for path in ("api/v3/services", "api/v3/traces/1", "metrics", "no/such/page"):
        told = httpx.get(f"{guarded.url('query_http_port')}/{path}", headers=headers)
        assert told.status_code == 401
        assert told.json()["error"]["httpCode"] == 401
    metadata = () if given is None else (("authorization", given),)
    with grpc.insecure_channel(guarded.target()) as channel, pytest.raises(grpc.RpcError) as caught:
        export(channel, sent, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with pytest.raises(grpc.RpcError) as caught:
        ask(guarded, given)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_with_the_token_everything_works(guarded: Up) -> None:
    first, second = request("by HTTP", service="guarded"), request("by gRPC", service="guarded")
    post(guarded, first.SerializeToString(), authorization=GOOD).raise_for_status()
    with grpc.insecure_channel(guarded.target()) as channel:
        export(channel, second.SerializeToString(), metadata=(("authorization", GOOD),))
    assert names_of(guarded, *ids(first), authorization=GOOD) == ["by HTTP"]
    assert names_of(guarded, *ids(second), authorization=f"bearer {TOKEN}") == ["by gRPC"]
    assert list(ask(guarded, GOOD).services) == ["guarded"]
    metrics = httpx.get(f"{guarded.url('http_port')}/metrics", headers={"authorization": GOOD}).text
    assert 'stagetrace_accepted_spans_total{transport="http"} 1' in metrics


@pytest.mark.parametrize("port", ["http_port", "query_http_port"])
def test_health_is_for_everyone_and_reveals_nothing_else(guarded: Up, port: str) -> None:
    answer = httpx.get(f"{guarded.url(port)}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_the_token_is_compared_as_bytes() -> None:
    """Also what no token can be: compare_digest refuses text outside ASCII."""
    assert is_authorized("Bearer \u00e9\u20ac", TOKEN) is False
    assert is_authorized(b"Bearer \xff\xfe", TOKEN) is False
    assert is_authorized(None, None) is True


def test_all_ports_speak_tls_where_files_are_given(tmp_path: Path) -> None:
    authority, *pair = (make_pki(tmp_path) / name for name in ("ca.pem", "server.pem", "server.key"))
    with run_up(tmp_path, f"--tls-cert={pair[0]}", f"--tls-key={pair[1]}") as up:
        assert up.ready["tls"] is True
        sent = request("sealed", service="sealed")
        kind = {"content-type": PROTOBUF}
        with httpx.Client(verify=ssl.create_default_context(cafile=authority)) as client:
            client.post(up.traces, content=sent.SerializeToString(), headers=kind).raise_for_status()
            assert client.get(f"{up.query}/services").json() == {"services": ["sealed"]}
        framed = b"\0" + len(sent.SerializeToString()).to_bytes(4, "big") + sent.SerializeToString()
        with (  # as far as a page can have its browser send it: `te` is not for pages to set
            httpx.Client(http2=True, verify=ssl.create_default_context(cafile=authority)) as browser,
            pytest.raises(httpx.RemoteProtocolError, match="StreamReset"),
        ):
            browser.post(f"{up.url('grpc_port')}{METHOD}", content=framed, headers={"content-type": "application/grpc"})
        credentials = grpc.ssl_channel_credentials(authority.read_bytes())
        with grpc.secure_channel(up.target(), credentials) as channel:
            assert export(channel, request("sealed").SerializeToString()) == b""
        with grpc.secure_channel(up.target("query_grpc_port"), credentials) as channel:
            found: Any = api_v3.GetServicesResponse.FromString(raw_call(channel, api_v3.path("GetServices")))
            assert set(found.services) == {"sealed", "svc"}
        with grpc.insecure_channel(up.target()) as channel, pytest.raises(grpc.RpcError):
            export(channel, sent.SerializeToString())


ROOT = Path(__file__).parent.parent.parent
DEFAULTS = vars(Ports())
PATHS = [
    *(("http_port", path) for path in ("/v1/traces", "/metrics")),
    *(("query_http_port", path) for path in ("/", "/metrics", "/api/v3/services", "/no/such/page")),
]
FOREIGN = {"a rebound name": {"host": "evil.example"}, "a page": {"origin": "http://evil.example"}}
FOREIGN |= {"a local page": {"origin": "http://localhost:3000"}, "a sandboxed frame": {"origin": "null"}}
FOREIGN |= {"an image": {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors", "sec-fetch-dest": "image"}}
FOLLOWED = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate", "sec-fetch-dest": "document"}
FOR_BROWSERS = {
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def for_browsers(response: httpx.Response) -> None:
    """Check that a browser embeds, stores and shares nothing of a response, the page included."""
    own = {"referrer-policy": "same-origin"} if "'self'" in response.headers["content-security-policy"] else {}
    assert {name: response.headers.get(name) for name in FOR_BROWSERS} == FOR_BROWSERS | own
    assert re.match(r"default-src '(none|self)';.* frame-ancestors 'none'", response.headers["content-security-policy"])
    assert not [name for name in response.headers if name.startswith("access-control-")]


@pytest.mark.parametrize("case", FOREIGN)
def test_a_web_page_of_another_site_reads_and_writes_nothing(up: Up, case: str) -> None:
    """DNS rebinding included: the page's name resolves to this machine, so that its own name is the Host."""
    before = up.metric('stagetrace_refused_requests_total{reason="forbidden"}')
    for port, path in PATHS:
        method = "POST" if path == "/v1/traces" else "GET"
        body = request("rebound", service="rebound").SerializeToString() if method == "POST" else b""
        headers = {"content-type": PROTOBUF, **FOREIGN[case]}
        refused = httpx.request(method, up.url(port) + path, content=body, headers=headers)
        assert refused.status_code == 403, path
        assert ("--allow-host NAME" in refused.text) is (case == "a rebound name"), refused.text
        for_browsers(refused)
        if path == "/v1/traces":
            assert Status.FromString(refused.content).code == grpc.StatusCode.PERMISSION_DENIED.value[0]
        elif port == "query_http_port":
            assert refused.json()["error"]["httpCode"] == 403
    assert up.metric('stagetrace_refused_requests_total{reason="forbidden"}') == before + len(PATHS)
    assert "rebound" not in httpx.get(f"{up.query}/services").text


def test_a_page_gets_no_permission_to_send(up: Up) -> None:
    asked = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    for_browsers(httpx.request("OPTIONS", up.traces, headers=asked))
    for_browsers(httpx.get(f"{up.url('query_http_port')}/"))
    for_browsers(httpx.get(f"{up.url('http_port')}/health"))


@pytest.mark.parametrize(
    "headers",
    [{"host": "localhost:9999"}, {"host": "App.LOCALHOST"}, {"host": "[::1]:1"}, {"host": "127.9.9.9"}, FOLLOWED],
)
def test_local_names_are_served_and_so_are_followed_links(up: Up, headers: dict[str, str]) -> None:
    assert httpx.get(f"{up.query}/services", headers=headers).status_code == 200


def test_a_probe_is_served_by_any_name_and_without_the_token(up: Up, guarded: Up) -> None:
    """Kubernetes asks by the address of the pod."""
    for running in (up, guarded):
        for port in ("http_port", "query_http_port"):
            probe = httpx.get(f"{running.url(port)}/health", headers={"host": f"10.0.0.7:{running.ready[port]}"})
            assert (probe.status_code, probe.json()) == (200, {"status": "ok"})


def test_the_container_of_the_docs_responds_to_its_probes(tmp_path: Path) -> None:
    """As Kubernetes sends them: to the address of the pod, without a token."""
    text = re.search(r"```yaml\n(containers:.*?)```", (ROOT / "docs/cli.md").read_text(), re.DOTALL)
    assert text
    (container,) = yaml.safe_load(text[1])["containers"]
    (tmp_path / "token").write_text(TOKEN)
    program, up, data, *flags = container["args"]
    assert (program, up, data) == ("stagetrace", "up", "--data=/data")
    flags = [flag.replace("/etc/stagetrace", str(tmp_path)) for flag in flags]
    with run_up(tmp_path, *flags) as running:
        assert running.ready["token"] is True
        http, grpc_port = container["readinessProbe"]["httpGet"], container["livenessProbe"]["grpc"]["port"]
        ports = dict(zip(DEFAULTS.values(), DEFAULTS, strict=True))
        url = running.url(f"{ports[http['port']]}_port") + http["path"]
        assert httpx.get(url, headers={"host": "10.0.0.7"}).status_code == 200
        assert ports[grpc_port] == "query_grpc"
        for port in ("grpc_port", "query_grpc_port"):
            assert raw_call(running.target(port), "/grpc.health.v1.Health/Check") == b"\x08\x01"  # SERVING


def test_with_a_token_beyond_loopback_any_name_is_served_and_no_page(guarded: Up) -> None:
    named = {"authorization": GOOD, "host": "traces.example"}
    assert httpx.get(f"{guarded.query}/services", headers=named).status_code == 200
    assert httpx.get(f"{guarded.query}/services", headers={**named, "origin": "https://traces.example"}).is_success
    assert (
        httpx.get(f"{guarded.query}/services", headers={**named, "origin": "https://evil.example"}).status_code == 403
    )


HOSTS = {
    "box:1": True,
    "BOX": True,
    "box.": True,
    "localhost": True,
    "127.0.0.1:9": True,
    "::1": False,
    "10.0.0.1": False,
}
HOSTS |= {"": False, "box.evil.example": False, "localhost.evil.example": False, "box:1:2": False, "user@box": False}


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_that_are_served_where_one_is_allowed(tmp_path: Path, host: str) -> None:
    for at in ("127.0.0.1", "0.0.0.0"):  # noqa: S104
        access = Access.of(Options(tmp_path, host=at, allowed_hosts=host_names(" Box., other")))
        if HOSTS[host]:
            access.check("GET", [(b"host", host.encode())])
        else:
            with pytest.raises(Refused):
                access.check("GET", [(b"host", host.encode())])


def test_origins_behind_a_proxy_that_changes_the_host() -> None:
    changed = [(b"host", b"127.0.0.1:16686"), (b"origin", b"https://box")]
    Access(names=frozenset(["box"])).check("GET", changed)
    for access, headers in ((Access(), changed), (Access(names=None), [(b"host", b""), (b"origin", b"null")])):
        with pytest.raises(Refused):
            access.check("GET", headers)
    Access().check("GET", [])  # HTTP/1.0, which browsers do not speak
