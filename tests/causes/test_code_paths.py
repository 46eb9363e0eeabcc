"""Whose code a place is, by its file, and the short path of the file."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from services import PYTHON, clean_environment
from stagetrace.causes import code as code_paths
from stagetrace.causes.code import application_place, is_library, short_path
from stagetrace.sources import stacks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

    from stagetrace.sources.stacks import Stack

SITE = sysconfig.get_paths()["purelib"]
STANDARD = sysconfig.get_paths()["stdlib"]
HERE = str(Path.cwd())
template = (lambda: None).__code__


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    caches = (code_paths.is_library, code_paths.short_path, code_paths._package)
    for one in caches:
        one.cache_clear()
    yield
    for one in caches:
        one.cache_clear()


@pytest.mark.parametrize(
    ("path", "short"),
    [
        (f"{SITE}/sqlalchemy/engine/base.py", "sqlalchemy/engine/base.py"),
        ("/usr/lib/python3/dist-packages/numpy/linalg.py", "numpy/linalg.py"),
        ("/root/.pex/installed_wheels/0/1f2e/numpy-2.0-cp311.whl/numpy/linalg.py", "numpy/linalg.py"),
        (f"{HERE}/.venv/lib/python3.11/site-packages/torch/nn.py", "torch/nn.py"),
        (f"{STANDARD}/threading.py", "threading.py"),
        (f"{STANDARD}/asyncio/tasks.py", "asyncio/tasks.py"),
        (f"/usr/lib/{code_paths._STANDARD_ZIP}/json/decoder.py", "json/decoder.py"),
        ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap>"),
        ("<string>", "<string>"),
        ("<attrs generated init app.Model>", "<attrs generated init app.Model>"),
    ],
)
def test_a_file_of_a_library(path: str, short: str) -> None:
    assert is_library(path)
    assert short_path(path) == short


@pytest.mark.parametrize(
    ("path", "short"),
    [
        (f"{HERE}/app.py", "app.py"),
        (f"{HERE}/service/app.py", "service/app.py"),
        (f"{HERE}/service.zip/service/app.py", "service.zip/service/app.py"),
        ("./service/inner/app.py", "service/inner/app.py"),
        ("app.py", "app.py"),
        ("/somewhere/with/a/name/service/app.py", "service/app.py"),  # nothing of the folders of a user
        ("/tmp/ipykernel_123/456.py", "ipykernel_123/456.py"),  # noqa: S108
        ("<ipython-input-3-1f2e>", "<ipython-input-3-1f2e>"),
        ("<stdin>", "<stdin>"),
        ("<console>", "<console>"),
    ],
)
def test_a_file_of_the_application(path: str, short: str) -> None:
    assert not is_library(path)
    assert short_path(path) == short


def test_a_path_is_shortened_to_where_it_is_imported_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The innermost folder: that of a package may be in that of a script. Some programs add objects of `pathlib`."""
    monkeypatch.setattr(sys, "path", [*sys.path, "", "/", "/srv/app", "/srv/app/src", Path("/srv/other")])
    assert short_path("/srv/app/src/scores/model.py") == "scores/model.py"
    assert short_path("/srv/app/run.py") == "run.py"
    assert short_path("/srv/other/deep/in/it.py") == "deep/in/it.py"


def test_a_folder_that_is_gone_is_no_working_directory(tmp_path: Path) -> None:
    code = "import os, shutil; os.chdir('x'); shutil.rmtree('../x'); "
    code += "from stagetrace.causes.code import short_path; print(short_path('/a/b/c.py'))"
    (tmp_path / "x").mkdir()
    env = clean_environment() | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([PYTHON, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert found.stdout == "b/c.py\n"


SCRIPT = "from found import where\nprint(where())\n"
FOUND = """
import sys
from stagetrace.causes.code import is_library, short_path
def where():
    frames = [sys._getframe(), sys._getframe(1)]
    return [(is_library(one.f_code.co_filename), short_path(one.f_code.co_filename)) for one in frames]
"""


@pytest.mark.parametrize("way", ["script", "relative script", "module", "zip"])
def test_a_program_in_each_form(way: str, tmp_path: Path) -> None:
    """The file that is run, and a module beside it."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(SCRIPT)
    (tmp_path / "app" / "found.py").write_text(FOUND)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as packed:
        for name in ("__main__.py", "found.py"):
            packed.write(tmp_path / "app" / name, name)
    arguments, expected = {
        "script": ([str(tmp_path / "app" / "__main__.py")], ["app/found.py", "app/__main__.py"]),
        "relative script": (["app/__main__.py"], ["app/found.py", "app/__main__.py"]),
        "module": (["-m", "app.__main__"], ["app/found.py", "app/__main__.py"]),
        "zip": (["app.zip"], ["app.zip/found.py", "app.zip/__main__.py"]),
    }[way]
    path = [str(tmp_path / "app")] if way == "module" else []
    env = clean_environment() | {"PYTHONPATH": os.pathsep.join([*path, *filter(None, sys.path)])}
    found = subprocess.run([PYTHON, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert found.stdout == f"{[(False, name) for name in expected]}\n"


def made(path: str, name: str = "call") -> CodeType:
    return template.replace(co_filename=path, co_name=name)


def stack(*paths: str) -> Stack:
    """Return a stack of these files, the outermost first, each at a line of its own."""
    return tuple((made(path), line) for line, path in enumerate(paths, 1))[::-1]


def place(*paths: str) -> tuple[str, int] | None:
    found = application_place(stack(*paths))
    return None if found is None else (short_path(found[0].co_filename), found[1])


OURS = f"{stacks._OURS}request/working.py"
FASTAPI, STARLETTE, ANYIO = (f"{SITE}/{name}" for name in ("fastapi/routing.py", "starlette/_utils.py", "anyio/t.py"))
NUMPY, TORCH, THREADING = f"{SITE}/numpy/linalg.py", f"{SITE}/torch/nn.py", f"{STANDARD}/threading.py"


def test_the_innermost_place_of_the_application_is_taken() -> None:
    assert place(THREADING, OURS, FASTAPI, f"{HERE}/app.py", f"{HERE}/model.py", TORCH, NUMPY) == ("model.py", 5)


def test_an_installed_application_is_the_package_that_the_framework_calls() -> None:
    assert place(OURS, STARLETTE, FASTAPI, f"{SITE}/service/app.py", f"{SITE}/service/m.py", TORCH) == (
        "service/m.py",
        5,
    )
    assert place(OURS, FASTAPI, f"{SITE}/service.py", NUMPY) == ("service.py", 3)


def test_an_installed_middleware_is_no_application_unless_it_stands_there_itself() -> None:
    middleware, service = f"{SITE}/metrics_for_fastapi/middleware.py", f"{SITE}/infinity_emb/batch_handler.py"
    assert place(OURS, STARLETTE, middleware, STARLETTE, FASTAPI, service, THREADING) == (
        "infinity_emb/batch_handler.py",
        6,
    )
    assert place(OURS, STARLETTE, middleware, STARLETTE, FASTAPI, service, STARLETTE, ANYIO) == (
        "infinity_emb/batch_handler.py",
        6,
    )
    assert place(OURS, STARLETTE, middleware, THREADING) == ("metrics_for_fastapi/middleware.py", 3)


def test_servers_frameworks_and_the_standard_library_are_no_application() -> None:
    assert place(THREADING, ANYIO, OURS, FASTAPI, STARLETTE, THREADING) is None
    assert place() is None
    assert place(OURS) is None
