"""The example notebook and pandas and polars in a real Jupyter kernel, in an environment that has them.

The environment of the other tests has no pandas: each service with scikit-learn would load it.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import tomllib  # type: ignore[import-not-found]  # there from 3.11 on, which the tests need

from environments import ROOT, interpreter_once

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.thorough

EXAMPLE = ROOT / "examples/notebook/late_requests.ipynb"
JUPYTER = ("nbclient>=0.10", "nbformat>=5", "ipykernel>=7", "pandas>=2", "polars>=1")
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[2])
"""


def executed(path: Path, folder: Path, store: str) -> list[dict[str, Any]]:
    """Return the cells of a notebook after a kernel has run them, against a store."""
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["backend"]
    python = interpreter_once("notebook", (*JUPYTER, *extra))
    (folder / "kernels/python3").mkdir(parents=True)
    spec = {"argv": [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "Python 3"}
    (folder / "kernels/python3/kernel.json").write_text(json.dumps({**spec, "language": "python"}))
    environment = {**os.environ, "STAGETRACE_STORE": store, "JUPYTER_PATH": str(folder), "IPYTHONDIR": str(folder)}
    environment |= {"JUPYTER_PLATFORM_DIRS": "1", "XDG_DATA_HOME": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)}
    argv = [python, "-c", EXECUTE, str(path), str(folder / "executed.ipynb")]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cells: list[dict[str, Any]] = json.loads((folder / "executed.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def results(cells: Sequence[dict[str, Any]], kind: str) -> list[str]:
    """Return the results of cells in one form, and fail where a cell printed an error or a warning."""
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] in ("error", "stream")] == []
    return ["".join(output["data"].get(kind, "")) for output in outputs]


def test_the_example_runs(url: str, tmp_path: Path) -> None:
    """Its cells show the sentence of each answer, the requests with their tenant, and the waterfall of a breach."""
    services, why, requests, groups, causes, values, trace, sql = results(executed(EXAMPLE, tmp_path, url), "text/html")
    assert (services, values) == ("", "")
    assert "12 of 60 judged requests missed their objective" in why
    assert "<p>60 requests, complete; the first 20 are shown</p>" in requests
    assert "Requests with tenant.id acme miss their objective" in causes
    assert "acme" in groups
    assert trace.count('class="span"') == 3
    assert "<strong>BREACH shop POST /predict" in trace
    assert "<td>inference</td>" in sql


def test_frames_have_the_types_of_the_store(url: str, tmp_path: Path) -> None:
    """Times, numbers, truths and absent values are what pandas and polars have for them."""
    import ast

    lines = [
        "import stagetrace.read as st",
        "store = st.open()",
        'found = store.requests(attributes=("tenant.id",))',
        "a, b = found.df(), found.polars()",
        "kinds = lambda frame: {one: str(frame[one].dtype) for one in ('start_time', 'duration_ms', 'breached')}",
        "(a.shape, kinds(a), sorted(a['tenant.id'].unique()), bool(a['model'].isna().all()))",
        "(b.shape, kinds(b), sorted(b['tenant.id'].unique()), b['model'].null_count())",
        "(store.spans().df().shape[0], store.sql('SELECT 1 AS one').polars().to_dicts())",
        "(store.requests(service=None, since='2999-01-01', until='2999-01-02').df().shape[0])",
    ]
    cells: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{at}", "metadata": {}, "outputs": [], "execution_count": None, "source": one}
        for at, one in enumerate(lines)
    ]
    notebook = tmp_path / "made.ipynb"
    notebook.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    pandas, polars, others, none = map(ast.literal_eval, results(executed(notebook, tmp_path, url), "text/plain"))
    width = 48
    tenants = ["<b>other</b>", "acme"]
    assert pandas == (
        (60, width),
        {"start_time": "datetime64[us]", "duration_ms": "float64", "breached": "bool"},
        tenants,
        True,
    )
    assert polars[0] == (60, width)
    assert polars[1]["duration_ms"] == "Float64"
    assert polars[1]["breached"] == "Boolean"
    assert polars[1]["start_time"].startswith("Datetime(time_unit='us'")
    assert polars[2:] == (tenants, 60)
    assert others == (180, [{"one": 1}])
    assert none == 0
