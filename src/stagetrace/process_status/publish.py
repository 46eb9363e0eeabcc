"""Collect what this process counts anyway, and write it to the status file that `stagetrace doctor` reads.

Runs on the runtime's worker thread, every few seconds, in processes that serve: never on the path of a request.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from stagetrace import log, settings
from stagetrace.guard import failures, guarded, switched_off
from stagetrace.process_status import files
from stagetrace.request import serving_process
from stagetrace.request.context import here
from stagetrace.request.serving_process import crowded_waits, ignored_headers
from stagetrace.system import unrecognised_models
from stagetrace.system.import_hooks import finder
from stagetrace.text import redacted, redacted_arguments

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_COMMAND: Final = 500
_VERSIONS: Final = ("opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp")


class Publisher:
    """Writes this process's file, where it has changed. Not thread-safe: one thread has it."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._folder = files.folder()
        self._is_logged = False
        self._me: files.Identity | None = None

    def _begin(self) -> files.Identity:
        """Begin as the process that this is: the first time, and in a forked child."""
        self._me = files.myself()
        self._target = redacted(self._target)  # not as it is made: that would be on the way of the first request
        self._fixed = _fixed_facts(self._me)
        self._last: dict[str, Any] = {}
        self._written = False
        return self._me

    @guarded
    def publish(self) -> None:
        """Write the file if its content has changed. Never raises."""
        if self._folder is None:
            return
        me = self._me if self._me is not None and self._me.pid == os.getpid() else self._begin()
        found = collect(self._target)
        if found == self._last and self._written:
            return
        text = json.dumps({**self._fixed, **found, "updated_unix": round(time.time(), 3)})
        try:
            if not self._written:
                files.clear(self._folder)
            files.write(self._folder, me, text)
        except OSError as error:
            self._log_unwritable(self._folder, error)
            return
        self._last, self._written = found, True

    @guarded
    def withdraw(self) -> None:
        """Remove the file, since the process is about to end; a process that still works afterwards writes it again."""
        if self._folder is not None and self._me is not None and self._written:
            files.remove(self._folder, self._me)
            self._last = collect(self._target)

    def _log_unwritable(self, folder: Path, error: OSError) -> None:
        if not self._is_logged:
            self._is_logged = True
            log.debug(f"`stagetrace doctor` will not see this process: {folder} cannot be written to ({error}).")


def rehearse(target: str) -> None:
    """Do what a Publisher does, without writing anything."""
    collect(target)
    _fixed_facts(files.myself())


def collect(target: str) -> dict[str, Any]:
    """Return what changes while the process runs; `target` is how messages name the place that spans go to."""
    from stagetrace.causes.stall_sampler import counts, stall_sampler
    from stagetrace.sources.registry import silent

    return {
        "service": _resource().get("service.name"),
        "target": target,
        **_policy(),
        **_count_verdicts(),
        **_spans(),
        "patches": {
            "patched": list(finder.patched),
            "failed": dict(finder.failed),
            "switched_off": switched_off(),
            "failures": dict(failures),
        },
        "unpatched_models": unrecognised_models.imported(),
        "sampler": sampler(),
        "waits": dict(crowded_waits),
        "ignored_headers": dict(ignored_headers),
        "silent_sources": silent(),
        "skipped_stalls": stall_sampler.skipped,
        "unrecorded_calls": dict(serving_process.calls),
        "without_code": dict(counts),
    }


def _fixed_facts(me: files.Identity) -> dict[str, Any]:
    from stagetrace import __version__
    from stagetrace.otlp import encode

    return {
        "pid": me.pid,
        "namespace": me.namespace,
        "started_unix": round(_started(me), 3),
        "command": " ".join(redacted_arguments(sys.orig_argv))[:_LONGEST_COMMAND],
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {"stagetrace": __version__, **_versions()},
        "native": bool(getattr(encode, "NATIVE", False)),
        "spool": settings.SPOOL.read() or None,
    }


def _versions() -> dict[str, str]:
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in _VERSIONS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _started(me: files.Identity) -> float:
    """Return when the process started, in seconds since 1970; the current time where the system does not report it."""
    if not me.ticks:
        return time.time()
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + me.ticks / os.sysconf("SC_CLK_TCK")


def _resource() -> dict[str, Any]:
    return dict(here.resource().attributes)


def sampler() -> str | None:
    """Return the head sampler as OpenTelemetry describes it; None if there is none, or it is not known."""
    return here.sampler_text()


def _policy() -> dict[str, Any]:
    """Return the objectives in words, and what cannot be read in the policy."""
    from stagetrace.sla.process import policy, policy_file, policy_fix, policy_problems

    used, problems = policy(), policy_problems()
    return {
        "policy": files.objective_texts(used.objectives) if used is not None else [],
        "policy_file": policy_file(),
        "policy_problem": redacted(f"{'; '.join(problems)}.\n{policy_fix()}") if problems else None,
    }


def _count_verdicts() -> dict[str, Any]:
    from stagetrace.sla.process import counter

    judged: dict[str, dict[str, int]] = {}
    for (objective, verdict), count in counter().counts().items():
        judged.setdefault(objective, {})[verdict] = count
    causes: dict[str, int] = {}
    for (_, cause), count in counter().causes().items():
        causes[cause] = causes.get(cause, 0) + count
    return {"judged": judged, "causes": causes, "unmatched": counter().unmatched}


def _spans() -> dict[str, Any]:
    """Return span counts by outcome and what hinders delivery; None where processors of others send them."""
    from stagetrace.otlp.export.batch_processor import processors

    totals: dict[str, int] = {}
    troubles = []
    for processor in processors():
        for outcome, spans in processor.counts().items():
            totals[outcome] = totals.get(outcome, 0) + spans
        trouble = processor.trouble()
        if trouble is not None:
            troubles.append({"reason": redacted(trouble.reason), "since_unix": round(trouble.since, 3)})
    return {"spans": totals or None, "trouble": troubles[0] if troubles else None}
