"""The app of APP, by default ml, after parts of stagetrace, `module:attribute.path,...`, were made to raise or to hang.

BREAK names those that raise, HANG those that never return.
"""

import importlib
import os
import sys

from breaking import fails, hangs, replace

for variable, instead in (("BREAK", fails), ("HANG", hangs)):
    for where in filter(None, os.environ.get(variable, "").split(",")):
        replace(where, instead)

app = importlib.import_module(os.environ.get("APP", "ml")).app
if "sleepy" in sys.modules:
    sys.modules["sleepy"].fitted_pipeline()  # here, not within a request
