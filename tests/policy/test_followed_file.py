"""The policy file of a process: what is new in it is taken over, and what is broken is not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import SpanProcessor

from backend.processes import until
from services import APPS, PYTHON, run_service
from sink import run_sink
from stagetrace import guard, log
from stagetrace.bridge.processor import SLASpanProcessor
from stagetrace.causes.stall_sampler import StallSampler
from stagetrace.policy import followed_file
from stagetrace.process_status import files
from stagetrace.sla import process
from stagetrace.sla import processor as processor_module

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FAST = "objectives: [{within: 1ms}]"
SLOW = "objectives: [{within: 9ms}]"
BROKEN = "objectives: [{within: 1}]"
Replace = Callable[["Path", str], None]


def in_place(path: Path, text: str) -> None:
    path.write_text(text)


def by_rename(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def with_the_times_of_before(path: Path, text: str) -> None:
    """As on a file system with coarse times; the contents have one length, too."""
    before = path.stat()
    path.write_text(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def after_the_clock_was_set_back(path: Path, text: str) -> None:
    path.write_text(text)
    os.utime(path, (1e9, 1e9))


def by_a_link(path: Path, text: str) -> None:
    """As Kubernetes replaces a ConfigMap: the file is a link into a folder that is a link to a new folder."""
    new = path.parent / f"..{len(list(path.parent.iterdir()))}"
    new.mkdir()
    (new / path.name).write_text(text)
    link = path.parent / "..new"
    link.symlink_to(new.name)
    link.replace(path.parent / "..data")
    if not path.is_symlink():
        path.unlink(missing_ok=True)
        path.symlink_to(f"..data/{path.name}")


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect what is logged."""
    found: list[str] = []
    monkeypatch.setattr(log, "_logged", set())
    monkeypatch.setattr(log, "error", found.append)
    monkeypatch.setattr(log, "info", found.append)
    return found


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have STAGETRACE_SLA name a file in this process."""
    path = tmp_path / "sla.yaml"
    path.write_text(FAST)
    monkeypatch.setenv("STAGETRACE_SLA", str(path))
    monkeypatch.setattr(process, "_followers", [])
    process._file.cache_clear()
    yield path
    process._file.cache_clear()


@pytest.fixture
def sampler(monkeypatch: pytest.MonkeyPatch) -> Iterator[StallSampler]:
    """Have a sampler of late requests for the processors of a test alone."""
    found = StallSampler()
    monkeypatch.setattr(processor_module, "stall_sampler", found)
    yield found
    for judge in found._judges:
        found.remove(judge.learned)


def within_ms() -> float | None:
    """Return the bound of the policy in force."""
    used = process.policy()
    return None if used is None else used.objectives[0].within_ns / 1e6


def look_twice() -> None:
    process.look_at_file()
    process.look_at_file()


@pytest.mark.parametrize(
    "replace", [in_place, by_rename, with_the_times_of_before, after_the_clock_was_set_back, by_a_link]
)
def test_a_new_content_is_taken_over_however_it_comes(
    path: Path, replace: Replace, logged: list[str], sampler: StallSampler
) -> None:
    """By the processors of the process and by the sampler of late requests; what was learned stays."""
    replace(path, FAST)
    assert within_ms() == 1
    processor = SLASpanProcessor(process.policy(), SpanProcessor())
    learned = processor.learned
    process.follow(processor)
    for text, bound in ((SLOW, 9), (FAST, 1)):
        replace(path, text)
        look_twice()
        assert within_ms() == bound
        assert processor.policy is process.policy()
        assert [(one.bounds.policy, one.learned) for one in sampler._judges] == [(process.policy(), learned)]
    assert logged == [f"the policy file {path} has changed, judging by: 1 objectives"] * 2
    assert process.policy_problems() == ()


def test_a_file_that_is_being_written_is_not_taken_over(path: Path) -> None:
    """The half of a file may be a whole policy."""
    assert within_ms() == 1
    path.write_text("objectives:\n- within: 2ms\n")
    process.look_at_file()
    path.write_text("objectives:\n- within: 2ms\n  target: 90%\n- within: 3ms\n")
    process.look_at_file()
    assert within_ms() == 1
    process.look_at_file()
    assert [one.target for one in process.policy().objectives] == [0.9, 0.99]  # type: ignore[union-attr]


def test_a_broken_content_leaves_the_policy_in_force_and_is_logged_once(path: Path, logged: list[str]) -> None:
    assert within_ms() == 1
    for number, text in enumerate((BROKEN, None, "\udcff")):
        if text is None:
            path.unlink()
        else:
            path.write_bytes(text.encode(errors="surrogateescape"))
        for _ in range(4):
            process.look_at_file()
        assert within_ms() == 1
        assert len(logged) == number + 1
        assert "stays in force" in logged[-1]
        assert "cannot read the policy" in process.policy_problems()[0]
        assert process.policy_fix()
    path.write_text(BROKEN)
    look_twice()
    assert (len(logged), len(process.policy_problems())) == (3, 1)  # logged before
    path.write_text(FAST)
    look_twice()
    assert (within_ms(), process.policy_problems(), len(logged)) == (1, (), 3)
    path.write_text(SLOW)
    look_twice()
    assert within_ms() == 9


def test_a_file_that_cannot_be_read_at_first_is_used_as_soon_as_it_can(
    path: Path, logged: list[str], sampler: StallSampler
) -> None:
    path.write_text(BROKEN)
    assert (process.policy(), process.is_given()) == (None, True)
    assert logged[0].startswith("STAGETRACE_SLA is ignored, requests are traced without a verdict: cannot read the pol")
    assert "sla.yaml:1:23: within: the duration '1' has no unit" in process.objectives_text()
    processor = SLASpanProcessor(process.policy(), SpanProcessor())
    process.follow(processor)
    look_twice()
    assert processor.policy is None
    path.write_text(SLOW)
    look_twice()
    assert processor.policy is process.policy() is not None
    assert [(one.bounds.policy, one.learned) for one in sampler._judges] == [(process.policy(), processor.learned)]
    path.write_text("objectives: [{match: {route: GET /x}, excluded: true}]")
    look_twice()
    assert not sampler._judges
    path.write_text(SLOW)
    processor.shutdown()
    look_twice()
    assert (within_ms(), sampler._judges) == (9, [])


def test_a_path_is_that_of_the_folder_in_which_the_process_began(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("STAGETRACE_SLA", path.name)
    assert within_ms() == 1
    monkeypatch.chdir("/")
    path.write_text(SLOW)
    look_twice()
    assert (within_ms(), process.policy_problems()) == (9, ())


@pytest.mark.parametrize("part", ["content", "decoded", "Policy", "blake2b", "log"])
def test_no_fault_of_reading_the_file_reaches_the_service(
    path: Path, part: str, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    """The policy stays in force; without the fault the file is read again."""
    assert (within_ms(), logged) == (1, [])
    path.write_text(SLOW)
    process.look_at_file()
    with monkeypatch.context() as patched:
        patched.setattr(followed_file, part, None)
        look_twice()
    assert guard.failures or process.policy_problems()
    path.write_text(FAST)
    look_twice()
    path.write_text(SLOW)
    look_twice()
    assert (within_ms(), process.policy_problems()) == (9, ())


def test_a_forked_child_takes_over_what_its_parent_was_about_to(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that looks is in the midst of it as another one forks."""
    assert within_ms() == 1
    processor = SLASpanProcessor(process.policy(), SpanProcessor())
    process.follow(processor)
    path.write_text(SLOW)
    process.look_at_file()
    file = process._file()
    assert file is not None
    file._taken = file._seen
    monkeypatch.setattr(os, "getpid", lambda: -1)
    look_twice()
    assert (within_ms(), processor.policy) == (9, process.policy())


def found(folder: Path) -> list[dict[str, object]]:
    """Return the status of each process."""
    return [one.status for one in files.read(folder) if one.status is not None]


def statuses(folder: Path, count: int, text: str, problem: str | None = None) -> list[dict[str, object]]:
    """Return the status of each worker, as soon as all have this policy."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        all_ = found(folder)
        problems = [str(one["policy_problem"] or "") for one in all_]
        ready = all(text in str(one["policy"]) for one in all_) and all((problem or "") in one for one in problems)
        if len(all_) == count and ready and (problem is not None or not any(problems)):
            return all_
        time.sleep(0.05)
    raise AssertionError(f"not within a minute: {found(folder)}")


@pytest.mark.usefixtures("services")
def test_the_workers_of_a_service_judge_by_the_new_file(tmp_path: Path) -> None:
    """Each by itself; a broken file in between leaves the old one in force."""
    path, folder = tmp_path / "sla.yaml", tmp_path / "status"
    path.write_text("objectives:\n- name: first\n  within: 1m\n")
    server = [PYTHON, "-m", "gunicorn", "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "--preload"]
    argv = [*server, "-b", "127.0.0.1:{port}", "ml:app"]
    with run_sink() as sink:
        env = sink.environment(STAGETRACE_STATUS=str(folder), STAGETRACE_SLA=str(path))
        with run_service(tmp_path, argv=argv, env=env) as service:
            statuses(folder, 2, "first")
            traces = [service.call("GET", "/plain")[0]]
            by_rename(path, "objectives:\n- name: second\n  within: 1m\n")
            statuses(folder, 2, "second")
            traces.append(service.call("GET", "/plain")[0])
            path.write_text(BROKEN)
            for one in statuses(folder, 2, "second", "has no unit"):
                assert one["policy_file"] == str(path)
            traces.append(service.call("GET", "/plain")[0])
        names = [sink.request(trace).entry.attributes["sla.objective"] for trace in traces]
    assert names == ["first", "second", "second"]
    assert service.log.count("has no unit") == 2


FORKING = """
import os, signal, sys
import uvicorn
from ml import app

port = int(os.environ["PORT"])

def serve():
    server = uvicorn.Server(uvicorn.Config(app, port=port))
    signal.signal(signal.SIGUSR1, lambda *_: setattr(server, "should_exit", True))
    server.run()

serve()
child = os.fork()
if child == 0:
    serve()
    os._exit(0)
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
os.waitpid(child, 0)
"""


@pytest.mark.usefixtures("services")
def test_a_child_forked_by_a_process_that_has_served_follows_the_file(tmp_path: Path) -> None:
    """It has none of the threads of its parent, and writes its own status."""
    path, folder, script = tmp_path / "sla.yaml", tmp_path / "status", tmp_path / "forking.py"
    path.write_text("objectives:\n- name: first\n  within: 1m\n")
    script.write_text(FORKING)
    with run_sink() as sink:
        env = sink.environment(STAGETRACE_STATUS=str(folder), STAGETRACE_SLA=str(path), PYTHONPATH=str(APPS))
        with run_service(tmp_path, argv=[PYTHON, str(script)], env=env) as service:
            (parent,) = (one["pid"] for one in statuses(folder, 1, "first"))
            service.process.send_signal(signal.SIGUSR1)
            until(lambda: [one["policy"] for one in found(folder) if one["pid"] != parent])
            by_rename(path, "objectives:\n- name: second\n  within: 1m\n")
            statuses(folder, 2, "second")  # the parent follows it as well, and serves no more
            trace = service.call("GET", "/plain")[0]
        assert sink.request(trace).entry.attributes["sla.objective"] == "second"
