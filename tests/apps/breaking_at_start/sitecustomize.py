"""Break parts of stagetrace in each process that has this folder in its PYTHONPATH: those that BREAK names."""

import os

if "BREAK" in os.environ and "STAGETRACE" in os.environ:
    from breaking import make_broken

    for part in os.environ["BREAK"].split(","):
        make_broken(part)
