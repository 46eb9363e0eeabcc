"""Serve what the measured service depends on, in a process of its own: it responds as late as its query demands."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.ground_truth.processes import start

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


@contextmanager
def dependency() -> Iterator[str]:
    """Run the dependency until the block ends; yield its URL."""
    with start([sys.executable, "-m", "benchmarks.causes.dependency"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Respond to one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = re.search(rb"ms=(\d+)", head)
    await asyncio.sleep(int(found[1]) / 1e3 if found else 0)
    writer.write(ANSWER)
    writer.close()


async def main() -> None:
    """Serve, and print the port."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
