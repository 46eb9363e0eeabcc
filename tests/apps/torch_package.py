"""A model compiled by AOTInductor: `GET /case/NAME` runs one call.

It takes a minute to compile, so that is done once for an environment, and kept in there.
"""

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import serve
from torch import nn

rows = torch.arange(12.0).reshape(3, 4) / 10
torch.manual_seed(0)
path = Path(sys.prefix) / "net.pt2"
if not path.exists():
    made = path.with_name(f"{os.getpid()}.pt2")
    with torch.no_grad():
        exported = torch.export.export(nn.Sequential(nn.Linear(4, 8), nn.ReLU()).eval(), (rows,))
        torch._inductor.aoti_compile_and_package(exported, package_path=str(made))
    made.rename(path)
package = torch._inductor.aoti_load_package(str(path))

CASES: dict[str, Callable[[], Any]] = {
    "package": lambda: package(rows),
    "package-copied": lambda model=copy.deepcopy(package): model(rows),
}

app = serve(CASES)
