"""What leaves a service is what docs/environment.md lists: requests full of texts that are looked for in the export."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import grpc
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from backends import free_port
from instrumentation.grpc_client import dump, load
from services import AT_END, PYTHON, run_service
from sink import attributes_in, run_sink
from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from services import Service

PAGE = (Path(__file__).parent.parent / "docs/environment.md").read_text()
LISTED = PAGE.partition("## What is secret\n")[2].partition("\nNothing records bodies")[0]
CANARY = re.compile("canary-[a-z-]*_?")
HEADERS = {"x-data": "canary-header_", "authorization": "Bearer canary-token_", "cookie": "id=canary-cookie_"}
# Paths and user agents are recorded, and what the code of a service records itself.
BY_DEFAULT = {"canary-path", "canary-agent", "canary-call-path", "canary-own-span"}
MESSAGES = {"canary-message", "canary-handler", "canary-websocket-handler", "canary-background"}
STACKS = {"canary-cause", "canary-local"}  # source lines are shown with the literals in them


class Left(NamedTuple):
    """What has left a service: the canaries in all exports, in its log and its status file; the attributes' names."""

    exported: set[str]
    logged: set[str]
    written: set[str]
    names: set[str]
    texts: set[str]  # `exception.message` of the events


def canaries(*texts: bytes | str) -> set[str]:
    """Return the canaries in texts; a part of one counts as well."""
    whole = "\n".join(text if isinstance(text, str) else text.decode("latin-1") for text in texts)
    return {found.rstrip("_") for found in CANARY.findall(whole)}


def left(folder: Path, kind: str, env: Mapping[str, str]) -> Left:
    """Serve, make all requests, stop; return what has left."""
    rpcs = free_port()
    detector = {"OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "process"}
    more = {"GRPC_PORT": str(rpcs), "STAGETRACE_STATUS": str(folder), **detector, **env}
    argv = [
        PYTHON,
        "canaries.py",
        kind,
        "--db-password",
        "canary-option_ canary-rest_",
        "postgres://u:canary-argument_@db",
    ]
    with run_sink() as sink:
        every = sink.environment(STAGETRACE_SLA="* within 1us", STAGETRACE_LOG="debug", **AT_END, **more)
        with run_service(folder, argv=argv, env=every) as service:
            (drive_asgi if kind == "asgi" else drive_wsgi)(service, rpcs)
            (status,) = folder.glob("*.json")
            written = status.read_text()
            service.stop()
        events = [event for span in sink.protos for event in span.events]
        attributes = [attributes_in(one.attributes) for one in (*sink.protos, *events)]
        lines = [line for line in service.log.splitlines() if line.startswith("stagetrace: ")]
        return Left(
            canaries(*sink.exports),
            canaries(*lines),
            canaries(written),
            {name for one in attributes for name in one},
            {str(one["exception.message"]) for one in attributes if "exception.message" in one},
        )


def ask(client: httpx.Client, method: str, path: str) -> None:
    headers = {**HEADERS, "user-agent": "canary-agent_"}
    body = None if method == "GET" else json.dumps({"password": "canary-body_"}).encode()
    query = "q=canary-query_&token=canary-query-secret_"
    client.request(method, f"{path}?{query}", headers=headers, content=body)


def drive_wsgi(service: Service, _: int) -> None:
    ask(service.client, "POST", "/items/canary-path_")
    ask(service.client, "GET", "/raise")


def drive_asgi(service: Service, rpcs: int) -> None:
    ask(service.client, "POST", "/items/canary-path_")
    for path in ("/call", "/call-fails", "/raise", "/odd", "/own-span", "/nowhere/canary-path_"):
        ask(service.client, "GET", path)
    with suppress(ConnectionClosed), connect(service.url.replace("http", "ws") + "/talk", open_timeout=60) as socket:
        socket.send("canary-websocket_")
        socket.recv()
        socket.recv(30)
    with grpc.insecure_channel(f"127.0.0.1:{rpcs}") as channel:
        for method in ("Abort", "Raise"):
            with pytest.raises(grpc.RpcError):
                channel.unary_unary(f"/ml.Scorer/{method}", dump, load)(
                    {"text": "canary-rpc_"}, metadata=(("x-data", "canary-metadata_"),), timeout=30
                )


@pytest.fixture(scope="module")
def by_default(folder: Path) -> Left:
    (folder / "default").mkdir()
    return left(folder / "default", "asgi", {})


@pytest.mark.usefixtures("services")
def test_by_default_only_what_is_documented_leaves(by_default: Left) -> None:
    assert by_default.exported == BY_DEFAULT
    assert by_default.texts == {"canary-own-span_"}
    assert by_default.logged == by_default.written == set()


@pytest.mark.usefixtures("services")
def test_each_attribute_that_left_is_listed(by_default: Left) -> None:
    """Those of numbers are not, nor those that the service's own span has."""
    numbers = {one.name for one in semconv.ATTRIBUTES.values() if one.kind != semconv.STRING}
    own = {"exception.message", "exception.stacktrace", "exception.escaped"}
    assert not [name for name in by_default.names - numbers - own if not is_listed(name)]


def test_each_attribute_of_the_schema_with_a_text_is_listed() -> None:
    texts = [one.name for one in semconv.ATTRIBUTES.values() if one.kind == semconv.STRING]
    numbers = ("_STREAM", "_TOKENS", "_CHUNK")
    names = [
        name for name in vars(semconv) if name.startswith(("OPERATION_NAME", "PROVIDER_NAME", "REQUEST", "RESPONSE"))
    ]
    texts += [getattr(semconv, name) for name in names if not name.endswith(numbers)]
    assert len(texts) > 20
    assert not [name for name in texts if not is_listed(name)]


def is_listed(name: str) -> bool:
    numbers = ("*.ms", "*.port", "*.size", "*.status_code", "gen_ai.usage.*", "gen_ai.*.stream", "gen_ai.*_chunk")
    return any(fnmatchcase(name, pattern) for pattern in (*re.findall(r"`([\w.*]+)`", LISTED), *numbers))


@pytest.mark.usefixtures("services")
def test_with_every_switch_on_no_credential_leaves(folder: Path) -> None:
    (folder / "full").mkdir()
    switches = {"STAGETRACE_RECORD_EXCEPTIONS": "full", "STAGETRACE_RECORD_QUERY": "1", "STAGETRACE_RECORD_CLIENT": "1"}
    headers = {"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*"}
    found = left(folder / "full", "asgi", switches | headers)
    asked = {"canary-header", "canary-query", "canary-call-query", "canary-rpc-handler", "canary-details"}
    assert found.exported == BY_DEFAULT | MESSAGES | STACKS | asked
    assert "canary-handler_ canary-message_ Bearer REDACTED" in found.texts
    assert "(no text: its __str__ raised TypeError)" in found.texts
    assert found.logged == found.written == set()
    assert {"client.address", "client.port"} <= found.names


@pytest.mark.usefixtures("services")
def test_so_it_is_under_wsgi(tmp_path: Path) -> None:
    found = left(tmp_path, "wsgi", {})
    assert found.exported == {"canary-path", "canary-agent"}
    assert found.logged == found.written == set()
