"""Checks of `stagetrace doctor`: does the variable work in this interpreter?"""

from __future__ import annotations

import os
import site
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import Any, Final

from stagetrace import __version__, config, setting_problems, unrecognised_models, versions
from stagetrace.errors import PolicyError
from stagetrace.installed_from import requirement
from stagetrace.output.check import FAIL, OK, WARN, Check
from stagetrace.process_status import files
from stagetrace.sla.inline import HOW
from stagetrace.sla.policy import Policy, file_named
from stagetrace.sla.policy_lint import ERROR, lint
from stagetrace.sla.yaml_nodes import At

_STARTS_WITHIN_S: Final = 30
_FILES: Final = ("stagetrace.pth", "stagetrace.start")
_MEANS_OFF: Final = ("no", "off", "none", "disabled", "n")
_ACTIVATED: Final = "import sys; print('stagetrace.activate' in sys.modules)"
_DISTRIBUTIONS: Final = {"grpc": "grpcio", "sklearn": "scikit-learn"}
# Servers and model libraries in common use, to report the installed ones that have no patch.
_KNOWN: Final = (
    *("aiohttp", "bentoml", "catboost", "django", "fastapi", "flask", "keras", "lightgbm", "litestar"),
    *("cog", "gradio", "mlflow", "mlserver", "mosec", "onnxruntime", "quart", "ray", "sklearn", "starlette"),
    *("tensorflow", "torch", "transformers", "uvicorn", "xgboost", *unrecognised_models.MODELS),
)
# Servers of their own applications whose requests are not recorded: a stage that is marked there belongs to no request.
_UNSEEN: Final = ("robyn",)


def checks(asked: dict[str, Any] | None) -> Iterator[Check]:
    """Yield the checks; `asked` is the output of `stagetrace.doctor_probe`, None if it failed."""
    yield Check("python", OK, f"{'.'.join(map(str, sys.version_info[:3]))} at {sys.executable}")
    here = versions.installed()
    records = not versions.unfit(here)
    yield packages(here)
    yield activation()
    yield switch(records=records)
    yield from misspelt()
    yield policy()
    if asked is not None:
        if records:
            yield libraries(asked["patches"])
        yield native(built=asked["native"])
        yield unseen(asked["sources"])


def packages(here: dict[str, str | None]) -> Check:
    """Compare the installed with the needed versions, as a service does before it is patched."""
    shown = ", ".join(f"{name} {version}" for name, version in {"stagetrace": __version__, **here}.items() if version)
    unfit = versions.unfit(here)
    if unfit:
        return Check("packages", FAIL, f"{versions.problem(unfit)}; here: {shown}", versions.remedy(unfit))
    missing = [name for name, version in here.items() if version is None]
    if missing:
        return Check(
            "packages", FAIL, f"missing: {', '.join(missing)}; here: {shown}", f"pip install {' '.join(missing)}"
        )
    return Check("packages", OK, shown)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def activation() -> Check:
    """Start this interpreter as a service would, and check that the activation file is read."""
    plain, isolated = _activates(), _activates("-I")
    file = next(_activation_files(), None)
    if plain and isolated:
        return Check("activation", OK, f"{file or _FILES[0]} is read, with `python -I` too")
    if plain:
        found = "only PYTHONPATH activates this interpreter: `python -I` and `-E` would run untraced"
        return Check("activation", WARN, found, f"{sys.executable} -m pip install {requirement()}")
    found = f"{file} is not read" if file else f"there is no {_FILES[0]} on the path"
    fix = f"{sys.executable} -m pip install {requirement()}, or start the service with: stagetrace run -- COMMAND"
    return Check("activation", FAIL, f"{found}: STAGETRACE=1 alone does nothing in {sys.executable}", fix)


def _activates(*flags: str) -> bool:
    command = [sys.executable, *flags, "-c", _ACTIVATED]
    env = {**os.environ, "STAGETRACE": "1"}
    try:
        done = subprocess.run(  # noqa: S603 -- our own interpreter
            command, env=env, capture_output=True, text=True, timeout=_STARTS_WITHIN_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "True"


def _activation_files() -> Iterator[Path]:
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    yield from (file for folder in folders for name in _FILES if (file := Path(folder, name)).is_file())


def switch(*, records: bool) -> Check:
    """Check whether services started from here are recorded; `records`: whether they can be."""
    given = config.SWITCH.raw()
    if config.SWITCH.read() and not records:
        found = f"STAGETRACE={given}, but no service started from here can be recorded"
        return Check("switch", WARN, found, "install the packages that are named above")
    if config.SWITCH.read() and str(given).strip().lower() in _MEANS_OFF:
        found = f"STAGETRACE={given} switches recording on, as all but 0 and false"
        return Check("switch", WARN, found, "unset it, or set STAGETRACE=0, to switch it off")
    if config.SWITCH.read():
        return Check("switch", OK, f"STAGETRACE={given}: services started from here are recorded")
    unused = setting_problems.without_switch(config.environment())
    if unused:
        return Check("switch", WARN, setting_problems.without_switch_text(unused), "set STAGETRACE=1 for them")
    shown = "STAGETRACE is not set" if given is None else f"STAGETRACE={given} switches recording off"
    return Check("switch", WARN, f"{shown}: services started from here are not recorded", "set STAGETRACE=1 for them")


def misspelt() -> Iterator[Check]:
    """Report variables that look like ours and are unknown."""
    found = setting_problems.misspelt(config.environment())
    if found:
        named = setting_problems.misspelt_text(found)
        yield Check("variables", WARN, named, "docs/environment.md lists those that there are")


def policy() -> Check:
    """Read the policy as a service would, and show its rules."""
    text = config.SLA.read()
    if not text:
        fix = 'set STAGETRACE_SLA, for example "POST /predict within 50ms for 99.9% over 28d; * within 1s"'
        return Check("policy", WARN, "STAGETRACE_SLA is not set: requests get stages and no verdict", fix)
    file = file_named(text)
    try:
        policy = Policy.readable(text) if file is None else Policy.load(file)
    except PolicyError as error:
        found, _, fix = str(error).partition("\n")
        return Check("policy", FAIL, f"STAGETRACE_SLA is not used: {found}", fix.replace("\n", " "))
    rules = "; ".join(files.objective_texts(policy.objectives))
    if policy.problems:
        problems = "; ".join(policy.problems)
        return Check("policy", FAIL, f"STAGETRACE_SLA is used in part: {problems}; its usable rules: {rules}", HOW)
    rules = rules if file is None else f"{file}: {rules}"
    findings, _ = lint(policy.objectives, policy.alerts, [{"": At(1, 1)} for _ in policy.objectives])
    wrong = [one.what for one in findings if one.level == ERROR]
    if wrong:
        fix = f"stagetrace sla check {quote(text)} shows each with its place"
        return Check("policy", WARN, f"{rules}; probably not meant: {'; '.join(wrong[:3])}", fix)
    return Check("policy", OK, rules)


def libraries(patches: Iterable[str]) -> Check:
    """Report the installed libraries, and those without a patch. None of them is imported."""
    patched = {name.partition(".")[0] for name in patches} - {"opentelemetry"} - sys.stdlib_module_names
    here = sorted(name for name in patched if find_spec(name) is not None)
    bare = sorted(name for name in _KNOWN if name not in patched and find_spec(name) is not None)
    without = f"; without a patch: {', '.join(map(_named, bare))}" if bare else ""
    unseen_here = [name for name in _UNSEEN if find_spec(name) is not None]
    if unseen_here:
        without += f"; requests that {', '.join(unseen_here)} serves are not recorded"
    if not here:
        fix = f"run this command with the service's own interpreter; patches exist for {', '.join(sorted(patched))}"
        return Check("libraries", WARN, f"no library that has a patch is installed here{without}", fix)
    models = [name for name in bare if name in unrecognised_models.MODELS]
    fix = f"model calls of {', '.join(models)}: {unrecognised_models.REMEDY}" if models else ""
    return Check("libraries", OK, f"patched when imported: {', '.join(map(_named, here))}{without}", fix)


def _named(name: str) -> str:
    return f"{name} {_version(_DISTRIBUTIONS.get(name, name)) or ''}".strip()


def native(*, built: bool) -> Check:
    """Report whether the native implementation is in use."""
    if built:
        return Check("native", OK, "the extension in C is used")
    if not config.NATIVE.read():
        return Check("native", OK, "the native implementation is switched off by STAGETRACE_NATIVE")
    found = (
        "the extension in C is not here: the same is done in Python, which takes more CPU for each request, "
        "and only in part where nobody handles SIGTERM"
    )
    return Check("native", WARN, found, f"install a C compiler, then: pip install --force-reinstall {requirement()}")


def unseen(sources: dict[str, str | None]) -> Check:
    """Report which sources of kernel and interpreter work here, and why the others do not."""
    available = [name for name, why in sources.items() if why is None]
    silent = [f"{name} ({why})" for name, why in sources.items() if why is not None]
    found = f"measured: {', '.join(available) or 'nothing'}"
    return Check("unseen time", OK, found + (f"; not measured: {', '.join(silent)}" if silent else ""))
