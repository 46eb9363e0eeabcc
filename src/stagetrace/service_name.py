"""The resource of this process's spans: the name of its service, and its host.

Where no name is given, it is what the process serves, not `unknown_service:python3.11`: taken from the command line,
which workers, reloaders and forks share.
"""

from __future__ import annotations

import re
import socket
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from stagetrace import config
from stagetrace.guard import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.resources import Resource

# Programs that serve an application of others: by the name of their script, or of the package that `python -m` runs.
LAUNCHERS: Final = {
    *("uvicorn", "gunicorn", "hypercorn", "granian", "daphne", "waitress", "waitress-serve", "cheroot", "gevent"),
    *("fastapi", "flask", "quart", "litestar", "django-admin", "manage", "blacksheep", "falcon", "bottle"),
    *("celery", "mlserver", "bentoml", "_bentoml_impl", "_bentoml_sdk", "ray", "litserve"),
    *("ddtrace-run", "opentelemetry-instrument", "torchrun", "accelerate", "ipykernel_launcher"),
}
# `module:attribute`, maybe of a path; `localhost:8000` is none.
_TARGET: Final = re.compile(r"([A-Za-z_][\w.]*(?:/[\w.-]+)*):[A-Za-z_][\w.]*(?:\(.*\))?")
# How frameworks get the name of the application: by an option, or a variable.
_OPTIONS: Final = ("--app", "-A")
_VARIABLES: Final = (config.FLASK_APP, config.QUART_APP, config.LITESTAR_APP)
_NO_PROGRAM: Final = ("", "-", "-c")
_UNKNOWN: Final = "unknown_service"

_given = ""


def name_service(name: str) -> None:
    """Set the name of this process's service for where the environment gives none."""
    global _given  # noqa: PLW0603
    _given = name


def resource() -> Resource:
    """Return the resource that OTEL_* give, its service and host named."""
    from opentelemetry.sdk.resources import HOST_NAME, SERVICE_NAME, Resource

    found = Resource.create()
    added: dict[str, str] = {}
    if str(found.attributes.get(SERVICE_NAME, "")).partition(":")[0] == _UNKNOWN:
        added[SERVICE_NAME] = _given or guessed(sys.argv) or ""
    if HOST_NAME not in found.attributes:
        added[HOST_NAME] = _host() or ""
    return found.merge(Resource({key: value for key, value in added.items() if value}))


@guarded
def _host() -> str:
    """Return the name that the system has for itself, in a container that of the container: nothing is looked up."""
    return socket.gethostname()


@guarded
def guessed(argv: Sequence[str]) -> str | None:
    """Return what a command line serves: a module, a script's name, or that of the folder; None if nothing shows it."""
    if not argv or argv[0] in _NO_PROGRAM:
        return None
    with suppress(FileNotFoundError):  # the folder in which it was started is gone
        program = _program(argv[0])
        if program is None or program.partition(".")[0] not in LAUNCHERS:
            return program
        return _served(argv[1:]) or Path.cwd().name or program
    return None


def _program(path: str) -> str | None:
    """Return the dotted name of the module that runs, or the script's name."""
    file = Path(path)
    name = file.name.removesuffix(".exe").removesuffix(".py").removesuffix("-script")
    parts = [] if name == "__main__" else [name]
    folder = file.absolute().parent
    if not parts or file.suffix == ".py":
        is_package = not parts  # `python -m pkg`, or a folder or zip file that is run
        while is_package or (folder / "__init__.py").is_file():
            parts.insert(0, folder.name.removesuffix(".pyz").removesuffix(".zip"))
            folder, is_package = folder.parent, False
    return ".".join(part for part in parts if part) or None


def _served(arguments: Sequence[str]) -> str | None:
    """Return the application that a launcher's arguments or variables name."""
    for argument in arguments:
        target = _TARGET.fullmatch(argument.partition("=")[2] if argument.startswith("--") else argument)
        if target and _is_module(target[1]):
            return _dotted(target[1])
    named = [value for option in _OPTIONS if (value := _value(arguments, option))]
    named += [value for variable in _VARIABLES if (value := variable.read())]
    named += [
        file for before, file in pairwise(["", *arguments]) if file.endswith(".py") and not before.startswith("-")
    ]
    if named:
        return _dotted(named[0].partition(":")[0])
    return config.DJANGO_SETTINGS.read().partition(".")[0] or None


def _is_module(name: str) -> bool:
    return _dotted(name) in sys.modules or "/" in name


def _value(arguments: Sequence[str], option: str) -> str | None:
    for at, argument in enumerate(arguments):
        if argument == option:
            return arguments[at + 1] if at + 1 < len(arguments) else None
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _dotted(path: str) -> str:
    return path.removeprefix("./").removesuffix(".py").strip("/").replace("/", ".")
