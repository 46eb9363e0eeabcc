"""The traffic of the demo: a few faults, and then a day of a service, in a minute."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple
from urllib.parse import urlsplit

MESSAGE: Final = "Hello, I paid for order A-{0} twice, $49.90 each time. Please give one of them back!"
_PATIENCE_S: Final = 60.0

# The first act.
_ORDINARY: Final = 150
BLOCKING: Final = "/explain"
_SLOW_MODEL, _SLOW_CLIENTS, _EXPLAINED, _CROWD = 6, 2, 2, 60
SLOW_AT_LEAST: Final = _SLOW_MODEL + _SLOW_CLIENTS + _EXPLAINED

FAULTS: Final = f"""  {_ORDINARY} ordinary requests
  {_SLOW_MODEL} that ask for v2 of the model, a forest of 3,000 trees
  {_SLOW_CLIENTS} from a client that uploads slowly
  {_EXPLAINED} to {BLOCKING}, which computes inside an `async def` and blocks the event loop
  {_CROWD} at the same moment, each with a long text, for the 40 threads of the pool"""

# The second one.
TENANT_HEADER: Final = "x-tenant"
TENANT: Final = "http.request.header.x_tenant"  # the attribute that holds it
_TENANTS: Final = ("acme", "birch", "cedar")
_RATE: Final = 25.0  # requests a second, as they come
_PHASE_S: Final = 12.0
PRESSED: Final = "/predict/batch"  # by crowds
_CROWDS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24)  # clients that send without a pause
_CROWD_S: Final = 2.0
_QUOTED: Final = 150  # messages
_LONG: Final = 80  # messages that one tenant sends at once

DAY: Final = f"""  {_PHASE_S:.0f} s of ordinary requests of three tenants
  {_PHASE_S:.0f} s in which each message quotes the whole thread before it: it drifts
  {_CROWD_S * len(_CROWDS):.0f} s in which ever more clients send without a pause, up to {_CROWDS[-1]}: it saturates
  {_PHASE_S:.0f} s of ordinary requests to the next release, whose model is a forest of 100 trees"""


class Request(NamedTuple):
    """One message: when it is due, in seconds, its sender and its text."""

    due_s: float
    tenant: str
    text: str


def send_faults(address: str) -> None:
    """Send the first act."""
    for number in range(_ORDINARY):
        _post(address, "/predict", {"text": MESSAGE.format(100_000 + number)})
    for number in range(_SLOW_MODEL):
        _post(address, "/predict", {"text": MESSAGE.format(number), "model": "v2"})
    for number in range(_SLOW_CLIENTS):
        _post_slowly(address, "/predict", {"text": MESSAGE.format(number)})
    for number in range(_EXPLAINED):
        _post(address, BLOCKING, {"text": " ".join(MESSAGE.format(number) for _ in range(70))})
    long_text = "\n".join(MESSAGE.format(number) for number in range(400))
    _together(lambda _: _post(address, "/predict", {"text": long_text}), _CROWD)


def send_before_release(address: str) -> None:
    """Send the traffic of the first release."""
    chance = random.Random(1)  # noqa: S311 -- traffic
    _send(address, _arrivals(chance, quoted=0))
    _send(address, _arrivals(chance, quoted=_QUOTED))
    for crowd in _CROWDS:
        _press(address, crowd)


def send_after_release(address: str) -> None:
    """Send the traffic of the second release."""
    _send(address, _arrivals(random.Random(2), quoted=0))  # noqa: S311 -- traffic


def _arrivals(chance: random.Random, quoted: int) -> Iterator[Request]:
    """Yield the requests of a phase: at random times (Poisson), the longest ones those of one tenant."""
    at = 0.0
    while (at := at + chance.expovariate(_RATE)) < _PHASE_S:
        tenant = chance.choice(_TENANTS)
        lines = quoted + (_LONG if tenant == _TENANTS[-1] else 1)
        yield Request(at, tenant, "\n".join(MESSAGE.format(chance.randrange(10**5, 10**6)) for _ in range(lines)))


def _send(address: str, requests: Iterator[Request]) -> None:
    """Send each request when it is due, whether or not earlier ones were answered."""
    began = time.monotonic()
    with ThreadPoolExecutor(64) as pool:
        for one in requests:
            time.sleep(max(0.0, began + one.due_s - time.monotonic()))
            pool.submit(_post, address, "/predict", {"text": one.text}, {TENANT_HEADER: one.tenant})


def _press(address: str, clients: int) -> None:
    """Let some clients send one request after the other."""
    end = time.monotonic() + _CROWD_S

    def press(number: int) -> None:
        while time.monotonic() < end:
            headers = {TENANT_HEADER: _TENANTS[number % len(_TENANTS)]}
            _post(address, PRESSED, {"texts": [MESSAGE.format(100_000 + number)]}, headers)

    _together(press, clients)


def _together(work: Callable[[int], None], count: int) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _post(address: str, path: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None) -> None:
    request = urllib.request.Request(  # noqa: S310 -- our own service on loopback
        address + path, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=_PATIENCE_S) as response:
        response.read()


def _post_slowly(address: str, path: str, body: dict[str, str]) -> None:
    """Send like a phone on a bad connection: in chunks, with pauses."""
    content = json.dumps(body).encode()
    at = urlsplit(address)
    connection = http.client.HTTPConnection(at.hostname or "", at.port or 0, timeout=_PATIENCE_S)
    connection.putrequest("POST", path)
    connection.putheader("content-type", "application/json")
    connection.putheader("content-length", str(len(content)))
    connection.endheaders()
    step = len(content) // 4 + 1
    for start in range(0, len(content), step):
        connection.send(content[start : start + step])
        time.sleep(0.1)
    connection.getresponse().read()
    connection.close()
