"""The demo's ticket router as it is: `/predict` in FastAPI's thread pool, bound by CPU and the GIL."""

from __future__ import annotations

import sys
from importlib import import_module

from stagetrace.cli.demo import service_folder

sys.path.insert(0, str(service_folder()))
app = import_module("app").app

print("ready", flush=True)
