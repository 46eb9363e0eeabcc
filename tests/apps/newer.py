"""The service APP, under a version of a library in which a name is missing that only its patch needs.

NEWER is `module:name`.
"""

import importlib
import importlib.machinery
import os
import runpy
import sys
from typing import Any

MODULE, _, NAME = os.environ["NEWER"].partition(":")


class Newer:
    """Finds the module as it is, and takes the name out as soon as it is there."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:  # noqa: ARG002
        if name != MODULE:
            return None
        spec: Any = importlib.machinery.PathFinder.find_spec(name, path)
        original = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            original(module)
            delattr(module, NAME)

        spec.loader.exec_module = exec_module
        return spec


assert MODULE not in sys.modules
sys.meta_path.insert(1, Newer())

if __name__ == "__main__":
    runpy.run_path(f"{os.environ['APP']}.py", run_name="__main__")
else:
    app = importlib.import_module(os.environ["APP"]).app
