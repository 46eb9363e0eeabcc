"""The status file of a serving process is true, private and removed with it; no fault of its disk harms the process."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from services import Service, asgi_command, run_python, run_service
from sink import Sink, run_sink
from stagetrace.causes.cause import WORDS
from stagetrace.policy.policy import Policy
from stagetrace.process_status import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WITHIN_S = 60


NOWHERE = "http://127.0.0.1:1"  # a process that ends tries for seconds to deliver to it


def environment(folder: Path, endpoint: str | None = None, **more: str) -> dict[str, str]:
    """Return the variables of a service that writes its status there, and sends spans to `endpoint`, or nowhere."""
    policy = "POST /predict within 20ms for 99.9%; GET /plain within 1s over 7d"
    usual = {"STAGETRACE_STATUS": str(folder), "STAGETRACE_SLA": policy, "OTEL_SERVICE_NAME": "shop"}
    if endpoint is None:
        usual["OTEL_TRACES_EXPORTER"] = "none"
    return Sink(endpoint or "").environment(**{**usual, **more})


def status_in(folder: Path, ready: Callable[[dict[str, Any]], bool] = bool) -> dict[str, Any]:
    """Return the status of the one process there, as soon as `ready` is true for it."""
    deadline = time.monotonic() + WITHIN_S
    found: list[files.Found] = []
    while time.monotonic() < deadline:
        found = list(files.read(folder))
        if len(found) == 1 and found[0].status is not None and ready(found[0].status):
            return found[0].status
        time.sleep(0.02)
    raise AssertionError(f"not within {WITHIN_S} s: {found}")


def has_delivered_three(one: dict[str, Any]) -> bool:
    """Return whether three requests were judged and no span waits for delivery."""
    judged: int = sum(count for verdicts in one["judged"].values() for count in verdicts.values())
    return judged == 3 and bool(one["spans"]["delivered"] == one["spans"]["received"])


@pytest.mark.usefixtures("services")
def test_a_serving_process_writes_its_status(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    policy = "POST /predict within 2s for 99.9%; GET /plain within 1s over 7d"  # which a busy machine keeps, too
    with (
        run_sink() as sink,
        run_service(tmp_path, env=environment(folder, sink.endpoint, STAGETRACE_SLA=policy)) as service,
    ):
        for inference_s in (0, 0, 2.1):
            service.call("POST", "/predict", json={"inference_s": inference_s})
        one = status_in(folder, has_delivered_three)
        assert service.call("GET", "/health")[1].json() == {"pid": one["pid"]}
    assert one["service"] == "shop"
    assert one["command"].split()[1:4] == ["-m", "uvicorn", "ml:app"]
    assert one["target"] == f"otlp_proto_grpc {sink.endpoint}"
    assert one["judged"] == {"POST /predict within 2s": {"good": 2, "breach": 1}}
    assert list(one["causes"].values()) == [1]
    assert set(one["causes"]) <= set(WORDS)
    assert one["unmatched"] >= 1  # /health
    assert one["spans"]["received"] == one["spans"]["delivered"] + one["spans"]["waiting"]
    assert (one["trouble"], one["policy_problem"]) == (None, None)
    assert one["policy"] == ["POST /predict within 2s for 99.9% over 28d", "GET /plain within 1s for 99% over 7d"]
    assert {"fastapi.applications", "sklearn.base"} <= set(one["patches"]["patched"])
    assert (one["patches"]["failed"], one["patches"]["switched_off"], one["patches"]["failures"]) == ({}, [], {})
    assert one["sampler"].startswith("ParentBased{root:AlwaysOnSampler")
    assert abs(one["started_unix"] - time.time()) < 120
    assert {"stagetrace", "opentelemetry-sdk"} <= set(one["versions"])


@pytest.fixture(scope="module")
def troubled(folder: Path) -> dict[str, Any]:
    """Return the status of a process that can deliver nothing, has an unusable policy, and a failing patch."""
    env = environment(
        folder / "status",
        "http://user:secret@127.0.0.1:1",
        OTEL_EXPORTER_OTLP_HEADERS="authorization=hidden",
        STAGETRACE_SLA="/predict within 5",
        BREAK="stagetrace.protocols.http_request:HttpRequest.set_route",
    )
    with run_service(folder, "broken", env=env) as service:
        for _ in range(12):
            service.call("GET", "/plain")
        return status_in(
            folder / "status", lambda one: one["trouble"] is not None and bool(one["patches"]["switched_off"])
        )


def test_the_reason_of_failed_delivery_is_written_without_secrets(troubled: dict[str, Any]) -> None:
    assert troubled["target"] == "otlp_proto_grpc http://REDACTED@127.0.0.1:1"
    assert abs(troubled["trouble"]["since_unix"] - time.time()) < 120
    assert troubled["trouble"]["reason"].startswith("UNAVAILABLE")
    assert not {word for word in ("secret", "hidden") if word in json.dumps(troubled)}


def test_a_patch_that_was_switched_off_is_written(troubled: dict[str, Any]) -> None:
    assert troubled["patches"]["switched_off"] == ["stagetrace.patches.starlette"]
    assert troubled["patches"]["failures"] == {"stagetrace.patches.starlette": 10}


def test_an_unused_policy_is_written_with_the_reason(troubled: dict[str, Any]) -> None:
    assert troubled["policy"] == []
    assert "the duration '5' has no unit" in troubled["policy_problem"]


def judging(log: str) -> str:
    """Return the part of the line at the start about the policy."""
    (line,) = [line for line in log.splitlines() if "recording in process" in line]
    return line.partition("judging by: ")[2]


UNREADABLE = "cannot read the SLA rule 'POST /predict within 5'"
PART = f"{UNREADABLE}: the duration '5' has no unit (us, ms, s, m): write 5ms"


@pytest.mark.usefixtures("services")
def test_a_policy_of_which_one_rule_cannot_be_read_is_used_for_the_others(tmp_path: Path) -> None:
    """The start reports the unused rule; its requests are not judged by the next matching one."""
    folder = tmp_path / "status"
    policy = "POST /predict within 5; * within 2 s"
    with run_sink() as sink:
        with run_service(tmp_path, env=environment(folder, sink.endpoint, STAGETRACE_SLA=policy)) as service:
            service.call("GET", "/plain")
            service.call("POST", "/predict", json={"text": "a"})
            one = status_in(folder, lambda one: one["unmatched"] > 0 and bool(one["judged"]))
        assert judging(service.log) == f"* within 2s; {UNREADABLE}"
        assert f"STAGETRACE_SLA is used in part; requests of these rules are not judged: {PART}.\n" in service.log
    assert one["policy"] == ["* within 2s for 99% over 28d"]
    assert one["policy_problem"].startswith(f"{PART}.\nWrite [METHOD] ROUTE within DURATION")
    assert set(one["judged"]) == {"* within 2s"}
    assert one["unmatched"] == 1


@pytest.mark.usefixtures("services")
def test_the_start_logs_what_cannot_be_read_and_not_that_nothing_is_given(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    with run_service(tmp_path, env=environment(folder, STAGETRACE_SLA="POST /predict within 5")) as service:
        status_in(folder)
    assert judging(service.log) == f"no objective; {UNREADABLE}"
    with run_service(tmp_path, env=environment(folder, STAGETRACE_SLA="")) as service:
        status_in(folder)
    assert judging(service.log) == "no objective given (STAGETRACE_SLA)"


@pytest.mark.usefixtures("services")
def test_spans_of_other_peoples_processors_are_unknown_and_not_zero(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    env = environment(folder, SINK="http://127.0.0.1:1", KIND="provider")
    with run_service(tmp_path, "asgi_beside", env=env) as service:
        service.call("POST", "/predict", json={})
        one = status_in(folder)
    assert one["spans"] is None
    assert one["target"] == "the tracer provider that this service set"


@pytest.mark.parametrize("launcher", ["python -m", "gunicorn --preload", "uvicorn --workers 2"])
@pytest.mark.usefixtures("services")
def test_each_worker_has_a_file_for_its_owner_alone_and_removes_it(launcher: str, tmp_path: Path) -> None:
    folder = tmp_path / "status"
    workers = 1 if launcher == "python -m" else 2
    with run_service(tmp_path, launcher=launcher, env=environment(folder)) as service:
        deadline = time.monotonic() + WITHIN_S
        while len(found := list(files.read(folder))) < workers and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len({one.status["pid"] for one in found if one.status}) == workers
        assert service.call("GET", "/health")[1].json()["pid"] in {one.status["pid"] for one in found if one.status}
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())]
        assert modes == [0o700, *[0o600] * workers]
        service.stop()
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("services")
def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    with run_service(tmp_path, env=environment(folder)) as service:
        killed = status_in(folder)["pid"]
        service.stop(signal.SIGKILL)
    (left,) = files.read(folder)
    assert left.alive is False
    with run_service(tmp_path, env=environment(folder)):
        # Its own file comes a moment after it is ready: until then the killed one's is the only one there.
        status_in(folder, lambda one: one["pid"] != killed)


@pytest.mark.thorough
@pytest.mark.parametrize("code", ["import sklearn.linear_model", "import fastapi; fastapi.FastAPI()"])
def test_a_process_that_serves_nothing_writes_no_file(code: str, tmp_path: Path) -> None:
    done = run_python("-c", code, **environment(tmp_path / "status"))
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "status").exists()


@pytest.mark.usefixtures("services")
def test_a_process_with_status_files_switched_off_writes_none(tmp_path: Path) -> None:
    env = environment(tmp_path, STAGETRACE_STATUS="0", XDG_RUNTIME_DIR=str(tmp_path), TMPDIR=str(tmp_path))
    with run_service(tmp_path, env=env) as service:
        service.call("GET", "/plain")
        service.stop()
    assert [path for path in tmp_path.rglob("*") if "stagetrace" in path.name] == []


# A part of ours that fails or hangs, published often; how often it was tried, the service tells.
OFTEN = """
import time
from stagetrace.runtime import runtime; from stagetrace.process_status import files
runtime.IDLE_EVERY_S = 0.05
tries = []
"""
FULL = """
import errno, os
def full(*_, **__):
    tries.append(1)
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
files.write = full
"""
NO_FOLDER = """
write = files.write
def counted(*arguments):
    tries.append(1)
    return write(*arguments)
files.write = counted
files.folder = lambda: files.Path('/proc/stagetrace')
"""
HANGS = """
def hangs(*_):
    tries.append(1)
    time.sleep(3600)
files.PART = hangs
"""
FAULTY = """
from stagetrace.process_status import publish
def faulty():
    tries.append(1)
    return 1 / 0
publish._spans = faulty
"""
TRIES = """
from ml import app
@app.get("/tries")
async def count_tries() -> int:
    return len(tries)
"""


@contextmanager
def sabotaged(folder: Path, code: str, endpoint: str, **more: str) -> Iterator[Service]:
    """Serve the ml app after `code`."""
    (folder / "sabotaged.py").write_text(OFTEN + code + TRIES)
    env = environment(folder / "status", endpoint, PYTHONPATH=str(folder), **more)
    with run_service(folder, argv=asgi_command("uvicorn", "sabotaged"), env=env) as service:
        yield service


def serves_and_stops(service: Service, tries: int) -> None:
    for _ in range(3):
        assert service.call("POST", "/predict", json={})[1].json() == [0]
    deadline = time.monotonic() + WITHIN_S
    while service.client.get("/tries").json() < tries:
        assert time.monotonic() < deadline, service.log
        time.sleep(0.02)
    assert service.stop() in (0, -signal.SIGTERM)


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("code", "reason"),
    [(FULL, "No space left on device"), (NO_FOLDER, "/proc/stagetrace")],
    ids=["a full disk", "a folder that cannot be made"],
)
def test_an_unwritable_disk_is_logged_once_for_debugging(code: str, reason: str, tmp_path: Path) -> None:
    with run_sink() as sink:
        with sabotaged(tmp_path, code, sink.endpoint, STAGETRACE_LOG="debug") as service:
            serves_and_stops(service, tries=3)
            lines = [line for line in service.log.splitlines() if "`stagetrace doctor` will not see" in line]
        assert len(sink.traces()) >= 3
    assert len(lines) == 1, service.log
    assert reason in lines[0]
    assert "Traceback" not in service.log


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("part", ["write", "remove"])
def test_a_disk_that_hangs_holds_nothing_up(part: str, tmp_path: Path) -> None:
    """Requests get responses, spans are delivered at the end, and the process ends."""
    with run_sink() as sink:
        code = HANGS.replace("PART", part)
        with sabotaged(tmp_path, code, sink.endpoint, OTEL_BSP_SCHEDULE_DELAY="60000") as service:
            serves_and_stops(service, tries=int(part == "write"))  # a file is removed at the end
        assert len(sink.traces()) >= 3


@pytest.mark.usefixtures("services")
def test_an_error_of_ours_is_counted_and_logged_once(tmp_path: Path) -> None:
    with sabotaged(tmp_path, FAULTY, NOWHERE) as service:
        serves_and_stops(service, tries=3)
        assert service.log.count("ZeroDivisionError") == 1, service.log


# The files themselves.


def test_the_folder_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STAGETRACE_STATUS", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert files.folder() == tmp_path / "stagetrace"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/no/such/folder")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert files.folder() == tmp_path / f"stagetrace-{os.geteuid()}"


def test_a_folder_that_others_may_enter_is_not_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In /tmp another user may have created it before."""
    monkeypatch.delenv("STAGETRACE_STATUS", raising=False)
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    with pytest.raises(PermissionError, match="belongs to others, or is open to them"):
        files.write(tmp_path / "open", files.myself(), "{}")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        files.write(tmp_path / "link", files.myself(), "{}")


def test_a_living_process_is_distinguished_from_one_that_had_its_number(tmp_path: Path) -> None:
    me = files.myself()
    for one in (me, me._replace(ticks=me.ticks + 1), me._replace(pid=2**22 + 1)):
        (tmp_path / one.name).write_text(json.dumps({"namespace": me.namespace}))
    assert {found.path.name: found.alive for found in files.read(tmp_path)} == {
        me.name: True,
        me._replace(ticks=me.ticks + 1).name: False,
        me._replace(pid=2**22 + 1).name: False,
    }
    assert files.clear(tmp_path) == 2
    assert [path.name for path in tmp_path.iterdir()] == [me.name]


def test_a_process_of_another_container_is_left_alone(tmp_path: Path) -> None:
    """Its number means nothing here."""
    other = files.myself()._replace(pid=2**22 + 1)
    (tmp_path / other.name).write_text(json.dumps({"namespace": "pid:[1]"}))
    (found,) = files.read(tmp_path)
    assert found.alive is None
    assert files.clear(tmp_path) == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": NaN}', "[" * 100_000, "\xff"])
def test_a_file_that_cannot_be_read_is_no_error(text: str, tmp_path: Path) -> None:
    (tmp_path / files.myself().name).write_text(text, encoding="latin-1")
    assert [found.status for found in files.read(tmp_path)] == [None]


def test_neither_links_nor_pipes_are_followed(tmp_path: Path) -> None:
    me = files.myself()
    os.mkfifo(tmp_path / me.name)
    (tmp_path / me._replace(ticks=7).name).symlink_to(__file__)
    assert [found.status for found in files.read(tmp_path)] == [None, None]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("/a within 5ms", "/a within 5ms for 99% over 28d"),
        ("GET /a within 1s for 99.95% over 1w", "GET /a within 1s for 99.95% over 7d"),
        ("* within 1m for 100% over 90m", "* within 1m for 100% over 90m"),
        ("* within 1m over 36h", "* within 1m for 99% over 36h"),
    ],
)
def test_an_objective_in_words(rule: str, words: str) -> None:
    (objective,) = Policy.parse(rule).objectives
    assert files.objective_text(objective) == words
    assert Policy.parse(words).objectives[0].within_ns == objective.within_ns
