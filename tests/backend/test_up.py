"""Starting and stopping `stagetrace up`: what it says, what it refuses to start, and that stopping loses nothing."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import stat
import threading
from pathlib import Path

import grpc
import httpx
import pytest

from backend.processes import WITHIN_S, Lines, started, until
from backend.running import (
    COMMAND,
    FREE_PORTS,
    PROTOBUF,
    Up,
    environment,
    export,
    fail_to_start,
    ids,
    names_of,
    post,
    request,
    run_up,
)
from cli.running import refused
from stagetrace.backend import options
from stagetrace.cli import up

pytestmark = pytest.mark.usefixtures("services")

PORTS = ("grpc_port", "http_port", "query_grpc_port", "query_http_port")


def test_the_ready_line_names_everything(up: Up) -> None:
    ready = up.ready
    alerts = ("objectives", "alerts_to")
    assert set(ready) == {"ready", "pid", "data", "archive", "host", *PORTS, "store", "tls", "token", *alerts}
    assert (ready["objectives"], ready["alerts_to"]) == (0, [])
    assert (ready["ready"], ready["host"], ready["tls"], ready["token"]) == (True, "127.0.0.1", False, False)
    assert ready["pid"] == up.process.pid
    assert ready["store"] == f"jaeger://127.0.0.1:{ready['query_grpc_port']}"
    assert len({ready[port] for port in PORTS} - {0}) == 4


@pytest.mark.smoke
def test_once_ready_every_port_answers(tmp_path: Path) -> None:
    with run_up(tmp_path) as up:
        for port in PORTS:
            socket.create_connection(("127.0.0.1", up.ready[port]), timeout=5).close()
        sent = request("at once")
        with grpc.insecure_channel(up.target()) as channel:
            export(channel, sent.SerializeToString())
        assert names_of(up, *ids(sent)) == ["at once"]


def test_people_see_where_it_listens(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with started([*COMMAND, "--data", str(data), *FREE_PORTS], env=environment(), stderr=None) as process:
        lines = Lines(process.stdout)
        text = "\n".join(lines.next() for _ in range(7))
        assert str(data) in text
        assert len(set(re.findall(r"127\.0\.0\.1:(\d+)", text))) == 4
        assert f"stagetrace breaches --store {data}" in text
        process.terminate()
        assert process.wait(WITHIN_S) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_soon_and_loses_nothing(tmp_path: Path, number: int) -> None:
    """Also with connections that stay open and requests under way."""
    acknowledged: list[str] = []
    trace = secrets.token_bytes(16)
    with run_up(tmp_path) as up:

        def send() -> None:
            with grpc.insecure_channel(up.target()) as channel, httpx.Client() as client:
                while True:
                    first, second = secrets.token_hex(8), secrets.token_hex(8)
                    try:
                        export(channel, request(first, trace=trace).SerializeToString())
                        acknowledged.append(first)
                        body = request(second, trace=trace).SerializeToString()
                        headers = {"content-type": PROTOBUF}
                        client.post(up.traces, content=body, headers=headers).raise_for_status()
                        acknowledged.append(second)
                    except (grpc.RpcError, httpx.HTTPError):
                        return

        senders = [threading.Thread(target=send) for _ in range(3)]
        for sender in senders:
            sender.start()
        until(lambda: len(acknowledged) > 10)
        with socket.create_connection(("127.0.0.1", up.ready["http_port"])) as idle:
            idle.sendall(b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx")
            assert up.stop(number) == 0
        for sender in senders:
            sender.join(WITHIN_S)
    assert (tmp_path / "up.log").read_text() == ""
    with run_up(tmp_path) as up:
        assert len(acknowledged) > 2
        assert set(acknowledged) <= set(names_of(up, trace.hex()))


def test_a_second_one_on_the_same_folder_is_reported(up: Up) -> None:
    said = fail_to_start("--data", up.ready["data"], *FREE_PORTS)
    assert up.ready["data"] in said
    assert str(up.process.pid) in said


@pytest.mark.parametrize("port", PORTS)
def test_a_port_that_is_taken_is_named_with_its_flag(up: Up, tmp_path: Path, port: str) -> None:
    flag = f"--{port.replace('_', '-')}"
    said = fail_to_start("--data", str(tmp_path), *FREE_PORTS, f"{flag}={up.ready[port]}")
    assert f"port {up.ready[port]}: another process listens there" in said
    assert flag in said


def test_what_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for data in (str(tmp_path / "file" / "data"), str(tmp_path / "file")):
        assert data in fail_to_start("--data", data, *FREE_PORTS)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_reported(tmp_path: Path) -> None:
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert str(tmp_path / "data") in fail_to_start("--data", str(tmp_path / "data"), *FREE_PORTS)
    finally:
        tmp_path.chmod(stat.S_IRWXU)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "0.0.0.0"], "no token"),  # noqa: S104
        (["--host", "::"], "no token"),
        (["--host", "example.com"], "no token"),
        (["--host", "::", "--token", "s"], "without TLS the network can read token and spans"),
        (["--host", "192.0.2.1", "--token", "s", "--insecure"], "--host"),
        (["--host", "no.such.host.invalid", "--token", "s", "--insecure"], "no such address"),
        (["--token", ""], "the token is empty"),
        (["--token", "has space"], "the token"),
        (["--token", "s", "--token-file", "f"], "both a token and a file"),
        (["--token-file", ""], "cannot read the token in .: Is a directory"),
        (["--token-file", "/no/such/file"], "cannot read the token in /no/such/file: No such file"),
        (["--token-file", "/dev/null"], "the token in /dev/null: it is empty"),
        (["--token-file", "/dev/zero"], "more than 4096 bytes"),
        (["--tls-cert", "c.pem"], "TLS needs both"),
        (["--tls-cert", "c.pem", "--tls-key", "k.pem"], "cannot use c.pem with k.pem"),
        (["--grpc-port", "4317", "--http-port", "4317"], "two of the four ports"),
        (["--grpc-port", "65536"], "--grpc-port: '65536' is not a port"),
        (["--grpc-port", "-1"], "is not a port"),
        (["--retention", "7"], "--retention: '7' is not an age"),
        (["--retention-size", "much"], "--retention-size: 'much' is not a size"),
        (["--max-request", "0MB"], "--max-request"),
        (["--max-in-flight", "1MiB"], "--max-in-flight is below --max-request"),
        (["--allow-host", "http://box"], "--allow-host: 'http://box' is not a host name"),
        (["extra"], "unrecognized arguments"),
    ],
)
def test_what_it_does_not_start_with(tmp_path: Path, flags: list[str], words: str) -> None:
    """Said in up to three lines; nothing was opened, not even the folder, where the flags alone tell."""
    data = tmp_path / "data"
    free = [flag for flag in FREE_PORTS if flag.partition("=")[0] not in flags]
    assert words in refused("up", "--data", data, *free, *flags)
    if "--insecure" not in flags:
        assert not data.exists()


def test_variables_stand_in_for_flags_and_flags_win(tmp_path: Path) -> None:
    env = {
        "STAGETRACE_DATA": str(tmp_path / "elsewhere"),
        "STAGETRACE_HOST": "localhost",
        "STAGETRACE_TOKEN": "from-the-environment",
        "STAGETRACE_GRPC_PORT": "1",
        "STAGETRACE_MAX_REQUEST": "1MiB",
        "STAGETRACE_RETENTION": "7d",
        "STAGETRACE_RETENTION_SIZE": "1GiB",
    }
    with run_up(tmp_path, env=env) as up:
        assert up.ready["data"] == str(tmp_path / "data")
        assert up.ready["host"] == "localhost"
        assert up.ready["token"] is True
        assert up.ready["grpc_port"] > 1
        assert post(up, b"\n" * (2 << 20), authorization="Bearer from-the-environment").status_code == 413


def test_each_flag_has_its_variable_and_each_key_its_line() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "cli.md").read_text()
    for option in up.OPTIONS:
        (flag,) = option.flags
        name = "STAGETRACE_" + flag.removeprefix("--").replace("-", "_").upper()
        if flag == "--sla":  # STAGETRACE_SLA is the policy of services that are started beside it
            name = "STAGETRACE_SLA_ALERTS"
        assert flag == "--json" or option.about.endswith(f"(${name})")
    table = page.partition("### `up --json`")[2]
    described = {
        word
        for line in table.splitlines()
        if line.startswith("| `")
        for word in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert described == set(up.ready(options.Options(Path("x")), options.Ports()))


def test_ages() -> None:
    for text, expected in {"90s": 90, "1.5h": 5400, "7d": 604_800, "2w": 1_209_600, "10m": 600}.items():
        assert options.seconds(text) == expected
    for text in ("", "7", "d", "-1d", "0d", "1y", "1d1h", "1e3s", "\u0661d"):
        with pytest.raises(ValueError, match="is not an age"):
            options.seconds(text)


def test_sizes() -> None:
    sizes = {"500MB": 5 * 10**8, "64MiB": 64 << 20, "1.5 GiB": 3 << 29, "1kb": 1000, "1TB": 10**12}
    assert {text: options.size(text) for text in sizes} == sizes
    for text in ("", "5", "MB", "-1MB", "0MB", "1PB", "1 2MB", "0.0000001KB"):
        with pytest.raises(ValueError, match="is not a size"):
            options.size(text)
