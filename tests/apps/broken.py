"""The app of APP, by default ml, after parts of stagetrace, `module:attribute.path,...` in BREAK, were made to raise."""

import importlib
import os
from typing import Any


def fails(*_: Any, **__: Any) -> Any:
    raise RuntimeError("injected fault")


for where in filter(None, os.environ.get("BREAK", "").split(",")):
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    assert hasattr(owner, name), where
    setattr(owner, name, fails)

app = importlib.import_module(os.environ.get("APP", "ml")).app
