"""The service APP, from whose start on no module of UNIMPORTABLE can be imported that is not imported already.

Names are separated by commas, and each stands for what is below it too.
"""

import importlib
import os
import runpy
import sys
from typing import Any

NAMES = tuple(os.environ["UNIMPORTABLE"].split(","))


class Finder:
    """Finds none of them, and keeps others from finding them."""

    def find_spec(self, name: str, *_: Any) -> None:
        if any(f"{name}.".startswith(f"{one}.") for one in NAMES):
            raise ImportError(f"no module named {name!r} in this test")


def install() -> None:
    sys.meta_path.insert(0, Finder())


if __name__ == "__main__":
    importlib.import_module("grpc.aio")
    install()
    runpy.run_path(f"{os.environ['APP']}.py", run_name="__main__")
elif "APP" in os.environ:
    app = importlib.import_module(os.environ["APP"]).app
    import stagetrace

    # As a person has who writes `from stagetrace import stage`.
    assert stagetrace.stage, stagetrace.carry
    install()
