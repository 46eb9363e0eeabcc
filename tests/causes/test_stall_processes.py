"""Each process samples its own late requests: after a fork, as the interpreter ends, and not without an objective."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from services import PYTHON

if TYPE_CHECKING:
    from pathlib import Path

# A service with an SDK set-up of its own: `serve` is a request that takes a while, `end` writes what is known.
SERVICE = """
import gc, json, os, signal, sys, threading, time, warnings
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from stagetrace import SLASpanProcessor
from stagetrace.request.in_flight import in_flight
from stagetrace.sources.registry import states

provider, exporter = TracerProvider(), InMemorySpanExporter()
provider.add_span_processor(SLASpanProcessor(POLICY, SimpleSpanProcessor(exporter)))
tracer = provider.get_tracer("service")
warnings.filterwarnings("ignore", "This process .* is multi-threaded")  # of Python 3.12 at a fork

def serve(seconds=60.0):
    with tracer.start_as_current_span("GET /x", kind=SpanKind.SERVER):
        record = next(iter(ENTRIES.values()))
        until = time.monotonic() + seconds
        while not record.stalls and time.monotonic() < until:
            time.sleep(0.01)

def report(**more):
    spans = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
    codes = [span.attributes.get("sla.breach.code", "").rpartition(" in ")[2] for span in spans]
    threads = sum(thread.name == "stagetrace-stalls" for thread in threading.enumerate())
    found = {"codes": codes, "threads": threads, "in_flight": len(in_flight.requests), "watched": in_flight.is_watched}
    os.write(1, json.dumps({**found, **more}).encode() + b"\\n")  # at once: forked processes share the pipe

from stagetrace.request.current import entries as ENTRIES
"""


def run(folder: Path, code: str, policy: str | None = "* within 10ms", **env: str) -> list[dict[str, Any]]:
    """Return what a process reports that runs this code, which ends well and logs nothing."""
    script = folder / "service.py"
    script.write_text(SERVICE.replace("POLICY", repr(policy)) + code)
    done = subprocess.run(
        [PYTHON, str(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **env},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


SAMPLED = {"codes": ["serve"], "threads": 1, "in_flight": 0, "watched": True}


def test_a_forked_process_samples_its_own_requests_and_none_of_its_parents(tmp_path: Path) -> None:
    """It is forked while a request of the parent is late; the parent's thread goes on in the parent."""
    child, parent = run(
        tmp_path,
        """
provider.get_tracer("service").start_span("GET /parent", kind=SpanKind.SERVER)
ENTRIES.popitem()
serve()
child = os.fork()
if not child:
    exporter.clear()
    before = len(in_flight.requests)
    serve()
    report(before=before)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
serve()
report()
""",
    )
    assert child == {**SAMPLED, "before": 0}
    assert parent["codes"] == ["serve", "serve"]
    assert parent["threads"] == 1


def test_a_process_that_is_forked_before_its_first_request_has_a_thread_of_its_own(tmp_path: Path) -> None:
    """As the workers of a server that has loaded the application before."""
    found = run(
        tmp_path,
        """
import multiprocessing
def work():
    serve()
    report()
workers = [multiprocessing.get_context("fork").Process(target=work) for _ in range(2)]
report()
for worker in workers: worker.start()
for worker in workers: worker.join()
assert [worker.exitcode for worker in workers] == [0, 0]
""",
    )
    assert found == [{**SAMPLED, "codes": [], "threads": 0}, SAMPLED, SAMPLED]


@pytest.mark.parametrize(
    "end",
    ["", "os._exit(0)", "provider.shutdown()"],
    ids=["by itself", "_exit", "shutdown"],
)
def test_a_process_ends_while_a_request_is_late(end: str, tmp_path: Path) -> None:
    run(
        tmp_path,
        f"""
def hang():
    with tracer.start_as_current_span("GET /x", kind=SpanKind.SERVER):
        time.sleep(3600)
threading.Thread(target=hang, daemon=True).start()
while not ENTRIES or not next(iter(ENTRIES.values())).stalls:
    time.sleep(0.01)
{end}
""",
    )


def test_a_signal_ends_a_late_request_with_its_handlers_exception(tmp_path: Path) -> None:
    """The sampler neither takes the signal nor swallows what its handler raises in the main thread."""
    (found,) = run(
        tmp_path,
        """
def stop(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, stop)
threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
try:
    while True: serve()
except KeyboardInterrupt:
    pass
while ENTRIES: pass
report()
""",
    )
    assert set(found["codes"][:-1]) <= {"serve"}  # the last one ended when the signal came
    assert (found["threads"], found["in_flight"]) == (1, 0)


@pytest.mark.parametrize(
    ("policy", "env", "state"),
    [
        ("* within 10ms", {"STAGETRACE_STALLS": "0"}, "switched off by STAGETRACE_STALLS"),
        (None, {}, None),
        ("* excluded", {}, None),
    ],
    ids=["switched off", "no policy", "excluded"],
)
def test_nothing_runs_and_nothing_is_kept_where_no_request_is_to_be_sampled(
    policy: str | None, env: dict[str, str], state: str | None, tmp_path: Path
) -> None:
    (found,) = run(
        tmp_path,
        """
serve(0.05)
span = tracer.start_span("GET /x", kind=SpanKind.SERVER)
report(state=states()["the stacks of late requests"])
""",
        policy,
        **env,
    )
    expected = {"codes": [""], "threads": 0, "in_flight": 0, "watched": False, "state": state}
    assert found == expected


def test_a_late_request_leaves_nothing_to_the_garbage_collector(tmp_path: Path) -> None:
    """Neither the variables of its handler, nor those of any other thread, wait for it."""
    (found,) = run(
        tmp_path,
        """
import weakref
gc.disable()
class Large: pass
left = []
def handler():
    large = Large()
    left.append(weakref.ref(large))
    serve()
def other():
    large = Large()
    left.append(weakref.ref(large))
    going.wait()
going = threading.Event()
thread = threading.Thread(target=other)
thread.start()
for _ in range(3): handler()
going.set()
thread.join()
report(left=sum(one() is not None for one in left))
""",
    )
    assert (found["codes"], found["left"]) == (["serve"] * 3, 0)
