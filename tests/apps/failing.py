"""The ml app, after one part of stagetrace, named by BREAK, was made to raise; /failures tells how often it has."""

import importlib
import os
from typing import Any

raised: list[int] = []


def fails(*_: Any, **__: Any) -> Any:
    raised.append(1)
    raise RuntimeError("injected fault")


module, _, path = os.environ["BREAK"].partition(":")
*owners, name = path.split(".")
owner = importlib.import_module(module)
for part in owners:
    owner = getattr(owner, part)
assert hasattr(owner, name), os.environ["BREAK"]
setattr(owner, name, fails)

from ml import app  # noqa: E402


@app.get("/failures")
def failures() -> int:
    return len(raised)


__all__ = ["app"]
