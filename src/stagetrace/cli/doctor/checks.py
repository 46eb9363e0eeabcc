"""Checks of `stagetrace doctor`: the variable in this interpreter, traced processes, the delivery of spans."""

from __future__ import annotations

import json
import os
import site
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from importlib.util import cache_from_source, find_spec
from pathlib import Path
from shlex import quote
from typing import Any, Final

from stagetrace import __version__
from stagetrace.errors import PolicyError, StagetraceError
from stagetrace.otel_config import ConfigFile, config_file
from stagetrace.otlp.export import spool
from stagetrace.output.processes import FAIL, OK, WARN, Check
from stagetrace.policy.inline import HOW
from stagetrace.policy.policy import Policy, file_named
from stagetrace.policy.policy_lint import ERROR, lint
from stagetrace.policy.yaml_nodes import At
from stagetrace.process_status import files
from stagetrace.settings import (
    HOST,
    HTTP_PORT,
    NATIVE,
    QUERY_HTTP_PORT,
    SDK_DISABLED,
    SLA,
    SPOOL,
    SWITCH,
    TLS_CERT,
    environment,
    otel_variables,
)
from stagetrace.store import Reader, open_store
from stagetrace.system import setting_problems, unrecognised_models
from stagetrace.system.packages import installed, requirement

# --- Checks of `stagetrace doctor`: does the variable work in this interpreter?

_STARTS_WITHIN_S: Final = 30
_FILES: Final = ("stagetrace.pth", "stagetrace.start")
_MEANS_OFF: Final = ("no", "off", "none", "disabled", "n")
_ACTIVATED: Final = "import sys; print('stagetrace.activate' in sys.modules)"
_DISTRIBUTIONS: Final = {"grpc": "grpcio", "sklearn": "scikit-learn"}
# Servers and model libraries in common use, to report the installed ones that have no patch.
_KNOWN: Final = (
    *("aiohttp", "bentoml", "catboost", "celery", "django", "fastapi", "flask", "keras", "lightgbm", "litestar"),
    *("cog", "gradio", "mlflow", "mlserver", "mosec", "onnxruntime", "quart", "ray", "sklearn", "starlette"),
    *("tensorflow", "torch", "transformers", "uvicorn", "xgboost", *unrecognised_models.MODELS),
)
# Servers of their own applications whose requests are not recorded: a stage that is marked there belongs to no request.
_UNSEEN: Final = ("robyn",)


def installation_checks(asked: dict[str, Any] | None) -> Iterator[Check]:
    """Yield the checks; `asked` is the output of `stagetrace.doctor_probe`, None if it failed."""
    yield Check("python", OK, f"{'.'.join(map(str, sys.version_info[:3]))} at {sys.executable}")
    here = {"stagetrace": __version__, **installed()}
    yield Check("packages", OK, ", ".join(f"{name} {version}" for name, version in here.items()))
    yield activation()
    yield switch()
    yield from misspelt()
    yield policy()
    if asked is not None:
        yield libraries(asked["patches"])
        yield native(built=asked["native"])
        yield bytecode()
        yield unseen(asked["sources"])


def activation() -> Check:
    """Start this interpreter as a service would, and check that the activation file is read."""
    plain, isolated = _activates(), _activates("-I")
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    file = next((path for folder in folders for name in _FILES if (path := Path(folder, name)).is_file()), None)
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


def switch() -> Check:
    """Check whether services started from here are recorded."""
    given = SWITCH.raw()
    if SWITCH.read() and str(given).strip().lower() in _MEANS_OFF:
        found = f"STAGETRACE={given} switches recording on, as all but 0 and false"
        return Check("switch", WARN, found, "unset it, or set STAGETRACE=0, to switch it off")
    if SWITCH.read():
        return Check("switch", OK, f"STAGETRACE={given}: services started from here are recorded")
    unused = setting_problems.without_switch(environment())
    if unused:
        return Check("switch", WARN, setting_problems.without_switch_text(unused), "set STAGETRACE=1 for them")
    shown = "STAGETRACE is not set" if given is None else f"STAGETRACE={given} switches recording off"
    return Check("switch", WARN, f"{shown}: services started from here are not recorded", "set STAGETRACE=1 for them")


def misspelt() -> Iterator[Check]:
    """Report variables that look like ours and are unknown."""
    found = setting_problems.misspelt(environment())
    if found:
        named = setting_problems.misspelt_text(found)
        yield Check("variables", WARN, named, "docs/environment.md lists those that there are")


def policy() -> Check:
    """Read the policy as a service would, and show its rules."""
    text = SLA.read()
    of_config = config_file()
    if not text and of_config is not None and of_config.policy is not None:
        rules = "; ".join(files.objective_texts(of_config.policy.objectives))
        return Check("policy", OK, f"{of_config.path}: {rules}")
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
    without = f"; without a patch: {', '.join(map(_with_version, bare))}" if bare else ""
    unseen_here = [name for name in _UNSEEN if find_spec(name) is not None]
    if unseen_here:
        without += f"; requests that {', '.join(unseen_here)} serves are not recorded"
    if not here:
        fix = f"run this command with the service's own interpreter; patches exist for {', '.join(sorted(patched))}"
        return Check("libraries", WARN, f"no library that has a patch is installed here{without}", fix)
    models = [name for name in bare if name in unrecognised_models.MODELS]
    fix = f"model calls of {', '.join(models)}: {unrecognised_models.REMEDY}" if models else ""
    return Check("libraries", OK, f"patched when imported: {', '.join(map(_with_version, here))}{without}", fix)


def _with_version(name: str) -> str:
    try:
        return f"{name} {version(_DISTRIBUTIONS.get(name, name))}"
    except PackageNotFoundError:
        return name


def native(*, built: bool) -> Check:
    """Report whether the native implementation is in use."""
    if built:
        return Check("native", OK, "the extension in C is used")
    if not NATIVE.read():
        return Check("native", OK, "the native implementation is switched off by STAGETRACE_NATIVE")
    found = (
        "the extension in C is not here: the same is done in Python, which takes more CPU for each request, "
        "and only in part where nobody handles SIGTERM"
    )
    return Check("native", WARN, found, f"install a C compiler, then: pip install --force-reinstall {requirement()}")


def bytecode() -> Check:
    """Report whether the modules that each service loads were compiled before: pip does that, uv does not."""
    source = Path(__file__).parents[2] / "runtime" / "runtime.py"
    if Path(cache_from_source(str(source))).is_file():
        return Check("bytecode", OK, "stagetrace is compiled")
    is_forbidden = sys.dont_write_bytecode
    when = (
        "each start of a service compiles it (PYTHONDONTWRITEBYTECODE is set)"
        if is_forbidden
        else ("the first start of a service compiles it, in a new container each time")
    )
    fix = (
        f"{quote(sys.executable)} -m compileall -q {quote(str(source.parents[2]))}, or set UV_COMPILE_BYTECODE=1 for uv"
    )
    return Check("bytecode", WARN, f"stagetrace is not compiled: {when}", fix)


def unseen(sources: dict[str, str | None]) -> Check:
    """Report which sources of kernel and interpreter work here, and why the others do not."""
    available = [name for name, why in sources.items() if why is None]
    silent = [f"{name} ({why})" for name, why in sources.items() if why is not None]
    found = f"measured: {', '.join(available) or 'nothing'}"
    return Check("unseen time", OK, found + (f"; not measured: {', '.join(silent)}" if silent else ""))


def living_processes(pid: int | None) -> tuple[list[files.Found], list[Check]]:
    """Return the living_processes processes, all or that one, and checks of the rest; delete the files of dead ones."""
    alive: list[files.Found] = []
    checks: list[Check] = []
    for folder in files.folders():
        try:
            gone = files.clear(folder)
            alive += [one for one in files.read(folder) if pid is None or one.path.name.startswith(f"{pid}-")]
        except OSError as error:
            fix = "run this as the user of the service, or as root"
            checks.append(Check("processes", WARN, f"{folder} cannot be read: {error.strerror}", fix))
            continue
        if gone:
            status = f"{gone} of a process that was killed" if gone == 1 else f"{gone} of ended processes"
            checks.append(Check("processes", OK, f"deleted files: {status}"))
    if not alive and pid is None:
        shown = ", ".join(map(str, files.folders())) or "STAGETRACE_STATUS=0"
        checks.append(Check("processes", OK, f"no traced process of this user serves here (looked in {shown})"))
    elif not alive:
        reports = "a process reports once it serves with STAGETRACE=1, to its own user and to root"
        fix = f"without --pid all are shown; {reports}"
        checks.append(Check("processes", FAIL, f"there is no traced process {pid}", fix))
    return alive, checks


# --- Checks of `stagetrace doctor`: do spans get from here to where they are to be kept?

_ANSWERS_WITHIN_S: Final = 30  # a bare interpreter on a busy machine takes seconds to load the exporter
_HEALTH_WITHIN_S: Final = 2.0
_ARRIVES_WITHIN_S: Final = 30.0  # a Collector gathers spans for seconds, and stores for some more
_AGAIN_S: Final = 0.2
_SECRET: Final = ("HEADERS", "KEY")
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class Probe:
    """The recording side, asked in a process of its own, which runs while other checks do."""

    def __init__(self, *trace_id: str) -> None:
        """Start the probe; it sends an empty request, or one span of the given trace."""
        env = {**os.environ, "STAGETRACE": "0", "GRPC_VERBOSITY": "NONE"}
        command = [sys.executable, "-m", "stagetrace.doctor_probe", *trace_id]
        self._process = subprocess.Popen(  # noqa: S603 -- our own interpreter
            command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
        )

    def answer(self) -> tuple[dict[str, Any] | None, str]:
        """Return its output, or None with the reason."""
        try:
            printed, complaint = self._process.communicate(timeout=_ANSWERS_WITHIN_S)
            return json.loads(printed), ""
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return None, f"no answer within {_ANSWERS_WITHIN_S} s"
        except ValueError:
            return None, (complaint.strip().splitlines() or ["it printed nothing"])[-1]


def delivery_checks(asked: dict[str, Any] | None, why: str) -> Iterator[Check]:
    """Yield the checks; `asked` is the output of the probe, or None for the reason `why`."""
    yield settings()
    if asked is None:
        fix = f"run {sys.executable} -m stagetrace.doctor_probe and see its output"
        yield Check("endpoint", FAIL, f"the exporter cannot be tried: {why}", fix)
    else:
        yield from endpoints(asked["targets"])
    yield spool_check()
    yield back_end()


def settings() -> Check:
    """Show which OTEL_* variables are set; secrets by name alone."""
    given = sorted(otel_variables().items())
    shown = [f"{name} (hidden)" if name.endswith(_SECRET) else f"{name}={_plain(text)}" for name, text in given]
    found = config_file()
    if found is not None:
        return _of_config_file(found, shown)
    if SDK_DISABLED.read().lower() == "true":
        return Check("settings", WARN, f"OTEL_SDK_DISABLED=true records nothing; {', '.join(shown)}", "unset it")
    return Check("settings", OK, ", ".join(shown) or "no OTEL_* variable is set: defaults hold")


def _of_config_file(found: ConfigFile, shown: list[str]) -> Check:
    """Show what the file of OTEL_CONFIG_FILE says, and what of it is not done."""
    if found.problem:
        what, _, fix = found.problem.partition("\n")
        return Check("settings", FAIL, f"nothing is recorded: {what}", fix)
    what = f"OTEL_CONFIG_FILE={found.path} says {', '.join(shown)}"
    if SDK_DISABLED.read().lower() == "true":
        return Check("settings", WARN, f"{what}, and so records nothing", "remove disabled: true")
    if found.unused:
        fix = "remove it, or expect nothing of it"
        return Check("settings", WARN, f"{what}; not done: {', '.join(found.unused)}", fix)
    return Check("settings", OK, what)


def _plain(value: str) -> str:
    """Return a value without the password of a URL."""
    scheme, slashes, rest = value.partition("://")
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}" if slashes else value


def endpoints(targets: list[dict[str, Any]]) -> Iterator[Check]:
    """Yield the outcome of an export, for each exporter."""
    if not targets:
        fix = "unset OTEL_TRACES_EXPORTER, or set it to otlp"
        yield Check("endpoint", WARN, "OTEL_TRACES_EXPORTER=none: spans go nowhere", fix)
    for target in targets:
        name, endpoint = target["exporter"], target["endpoint"]
        if not target["delivered"]:
            where = f"{name} to {endpoint}" if endpoint else name
            yield Check("endpoint", FAIL, f"{where}: {target['reason']}", _mend(target["reason"], endpoint))
        elif endpoint is None:
            yield Check("endpoint", OK, f"spans go to {name}, which has no address to try")
        else:
            found = f"{name} to {endpoint}: an export was accepted"
            yield Check("endpoint", OK, f"{found}, {1000 * target['seconds']:.0f} ms with the loading of the exporter")


def arrival(trace_id: str, store: str, asked: dict[str, Any] | None) -> Check:
    """Look in a store for the span that was sent; it may appear after a moment.

    `asked` is as for `checks`. Where nothing was sent, or the store does not answer, nothing is waited for.
    """
    if asked is None or not any(target["delivered"] and target["endpoint"] for target in asked["targets"]):
        return Check("round trip", FAIL, "no span was sent that could be read back", "see the check of the endpoint")
    started = time.monotonic()
    with open_store(store) as reader:
        try:
            reader.services()
        except StagetraceError as error:
            found, _, fix = str(error).partition("\n")
            return Check("round trip", FAIL, found, fix.replace("\n", " ") or "see whether the store runs")
        while (why := _missing(trace_id, reader)) and time.monotonic() < started + _ARRIVES_WITHIN_S:
            time.sleep(_AGAIN_S)
    if not why:
        took = time.monotonic() - started
        return Check("round trip", OK, f"the span that was sent can be read from {store}, {took:.1f} s later")
    fix = "see what the Collector in between logs, and whether it feeds this store"
    return Check("round trip", FAIL, f"trace {trace_id}, sent {_ARRIVES_WITHIN_S:g} s ago: {why}", fix)


def _missing(trace_id: str, reader: Reader) -> str:
    """Return why a trace cannot be read; empty if it can."""
    try:
        reader.trace(trace_id)
    except StagetraceError as error:
        return str(error).partition("\n")[0]
    return ""


def _mend(reason: str, endpoint: str | None) -> str:
    if endpoint is None:
        return "set OTEL_TRACES_EXPORTER or OTEL_EXPORTER_OTLP_PROTOCOL to one that is installed"
    if reason.startswith(("ImportError", "ModuleNotFoundError")):
        return "install what is missing, or too old: see the check of the packages"
    lower = reason.lower()
    if any(word in lower for word in ("unauthenticated", "permission_denied", "http 401", "http 403")):
        return 'set OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20TOKEN"'
    if "certificate" in lower or "ssl" in lower:
        return "set OTEL_EXPORTER_OTLP_CERTIFICATE to the authority's certificate, or use http:// without TLS"
    if any(word in lower for word in ("http 404", "http 415", "unimplemented", "no otlp", "protocol")):
        return "set OTEL_EXPORTER_OTLP_PROTOCOL: grpc (port 4317) or http/protobuf (port 4318)"
    return "start a Collector there (`stagetrace up` takes OTLP too), or set OTEL_EXPORTER_OTLP_ENDPOINT"


def spool_check(given: str | None = None) -> Check:
    """Look into the spool: `given`, else that of STAGETRACE_SPOOL."""
    text = given or SPOOL.read()
    if not text:
        return Check("spool", OK, "STAGETRACE_SPOOL is not set: what cannot be delivered waits in memory")
    if not spool.supported():
        return Check("spool", FAIL, "this system has no file locks: STAGETRACE_SPOOL is not used", "unset it")
    try:
        folder = Path(text).expanduser().absolute()
        problem = _writable(folder)
    except RuntimeError:
        folder, problem = Path(text), "there is no such home folder"
    if problem:
        return Check("spool", FAIL, f"{folder} cannot be written to: {problem}", "give it room and the right to write")
    try:
        held = spool.state(folder)
    except OSError as error:
        return Check("spool", FAIL, f"{folder} cannot be read: {error.strerror}", "give it the right to be read")
    aside = len(list(folder.glob("*.damaged")))
    found = (
        f"{folder}: {held['breach_spans']} spans of breaches and {held['good_spans']} others wait in "
        f"{held['files']} files, {held['bytes']:,} bytes"
    )
    lost = {name: held[name] for name in spool.LOSSES if held[name]}
    if lost or aside:
        losses = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in lost.items()) or "none"
        found += f"; spans lost so far: {losses}; files set aside as damaged: {aside}"
        fix = f"raise STAGETRACE_SPOOL_MAX_BYTES if it was full; {folder}/counts.json keeps the counts until removed"
        return Check("spool", WARN, found, fix)
    return Check("spool", OK, found)


def _writable(folder: Path) -> str:
    """Return why a file cannot be made there, empty if it can; a folder that is not there yet is not made."""
    there = next(one for one in (folder, *folder.parents) if one.exists())
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
    except OSError as error:
        return f"{error.strerror} ({there})"
    return ""


def back_end() -> Check:
    """Check the two HTTP ports of the embedded back end, if it runs here."""
    host = HOST.read()
    host = _EVERYWHERE.get(host, host)
    ports = [HTTP_PORT.read(), QUERY_HTTP_PORT.read()]
    answers = [_health(host, port) for port in ports]
    at = f"{host}, ports {' and '.join(ports)}"
    if all(answer == "ok" for answer in answers):
        return Check("back end", OK, f"`stagetrace up` responds at {at}")
    if all(answer == "" for answer in answers):
        return Check("back end", OK, f"`stagetrace up` does not run at {at}; it is one of many that take OTLP")
    if "ok" not in answers:
        return Check("back end", OK, f"something else than `stagetrace up` listens at {at}")
    port = next(port for port, answer in zip(ports, answers, strict=True) if answer != "ok")
    return Check("back end", WARN, f"`stagetrace up` responds at {at}, but not on port {port}", "see what it logged")


def _health(host: str, port: str) -> str:
    """Return `ok`; empty where nothing listens; else a text for what listens there."""
    certificate = TLS_CERT.read()
    scheme, context = ("https", _trusting(certificate)) if certificate else ("http", None)
    where = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/health"
    try:
        with socket.create_connection((host, int(port)), _HEALTH_WITHIN_S):
            pass
    except (OSError, ValueError, OverflowError):
        return ""
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(where, timeout=_HEALTH_WITHIN_S) as response:
            return "ok" if json.loads(response.read(1024)) == {"status": "ok"} else "something else"
    except (HTTPException, OSError, ValueError):  # an error of urllib is an OSError
        return "something else"


def _trusting(certificate: str) -> ssl.SSLContext | None:
    try:
        context = ssl.create_default_context(cafile=certificate)
    except (OSError, ssl.SSLError):
        return None
    context.check_hostname = False  # the request uses its address, not its name
    return context
