"""Services that are asked, and end: what they answered must have been delivered."""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from backend.processes import until
from services import AT_END, Service, recorded
from sink import SERVER

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from otlp.receiver import Receiver

ENDS_WITHIN_S = 90  # after half a minute gunicorn kills a worker that has not ended


def environment(receiver: Receiver, **more: str) -> dict[str, str]:
    return recorded(receiver.grpc, "* within 1s", **{**AT_END, **more})


def entries(receiver: Receiver) -> list[str]:
    return [span.trace_id.hex() for span in receiver.spans() if span.kind == SERVER]


def ask(service: Service, count: int) -> set[str]:
    """Make requests, four at a time; return the traces of those that were answered, which must be all."""
    answered: set[str] = set()
    left = list(range(count))

    def work() -> None:
        while left:
            with suppress(IndexError):
                left.pop()
                while True:  # a worker that ends refuses a connection; the request then never was
                    with suppress(httpx.TransportError):
                        trace_id, response = service.call("POST", "/predict", json={})
                        assert response.status_code == 200
                        answered.add(trace_id)
                        break

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) == count
    return answered


def booted(service: Service, workers: int) -> None:
    """Wait until so many workers are ready: one that has just been forked hears of no signal, traced or not."""
    until(lambda: service.log.count("recording in process") >= workers)


def recycled(service: Service, workers: int) -> None:
    """Wait until one of so many workers was recycled, and all are ready."""
    until(lambda: service.log.count("Booting worker") > workers)
    booted(service, service.log.count("Booting worker"))


def stop(service: Service, number: int = signal.SIGTERM) -> int:
    """Signal the service and wait for its end, which may take as long as its own bounds allow; return the exit code."""
    service.process.send_signal(number)
    return ended(service)


def ended(service: Service) -> int:
    """Wait for the service's end; return the exit code."""
    code = service.process.wait(ENDS_WITHIN_S)
    print(service.log)  # noqa: T201 -- shown where the test fails
    return code


def hang(client: socket.socket) -> None:
    """Ask for what takes a minute, and wait until the server at the other end has read that."""
    body = b'{"inference_s": 60}'
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    client.sendall(head % len(body) + body)
    port, own = (name[1] for name in (client.getpeername(), client.getsockname()))
    until(lambda: any(is_read for other, is_read in _accepted(port) if other == own))


def holds_connections(service: Service) -> bool:
    """Return whether the service has connections that it has not closed."""
    return any(client for client, _ in _accepted(int(service.url.rpartition(":")[2])))


def _accepted(port: int) -> Iterator[tuple[int, bool]]:
    """Yield the client's port (0: the listening socket itself) of each socket at `port`, and whether all is read."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, _, _, _, _, inode, *_ = line.split()
        if int(local[-4:], 16) == port and inode != "0":
            yield int(remote[-4:], 16), int(queues.partition(":")[2], 16) == 0


def pid(service: Service) -> int | None:
    """Return the process that answers, if one does."""
    with suppress(httpx.TransportError):
        found: int = service.call("GET", "/health")[1].json()["pid"]
        return found
    return None


def check(receiver: Receiver, answered: set[str]) -> None:
    """All that was answered was delivered, once."""
    receiver.wait_for(lambda r: answered <= set(entries(r)))
    delivered = [trace for trace in entries(receiver) if trace in answered]
    assert len(delivered) == len(answered)
