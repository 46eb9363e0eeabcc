"""On PYTHONPATH: as unimportable.py, from the start of the interpreter on."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

import unimportable

unimportable.install()
