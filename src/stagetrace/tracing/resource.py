"""What the spans of this process come from: its service, its host, its container.

Where no name is given, it is what the process serves, not `unknown_service:python3.11`: taken from the command line,
which workers, reloaders and forks share.
"""

from __future__ import annotations

import os
import re
import socket
import sys
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from random import getrandbits
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import stagetrace
from stagetrace import settings
from stagetrace.guard import guarded
from stagetrace.semconv import STAGETRACE_PROCESS_CPUS
from stagetrace.tracing.span import Resource

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
_VARIABLES: Final = (settings.FLASK_APP, settings.QUART_APP, settings.LITESTAR_APP)
_NO_PROGRAM: Final = ("", "-", "-c")
_UNKNOWN: Final = "unknown_service"
SERVICE_NAME: Final = "service.name"
HOST_NAME: Final = "host.name"
# Docker mounts files from a folder of the container; else it may be the last part of the control group.
_CONTAINER_IDS: Final = (
    ("/proc/self/mountinfo", r"/containers/([0-9a-f]{64})/"),
    ("/proc/self/cgroup", r"(?m)[/-]([0-9a-f]{64})(?:\.scope)?$"),
)
_QUOTA: Final = "/sys/fs/cgroup/cpu.max"
_NAMESPACE: Final = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
_POD: Final = r"/pods/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/"

_given = ""
_of_process: tuple[int, Resource] | None = None  # with the process that it is of


def name_service(name: str) -> None:
    """Set the name of this process's service for where the environment gives none."""
    global _given, _of_process
    _given, _of_process = name, None


def resource() -> Resource:
    """Return the resource of this process; that of a forked child is another one."""
    global _of_process  # noqa: PLW0603
    if _of_process is None or _of_process[0] != os.getpid():
        _of_process = os.getpid(), Resource(_attributes())
    return _of_process[1]


def _attributes() -> dict[str, Any]:
    given = _given_attributes(settings.RESOURCE_ATTRIBUTES.read())
    if name := settings.SERVICE_NAME.read():
        given[SERVICE_NAME] = name
    return {
        "telemetry.sdk.language": "python",
        "telemetry.sdk.name": "stagetrace",
        "telemetry.sdk.version": stagetrace.__version__,
        "service.instance.id": _random_uuid(),
        **(_cpus() or {}),
        **(_container() or {}),
        **(_kubernetes() or {}),
        **given,
        **named(given),
    }


def _random_uuid() -> str:
    """Return a UUID of version 4; the module `uuid` takes 3 ms to import."""
    digits = f"{getrandbits(128) & ~(0xF << 76 | 0x3 << 62) | 4 << 76 | 2 << 62:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def named(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Return what names the service and its host, as far as these attributes do not."""
    added: dict[str, str] = {}
    name = str(attributes.get(SERVICE_NAME) or _UNKNOWN)
    if name.partition(":")[0] == _UNKNOWN:
        added[SERVICE_NAME] = _given or guessed(sys.argv) or f"{_UNKNOWN}:{Path(sys.executable or 'python').name}"
    if HOST_NAME not in attributes and (host := _host()):
        added[HOST_NAME] = host
    return added


def _given_attributes(text: str) -> dict[str, Any]:
    """Return the attributes that OTEL_RESOURCE_ATTRIBUTES gives: `key=value,...`, percent-encoded."""
    pairs = (item.partition("=") for item in text.split(","))
    return {key.strip(): unquote(value.strip()) for key, equals, value in pairs if equals and key.strip()}


@guarded
def _host() -> str:
    """Return the name that the system has for itself, in a container that of the container: nothing is looked up."""
    return socket.gethostname()


@guarded
def _cpus() -> dict[str, float]:
    """Return how many CPUs this process may use, by its affinity and by the quota of its container."""
    cpus = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):  # ValueError: `max`, no quota
        quota, period = Path(_QUOTA).read_text().split()
        cpus = min(cpus, int(quota) / int(period))
    return {STAGETRACE_PROCESS_CPUS: cpus}


@guarded
def _container() -> dict[str, str]:
    """Return the id of the container that this process is in, as its mounts or its control group name it."""
    for file, pattern in _CONTAINER_IDS:
        with suppress(OSError):
            found = re.search(pattern, Path(file).read_text(errors="replace"))
            if found is not None:
                return {"container.id": found[1]}
    return {}


@guarded
def _kubernetes() -> dict[str, str]:
    """Return what a pod can know of itself without being told: its unique id and its namespace."""
    found: dict[str, str] = {}
    with suppress(OSError):
        found["k8s.namespace.name"] = Path(_NAMESPACE).read_text(errors="replace").strip()
    with suppress(OSError):
        pod = re.search(_POD, Path("/proc/self/mountinfo").read_text(errors="replace"))
        if pod is not None:
            found["k8s.pod.uid"] = pod[1]
    return found


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
    return settings.DJANGO_SETTINGS.read().partition(".")[0] or None


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
