"""Activation: the effect of the variable on a process, and that it has none on one that serves nothing."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services import run_python

if TYPE_CHECKING:
    import subprocess

ROOT = Path(__file__).parent.parent


def python(code: str, *flags: str, **env: str) -> subprocess.CompletedProcess[str]:
    return run_python(*flags, "-c", code, **env)


LOADED = "import sys, json; print(json.dumps(sorted(m for m in sys.modules if m.startswith('stagetrace'))))"


@pytest.mark.parametrize("value", ["", "0", "false", "False", None])
def test_off_loads_nothing(value: str | None) -> None:
    done = python(LOADED, **({} if value is None else {"STAGETRACE": value}))
    assert (json.loads(done.stdout), done.stderr) == ([], "")


@pytest.mark.parametrize("value", ["1", "true", "yes"])
def test_on_loads_the_registry_and_nothing_that_costs(value: str) -> None:
    """Nothing but nine small files of ours, not even `typing`, which costs a bare interpreter nine milliseconds."""
    code = LOADED + "; print(*sorted(m for m in sys.modules if not m.startswith('stagetrace')))"
    bare, done = python(code), python(code, STAGETRACE=value)
    modules, others = done.stdout.splitlines()
    assert json.loads(modules) == [
        "stagetrace",
        "stagetrace.activate",
        "stagetrace.patches",
        "stagetrace.patches.registry",
        "stagetrace.system",
        "stagetrace.system.import_hooks",
        "stagetrace.system.threads",
        "stagetrace_contrib",
        "stagetrace_contrib.registry",
    ]
    assert {*others.split()} - {*bare.stdout.splitlines()[1].split()} <= {"__future__"}
    assert done.stderr == ""


@pytest.mark.parametrize(
    "library",
    [
        *("flask", "django.core.handlers.wsgi", "onnxruntime", "anyio.to_thread", "uvicorn"),
        pytest.param("sklearn.linear_model", marks=pytest.mark.service),
    ],
)
def test_a_library_without_a_server_loads_no_opentelemetry(library: str) -> None:
    """A training script, a notebook and a command-line tool import the same libraries and serve nothing."""
    loaded = "*(name in sys.modules for name in ('stagetrace.guard', 'opentelemetry'))"
    code = f"import {library}, sys; print({loaded})"
    assert python(code, STAGETRACE="1").stdout.split() == ["True", "False"]


@pytest.mark.smoke
def test_isolated_mode_still_activates() -> None:
    """`python -I` ignores PYTHONPATH, which the usual wrapper commands rely on."""
    assert "stagetrace.activate" in json.loads(python(LOADED, "-I", STAGETRACE="1").stdout)


@pytest.mark.thorough
def test_a_library_imported_before_us_is_patched_too() -> None:
    code = """
from fastapi import FastAPI
import sklearn.linear_model, onnxruntime
before = FastAPI.__call__
from stagetrace.activate import activate
activate(); activate()
print(FastAPI.__call__ is not before, hasattr(sklearn.linear_model.LogisticRegression.predict, "_stagetrace_wrapped"))
print(FastAPI.__call__.__wrapped__ is before)
"""
    assert python(code).stdout.split() == ["True", "True", "True"]


def test_patched_modules_keep_their_loader_and_spec() -> None:
    code = """
import flask.app, inspect, importlib.util
print(type(flask.app.__spec__.loader).__name__, bool(inspect.getsource(flask.app.Flask)))
"""
    assert python(code, STAGETRACE="1").stdout.split() == ["SourceFileLoader", "True"]


def test_modules_of_one_zip_file_are_patched_each_for_itself(tmp_path: Path) -> None:
    """They share a loader."""
    with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
        archive.writestr("waitress/__init__.py", "")
        archive.writestr("waitress/server.py", "def create_server(application): pass\nfrom waitress import later\n")
        archive.writestr("waitress/later.py", "")
        archive.writestr("flask/__init__.py", "")
        archive.writestr("flask/app.py", "from flask import signals\nclass Flask: pass\n")
        archive.writestr("flask/signals.py", "")
    (tmp_path / "seen.py").write_text("def patch(module):\n    print(module.__name__)\n")
    code = f"""
import sys
from stagetrace.system.import_hooks import finder
finder._patches = dict.fromkeys(finder._patches, "seen:patch")
sys.path[:0] = {[str(tmp_path / "app.pyz"), str(tmp_path)]!r}
import waitress.server, flask.app
"""
    done = python(code, STAGETRACE="1")
    assert (done.stdout.split(), done.stderr) == (["waitress.server", "flask.app"], "")


@pytest.mark.parametrize(
    "body",
    [
        "def fail():\n    raise TypeError('bad')\nfail()",
        "import no_such_module",
        "def (",
        "import warnings; warnings.warn('old', DeprecationWarning, stacklevel=2); 1 / 0",
    ],
)
def test_a_failing_import_looks_as_it_does_untraced(body: str, tmp_path: Path) -> None:
    """Python omits the frames of an import from tracebacks and warnings: ours, too."""
    (tmp_path / "flask").mkdir()
    (tmp_path / "flask" / "__init__.py").touch()
    (tmp_path / "flask" / "app.py").write_text(body)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import flask.app"
    untraced, traced = python(code, "-W", "always"), python(code, "-W", "always", STAGETRACE="1")
    assert traced.stderr == untraced.stderr
    assert "Traceback" in traced.stderr


@pytest.mark.thorough
def test_libraries_that_are_not_to_be_patched_are_left_as_they_are() -> None:
    code = """
import sklearn.base, grpc
from stagetrace.system.import_hooks import finder
patched = {name.partition(".")[0] for name in finder.patched}
print(hasattr(sklearn.base.BaseEstimator.__setstate__, "__wrapped__"), *sorted(patched))
"""
    done = python(code, STAGETRACE="1", STAGETRACE_DISABLED_INSTRUMENTATIONS=" sklearn, concurrent,sklaern")
    assert done.stdout.split() == ["False", "grpc", "signal"]
    logged = done.stderr.splitlines()
    assert len(logged) == 2
    assert "STAGETRACE_DISABLED_INSTRUMENTATIONS names sklaern, for which there is no patch" in logged[0]
    assert "sklearn" in logged[1]


def test_a_broken_patch_disables_itself_alone_and_logs_it() -> None:
    code = """
import sys
from stagetrace.system.import_hooks import finder
from stagetrace.patches.registry import PATCHES
finder._patches["flask.app"] = "no.such.patch:patch_app"
import flask.app, fastapi
print(hasattr(fastapi.FastAPI.__call__, "__wrapped__"))
"""
    done = python(code, STAGETRACE="1")
    assert done.stdout.strip() == "True"
    assert "cannot patch flask.app (ModuleNotFoundError: No module named 'no')" in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3


def test_a_failing_activation_leaves_the_interpreter_alone() -> None:
    code = """
import stagetrace.patches.registry as registry
registry.install = lambda: 1 / 0
from stagetrace.activate import from_environment
from_environment()
print("fine")
"""
    done = python(code, STAGETRACE="1")
    assert done.stdout.strip() == "fine"
    assert "ZeroDivisionError" in done.stderr


@pytest.mark.thorough
def test_the_wheel_ships_all_files_that_are_no_modules(tmp_path: Path) -> None:
    done = run_python("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        pth = archive.read("stagetrace.pth").decode()
    shipped = {"stagetrace.pth", "stagetrace.start", "stagetrace/py.typed", "stagetrace/_site/sitecustomize.py"}
    assert shipped <= {*names}
    page = ROOT / "src/stagetrace/page"
    files = [path for folder in ("templates", "static") for path in (page / folder).rglob("*.*")]
    assert {path.relative_to(ROOT / "src").as_posix() for path in files} <= {*names}
    assert len(pth.splitlines()) == 1
    assert not any(name.startswith(("tests", "examples")) for name in names)


def test_public_names_are_sorted_few_and_there() -> None:
    import stagetrace

    assert stagetrace.__all__ == sorted(stagetrace.__all__)
    assert len(stagetrace.__all__) <= 15
    assert dir(stagetrace) == stagetrace.__all__
    for name in stagetrace.__all__:
        assert getattr(stagetrace, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = stagetrace.nothing


def test_importing_the_package_imports_no_web_and_no_model_library() -> None:
    done = python("import stagetrace, sys; [getattr(stagetrace, n) for n in stagetrace.__all__]; print(*sys.modules)")
    loaded = set(done.stdout.split())
    assert not loaded & {"fastapi", "starlette", "uvicorn", "sklearn", "numpy", "onnxruntime", "grpc"}
    assert sys.version_info >= (3, 10)


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({}, "the-proxy"),
        ({"OTEL_SERVICE_NAME": "shop"}, "shop"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop"}, "shop"),
    ],
)
def test_a_server_names_its_service_where_the_environment_does_not(env: dict[str, str], name: str) -> None:
    code = (
        "from stagetrace.request.context import here\n"
        "from stagetrace.runtime.runtime import runtime\n"
        "from stagetrace.tracing import resource\n"
        "resource.name_service('the-proxy')\n"
        "runtime.prepare_now(); print(here.resource().attributes['service.name'])"
    )
    done = python(code, STAGETRACE="1", OTEL_TRACES_EXPORTER="none", STAGETRACE_STATUS="0", **env)
    assert done.stdout.strip() == name, done.stderr


COLLECTIONS = """
import gc, os, threading
from stagetrace.system.import_hooks import uncollected

gc.set_threshold(700, 10, 10)
def fork():
    child = os.fork()
    if child == 0:
        os._exit(gc.get_threshold() != (700, 10, 10))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
def many():
    collected = gc.get_stats()[0]["collections"]
    kept = [[] for _ in range(10_000)]
    return gc.get_stats()[0]["collections"] - collected, gc.get_threshold(), uncollected(gc.get_threshold), fork()
print(uncollected(many), gc.get_threshold())
try:
    uncollected(lambda: 1 / 0)
except ZeroDivisionError:
    print(gc.get_threshold())
uncollected(lambda: gc.set_threshold(5, 6, 7))
print(gc.get_threshold(), fork())
"""


def test_no_garbage_is_collected_while_our_modules_are_imported() -> None:
    """Thresholds are as before afterwards, in a child that is forked meanwhile, too; what others have set stays."""
    assert python(COLLECTIONS).stdout.splitlines() == [
        "(0, (0, 10, 10), (0, 10, 10), 0) (700, 10, 10)",
        "(700, 10, 10)",
        "(5, 6, 7) 1",
    ]
