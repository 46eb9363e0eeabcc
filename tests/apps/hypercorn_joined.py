"""hypercorn, whose main process waits for all workers to end and says how each did.

As it is, it looks at all as soon as one has closed its pipes. Whether it finds none, one or both ended is chance, and
its exit code is 0, or 241 where it finds one, and the other a moment later.
"""

import sys
from multiprocessing import active_children
from typing import Any

from hypercorn import run
from hypercorn.__main__ import main


def joined(_: Any) -> None:
    """Wait until each worker has ended, in place of `multiprocessing.connection.wait`."""
    for worker in active_children():
        worker.join()
        print(f"a worker ended with {worker.exitcode}", flush=True)  # noqa: T201


if __name__ == "__main__":
    run.wait = joined
    sys.exit(main())
