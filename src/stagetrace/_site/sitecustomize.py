"""Put first on PYTHONPATH by `stagetrace run`: activates, then lets the sitecustomize that it hides run too."""

import importlib.machinery
import importlib.util
import os
import sys

here = os.path.dirname(os.path.abspath(__file__))

try:
    from stagetrace.activate import from_environment

    from_environment()
except Exception as error:  # noqa: BLE001 -- the interpreter that starts belongs to somebody else
    print(f"stagetrace: cannot activate ({type(error).__name__}: {error}); the program runs untraced.", file=sys.stderr)  # noqa: T201

hidden = importlib.machinery.PathFinder.find_spec(
    "sitecustomize", [entry for entry in sys.path if os.path.abspath(entry) != here]
)
if hidden is not None and hidden.loader is not None:
    module = importlib.util.module_from_spec(hidden)
    sys.modules["sitecustomize"] = module
    hidden.loader.exec_module(module)
