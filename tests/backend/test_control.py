"""The socket by which commands write to a store that a back end has open: whom each side trusts, and how it ends."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backend.processes import Lines, started
from backend.running import request, run_up
from cli.running import printed
from stagetrace.backend.control import Running
from stagetrace.backend.options import Limits
from stagetrace.errors import StoreError
from stagetrace.store.local import LocalStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from backend.running import Up

ask_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may run a process of another user")
CLIENT = """
import os, socket, sys
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as line:
    line.connect(sys.argv[1])
    try:
        line.sendall(b"POST /prune HTTP/1.0\\r\\nContent-Length: 1\\r\\n\\r\\n1")
        print("received", line.recv(100), flush=True)
    except (BrokenPipeError, ConnectionResetError):
        print("received", b"", flush=True)
"""
SERVER = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as listening:
    listening.bind(sys.argv[1])
    os.setuid(65534)
    listening.listen()
    print("ready", flush=True)
    print("received", listening.accept()[0].recv(100), flush=True)
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Up]:
    """Run a back end that no other test uses."""
    with run_up(tmp_path) as running:
        yield running


def control(up: Up) -> Path:
    """Return the path of the socket, as the folder's lock has it."""
    return Path((Path(up.ready["data"]) / "lock").read_text().splitlines()[1])


def exchange(path: Path, sent: bytes) -> bytes:
    """Send bytes to a socket and return its whole response."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(60)
        line.connect(str(path))
        line.sendall(sent)
        return b"".join(iter(lambda: line.recv(65536), b""))


@ask_root
@pytest.mark.usefixtures("services")
def test_another_user_is_not_served(own: Up, tmp_path: Path) -> None:
    """Not even where the socket's path is open to everyone."""
    path = control(own)
    path.parent.chmod(0o755)
    path.chmod(0o777)
    with started([sys.executable, "-S", "-c", CLIENT, str(path)]) as client:
        assert Lines(client.stdout).next() == "received b''"
    assert "a process of another user connected" in (tmp_path / "up.log").read_text()
    assert exchange(path, b"POST /prune HTTP/1.0\r\nContent-Length: 1\r\n\r\n1").endswith(b'{"removed":0}')


@ask_root
def test_nothing_is_sent_to_another_user(tmp_path: Path) -> None:
    """Who made the socket of a process that has ended anew."""
    path = tmp_path / "control"
    with (
        started([sys.executable, "-S", "-c", SERVER, str(path)]) as server,
        LocalStore.open(tmp_path / "data") as store,
    ):
        lines = Lines(server.stdout)
        assert lines.next() == "ready"
        store.announce(path)
        with pytest.raises(StoreError, match="is of another user than the store in"):
            Running(tmp_path / "data", path).append(request("secret").SerializeToString())
        assert lines.next() == "received b''"


@pytest.mark.usefixtures("services")
def test_what_is_no_request_of_a_command_is_refused(up: Up) -> None:
    path, counted = control(up), 'stagetrace_refused_requests_total{reason="malformed"}'
    before = up.metric(counted)
    for sent, words in {
        b"POST /append HTTP/1.0\r\nContent-Length: 99999999999\r\n\r\n": b"67108864 bytes",
        b"POST /append HTTP/1.0\r\nContent-Length: 3\r\n\r\n\xff\xff\xff": b" 400 ",
        b"POST /prune HTTP/1.0\r\nContent-Length: 1\r\n\r\nx": b"is not a time",
        b"POST /other HTTP/1.0\r\nContent-Length: 0\r\n\r\n": b"another version",
    }.items():
        assert words in exchange(path, sent), sent
    with closing(Running(Path(up.ready["data"]), path)) as running:
        with pytest.raises(StoreError, match="stop it, and repeat"):
            running.append(bytes(Limits().request + 1))
        assert running.append(request("after", "these").SerializeToString()) == (2, 0, None)
    assert up.metric(counted) == before + 1


@pytest.mark.usefixtures("services")
def test_the_back_end_ends_while_a_command_is_silent(own: Up) -> None:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(control(own)))
        line.sendall(b"POST /append HTTP/1.0\r\nContent-Length: 9\r\n\r\n")
        assert own.stop(signal.SIGTERM) == 0
        assert b" 200 " not in line.recv(65536)


def test_a_lock_deletes_no_file_but_a_socket(tmp_path: Path) -> None:
    """A folder that was copied from elsewhere names whatever its maker wanted."""
    LocalStore.open(tmp_path / "data").close()
    named = tmp_path / "named" / "control"
    named.parent.mkdir()
    named.write_text("mine")
    (tmp_path / "data" / "lock").write_text(f"1\n{named}")
    printed("prune", "--before", "1d", "--store", tmp_path / "data")
    assert named.read_text() == "mine"
    named.unlink()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(named))
    (tmp_path / "data" / "lock").write_text(f"1\n{named}")
    printed("prune", "--before", "1d", "--store", tmp_path / "data")
    assert not named.parent.exists()
