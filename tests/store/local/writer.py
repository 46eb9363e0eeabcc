"""A process that writes to a local store until it is killed, and says on stdout what was acknowledged.

python -m store.local.writer FOLDER FIRST KEPT: spans are numbered from FIRST; each line is `FIRST COUNT` of a request
on disk. The store moves, merges and checkpoints after few spans, so that a kill meets each of these. KEPT: as
`power.record` has it.
"""

from __future__ import annotations

import os
import sys
import threading
from itertools import count
from pathlib import Path

from stagetrace.store.local import LocalStore, delta, store
from store.local import power
from store.local.made import MS, NOW, request, span

THREADS = 3
PER_REQUEST = 7


def main() -> None:
    store.FLUSH_ROWS = 200  # type: ignore[misc]  # the constants are final for everyone else
    delta.CHECKPOINT_EVERY = 4  # type: ignore[misc]
    power.record(Path(sys.argv[3]), Path(sys.argv[1]))
    opened = LocalStore.open(Path(sys.argv[1]))
    numbers = count(int(sys.argv[2]), PER_REQUEST)
    os.write(1, b"ready\n")

    def write() -> None:
        while True:
            first = next(numbers)
            spans = [
                span(at, trace=first, start=NOW + at * MS, own="x" * 50) for at in range(first, first + PER_REQUEST)
            ]
            data = request(spans)
            opened.append(data)
            os.write(1, b"%d %d\n" % (first, PER_REQUEST))

    threads = [threading.Thread(target=write) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
