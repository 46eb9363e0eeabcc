"""A process that reads a local store again and again while another one writes to it.

python -m store.local.reading FOLDER: for each line on stdin (how many spans are acknowledged by now) one line on
stdout: how many spans it finds, how many different ones.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stagetrace.store.local import LocalReader
from store.local.made import ids


def main() -> None:
    with LocalReader.open(Path(sys.argv[1])) as reader:
        for _ in sys.stdin:
            found = ids(reader)
            print(len(found), len(set(found)), flush=True)  # noqa: T201 -- its answer


if __name__ == "__main__":
    main()
