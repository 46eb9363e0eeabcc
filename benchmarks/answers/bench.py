"""How good the load generator of `stagetrace bench` is: python -m benchmarks.answers.bench [PART ...].

Parts: `overhead` (an idle fast server, against a plain loop over one socket), `clients` (the cost of a request for this
process, against aiohttp and httpx), `most` (the highest rate that it sends), `theory` (latency at a server with one
worker, against M/D/1 and M/M/1), `search` (how often the interval of --find holds the true rate, simulated).
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from stagetrace.analysis.bench import Search, Tried, judge, judge_clustered
from stagetrace.load import generator
from stagetrace.load.generator import Generator, Run
from stagetrace.load.http import Address, HttpSender, message

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

# One worker, first come first served: service times constant or exponential, 0 for an answer at once.
_SERVER: Final = """
import asyncio, random, sys
import httptools
mean_s, random_ = float(sys.argv[1]), sys.argv[2] == "exponential"
chance, free = random.Random(3), [0.0]
class Served(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.parser = transport, httptools.HttpRequestParser(self)
    def data_received(self, data):
        self.parser.feed_data(data)
    def on_message_complete(self):
        if not mean_s:
            return self.answer()
        own = asyncio.get_running_loop()
        free[0] = max(free[0], own.time()) + (chance.expovariate(1 / mean_s) if random_ else mean_s)
        own.call_at(free[0], self.answer)
    def answer(self):
        self.transport.write(b"HTTP/1.1 200 OK\\r\\ncontent-length: 2\\r\\n\\r\\nok")
async def main():
    server = await asyncio.get_running_loop().create_server(Served, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
from stagetrace.load import generator
generator.run(main())
"""
_REQUEST: Final = b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"


@contextmanager
def server(mean_s: float = 0.0, kind: str = "constant") -> Iterator[int]:
    """Give the port of a server."""
    argv = [sys.executable, "-c", _SERVER, str(mean_s), kind]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def sent(port: int, due_s: NDArray[np.float64], make: Callable[[int], Any] | None = None) -> tuple[Run, float]:
    """Send requests; return them and the CPU seconds that it took."""

    async def main() -> tuple[Run, float]:
        sender = (make or own)(port)
        await sender.open()
        before = time.process_time()
        ran = await Generator(due_s, sender, 30.0).run()
        cpu = time.process_time() - before
        await sender.close()
        return ran, cpu

    return generator.run(main())


def own(port: int) -> HttpSender:
    """Return the sender of `bench`."""
    return HttpSender(Address("127.0.0.1", port), [message("GET", "/x", [("host", "h")], None)], connections=1000)


class Other:
    """The same by another library."""

    def __init__(self, library: str, port: int) -> None:
        self._library, self._url = library, f"http://127.0.0.1:{port}/x"
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        if self._library == "aiohttp":
            import aiohttp

            self._client: Any = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1000))
        else:
            import httpx

            self._client = httpx.AsyncClient(trust_env=False)

    def send(self, _number: int, traceparent: str, done: Callable[[str | None], None]) -> Any:
        task = asyncio.get_running_loop().create_task(self._get(traceparent, done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return argparse.Namespace(sent_s=asyncio.get_running_loop().time(), cancel=task.cancel)

    async def _get(self, traceparent: str, done: Callable[[str | None], None]) -> None:
        headers = {"traceparent": traceparent}
        if self._library == "aiohttp":
            async with self._client.get(self._url, headers=headers) as response:
                await response.read()
        else:
            await self._client.get(self._url, headers=headers)
        done(None)

    async def close(self) -> None:
        await (self._client.close() if self._library == "aiohttp" else self._client.aclose())


def quantiles(values_s: NDArray[np.float64]) -> str:
    p50, p99 = np.quantile(values_s, [0.5, 0.99]) * 1e3
    return f"p50 {p50:7.3f} ms  p99 {p99:7.3f} ms"


def plain(port: int, count: int) -> NDArray[np.float64]:
    """Ask one after the other over one socket, each 5 ms after the last: nothing can take less in Python."""
    times = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(count):
            time.sleep(0.005)
            start = time.perf_counter()
            connection.sendall(_REQUEST)
            connection.recv(65536)
            times.append(time.perf_counter() - start)
    return np.array(times)


def overhead() -> None:
    with server() as port:
        sent(port, generator.constant(200, 1))
        print("plain loop, 1 socket     ", quantiles(plain(port, 2000)))
        ran, _ = sent(port, generator.constant(200, 10))
        print("bench, 200/s, from due   ", quantiles(ran.latency_s))
        print("   of that, sent late by ", quantiles(ran.late_s))
        print("   from when it was sent ", quantiles(ran.latency_s - ran.late_s))


def clients() -> None:
    with server() as port:
        for library in ("bench", "aiohttp", "httpx"):
            make = None if library == "bench" else partial(Other, library)
            ran, cpu = sent(port, generator.constant(200, 10), make)
            print(f"{library:8} 200/s  {quantiles(ran.latency_s)}  CPU per request {cpu / ran.sent * 1e6:5.0f} us")


def most() -> None:
    with server() as port:
        for rate in (1000, 2000, 4000, 6000, 8000, 10_000, 12_000):
            ran, cpu = sent(port, generator.constant(rate, 4))
            late = np.quantile(ran.late_s, 0.99) * 1e3
            print(f"{rate:6,}/s  {quantiles(ran.latency_s)}  late p99 {late:8.2f} ms  CPU {cpu / 4:4.0%} of a core")
            if late > 100:
                break


def theory() -> None:
    service = 0.01
    for kind in ("constant", "exponential"):
        for load in (0.3, 0.5, 0.7, 0.8):
            rate = load / service
            with server(service, kind) as port:
                sent(port, generator.poisson(rate, 1, 1))
                ran, _ = sent(port, generator.poisson(rate, 40, 2))
            half = 2 if kind == "constant" else 1
            mean = service + load * service / (half * (1 - load))
            print(
                f"{'M/D/1' if kind == 'constant' else 'M/M/1'} load {load}: mean {ran.latency_s.mean() * 1e3:6.2f} ms,"
                f" theory {mean * 1e3:6.2f} ms; late p99 {np.quantile(ran.late_s, 0.99) * 1e3:.2f} ms"
            )


def waits(rate: float, service_s: float, count: int, chance: np.random.Generator) -> NDArray[np.float64]:
    """Return latencies of M/D/1 by Lindley's recursion, in its running-maximum form."""
    due = np.cumsum(chance.exponential(1 / rate, count))
    steps = np.arange(count) * service_s
    found: NDArray[np.float64] = np.maximum.accumulate(due - steps) + steps + service_s - due
    return found


def search() -> None:
    chance = np.random.default_rng(1)
    for percentile, limit, full in ((0.9, 0.06, 500), (0.95, 0.06, 500), (0.99, 0.06, 880), (0.99, 0.06, 5000)):
        rates = np.arange(10, 50, 0.25)
        true = max(rate for rate in rates if np.quantile(waits(rate, 0.02, 400_000, chance), percentile) <= limit)
        inside, unknown, found_rates, widths = 0, 0, [], []
        for _ in range(300):
            plan, tried = Search(percentile, 5.0), list[Tried]()
            while (wanted := plan.next_rate(tried)) is not None:
                count = full if wanted.full else 60
                latency = waits(wanted.rate, 0.02, count, chance)
                over = int((latency > limit).sum())
                verdicts = judge(count, over, percentile), judge_clustered(latency, over, percentile)
                tried.append(Tried(wanted.rate, count, over, *verdicts, wanted.full))
            found = plan.result(tried)
            low, high = found.low or 0.0, found.high or np.inf
            inside += bool(low <= true <= high)
            unknown += found.low is None or found.high is None
            found_rates.append(found.rate or np.nan)
            widths.append(high / low if low else np.nan)
        low, middle, high = np.nanquantile(found_rates, [0.05, 0.5, 0.95])
        print(
            f"p{100 * percentile:g}, {full} requests a step: true {true:.1f}/s; found {middle:.1f} (90 %: {low:.1f} to"
            f" {high:.1f}); interval holds it in {inside / 3:.0f} % of 300, an end is unknown in {unknown / 3:.0f} %,"
            f" ends differ by {np.nanmedian(widths) - 1:.0%}"
        )


def main() -> None:
    parts = {"overhead": overhead, "clients": clients, "most": most, "theory": theory, "search": search}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", choices=[*parts, []], help="default: all")
    for part in parser.parse_args().part or parts:
        print(f"--- {part}")
        parts[part]()


if __name__ == "__main__":
    main()
