"""Services of known capacity for `bench`: a process each, so that they take no time from the load generator's."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A queue before one worker that takes SERVICE_S for each request; stalls for STALL_S before the STALLS_AT'th.
_WORKER = """
import asyncio, sys
service_s, stall_s, stalls_at, status = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
free, served = [0.0], [0]
async def serve(reader, writer):
    loop = asyncio.get_running_loop()
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            for line in head.lower().split(b"\\r\\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line[15:]))
            served[0] += 1
            if served[0] == 1:
                print("asked", flush=True)
            stall = stall_s if served[0] == stalls_at else 0.0
            free[0] = max(free[0], loop.time()) + service_s + stall
            await asyncio.sleep(free[0] - loop.time())
            writer.write(b"HTTP/1.1 %s X\\r\\ncontent-length: 2\\r\\n\\r\\nok" % status.encode())
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""


@contextmanager
def worker(service_s: float = 0.0, **options: float) -> Iterator[str]:
    """Give the URL of a service with one worker."""
    with watched(service_s, **options) as (url, _):
        yield url


@contextmanager
def watched(
    service_s: float = 0.0, *, stall_s: float = 0.0, stalls_at: float = 0, status: float = 200
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Give the URL, and what waits until the first request has come."""
    arguments = [str(one) for one in (service_s, stall_s, stalls_at, status)]
    process = subprocess.Popen([sys.executable, "-c", _WORKER, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/predict", process.stdout.readline
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
