"""Checks of `stagetrace doctor`: do spans get from here to where they are to be kept?"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

from stagetrace import config
from stagetrace.errors import StagetraceError
from stagetrace.otlp.export import spool
from stagetrace.output.check import FAIL, OK, WARN, Check
from stagetrace.store import Reader, open_store

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


def checks(asked: dict[str, Any] | None, why: str) -> Iterator[Check]:
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
    given = sorted(config.otel_variables().items())
    shown = [f"{name} (hidden)" if name.endswith(_SECRET) else f"{name}={_plain(text)}" for name, text in given]
    if config.SDK_DISABLED.read().lower() == "true":
        return Check("settings", WARN, f"OTEL_SDK_DISABLED=true records nothing; {', '.join(shown)}", "unset it")
    return Check("settings", OK, ", ".join(shown) or "no OTEL_* variable is set: defaults hold")


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
        return "set OTEL_TRACES_EXPORTER to one that is installed"
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
    text = given or config.SPOOL.read()
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
    host = config.HOST.read()
    host = _EVERYWHERE.get(host, host)
    ports = [config.HTTP_PORT.read(), config.QUERY_HTTP_PORT.read()]
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
    certificate = config.TLS_CERT.read()
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
