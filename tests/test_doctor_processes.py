"""`stagetrace doctor` on running processes: what their status files say of delivery, waits, losses and patches."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from doctor import checks, made, run, run_here
from services import PYTHON, asgi_command, run_service
from sink import run_sink
from stagetrace.output import processes
from stagetrace.output.processes import FAIL, OK, WARN
from stagetrace.process_status import files as status
from test_status import NOWHERE, environment, has_delivered_three, status_in


@pytest.mark.usefixtures("services")
def test_a_running_service_is_shown_with_its_counts(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    policy = {"STAGETRACE_SLA": "POST /predict within 2s"}  # which a busy machine keeps, too
    with run_sink() as sink, run_service(tmp_path, env={**environment(folder, sink.endpoint), **policy}) as service:
        for inference_s in (0, 0, 2.1):
            service.call("POST", "/predict", json={"inference_s": inference_s})
        one = status_in(folder, has_delivered_three)
        name = f"process {one['pid']}"
        (found,) = checks(tmp_path)[name]
        (alone,) = checks(tmp_path, "--pid", str(one["pid"]))[name]
        shown = run(tmp_path, "--pid", str(one["pid"]))
    assert found.state == OK
    assert found.found.startswith("shop (")
    assert "; 3 requests judged, 1 breaches, " in found.found
    assert f"{one['spans']['received']} recorded, {one['spans']['received']} delivered, 0 waiting, 0" in found.found
    assert alone == found
    assert shown.returncode == 0
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert ["POST", "/predict", "within", "2s", "breach", "1"] in rows
    (cause,) = one["causes"]
    assert [cause, "1"] in rows
    assert ["delivered", str(one["spans"]["received"])] in rows
    assert ["service", "shop"] in rows


@pytest.mark.usefixtures("services")
def test_a_service_whose_sdk_is_switched_off_says_that_it_records_nothing(tmp_path: Path) -> None:
    """In its log at the start, and to doctor, which once listed it as any other."""
    folder = tmp_path / "status"
    env = {**environment(folder, "http://127.0.0.1:9"), "STAGETRACE_SLA": "* within 1ms", "OTEL_SDK_DISABLED": "true"}
    with run_service(tmp_path, env=env) as service:
        assert service.call("POST", "/predict", json={"inference_s": 0})[1].status_code == 200
        one = status_in(folder, lambda status: "target" in status)
        found = checks(tmp_path)[f"process {one['pid']}"]
    assert "recording in process" not in service.log
    assert f"records nothing in process {one['pid']}: OTEL_SDK_DISABLED=true. Unset it to record." in service.log
    assert "records nothing, spans go nowhere: OTEL_SDK_DISABLED=true" in [
        check.found for check in found if check.state == FAIL
    ]


@pytest.mark.usefixtures("services")
def test_what_costs_latency_in_a_running_service_is_reported(tmp_path: Path) -> None:
    """A blocked event loop, a full thread pool, and requests that the head sampler drops."""
    folder = tmp_path / "status"
    sampler = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    argv = asgi_command("uvicorn", "any_bare")
    env = environment(folder, NOWHERE, STAGETRACE_SOCKET_WAIT="1", **sampler)
    with run_service(tmp_path, argv=argv, env=env, ready="/answer") as service, ThreadPoolExecutor(50) as clients:
        get = service.client.get
        assert {one.status_code for one in clients.map(lambda _: get("/thread?hold_s=1.5"), range(50))} == {200}
        blocking = clients.submit(get, "/block?block_s=1")
        for _ in range(100):  # one at least is sent meanwhile
            clients.submit(get, "/answer")
        assert blocking.result().status_code == 200
        one = status_in(folder, lambda one: {"socket", "thread_pool"} <= set(one["waits"]))
        states = {check.found: check for check in checks(tmp_path)[f"process {one['pid']}"]}
        first = next(line for line in service.log.splitlines() if "recording in process" in line)
    lain, taken, sampled = (
        next(check for found, check in states.items() if words in found)
        for words in ("lay in their socket while the event loop", "found all threads of anyio's pool taken", "sampler")
    )
    assert (lain.state, taken.state, sampled.state) == (WARN, WARN, OK)
    assert "`async def`" in lain.fix
    assert "total_tokens" in taken.fix
    assert sampled.found.startswith("its head sampler is TraceIdRatioBased{0.25}: ")
    assert f"recording in process {one['pid']} (anyio, " in first
    assert "uvicorn), spans to otlp_proto_grpc http://127.0.0.1:1, head sampler TraceIdRatioBased{0.25}, " in first
    assert first.endswith("judging by: POST /predict within 20ms; GET /plain within 1s")


def test_async_handlers_are_named_to_a_service_that_has_an_event_loop_alone() -> None:
    for server, is_async in (("gunicorn.workers.gthread", False), ("uvicorn.server", True)):
        told = {"patches": {"patched": [server]}, "waits": {"socket": 100}}
        *_, waited = processes.checks(status.Found(Path("7-7.json"), told, alive=True))
        assert waited.state == WARN
        assert ("`async def`" in waited.fix, "more workers" in waited.fix) == (is_async, True)


@pytest.mark.usefixtures("services")
def test_this_shell_is_not_warned_of_where_traced_processes_run(tmp_path: Path) -> None:
    folder = tmp_path / "status"
    with run_service(tmp_path, env=environment(folder, NOWHERE)) as service:
        service.call("GET", "/plain")
        status_in(folder, lambda status: "target" in status)
        with_service = checks(tmp_path)
    without = checks(tmp_path)
    for name in ("switch", "policy"):
        ((alone,), (beside,)) = without[name], with_service[name]
        assert (alone.state, beside.state) == (WARN, OK)
        assert beside.found == f"{alone.found}; that is of this shell, the processes below have settings of their own"


def test_a_wait_now_and_then_is_no_warning() -> None:
    told = {"judged": {"* within 1s": {"good": 990, "breach": 10}}, "waits": {"grpc_pool": 9, "executor": 10}}
    _, executor, pool = processes.checks(status.Found(Path("7-7.json"), told, alive=True))
    assert (executor.state, pool.state) == (WARN, OK)
    assert pool.found.endswith("(1000 requests in all), which is seldom")


@pytest.fixture(scope="module")
def troubled(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the status of a process without delivery, with a failing patch and a bad spool, and what doctor finds."""
    (folder / "file").write_text("")
    env = environment(
        folder / "status",
        NOWHERE,
        BREAK="stagetrace.protocols.http_request:HttpRequest.set_route",
        STAGETRACE_SPOOL=str(folder / "file" / "spool"),
        STAGETRACE_SLA="/nowhere within 1s",
    )
    with run_service(folder, "broken", env=env) as service:
        for _ in range(12):
            service.call("GET", "/plain")
        one = status_in(folder / "status", lambda one: one["trouble"] is not None and one["patches"]["switched_off"])
        return one, json.loads(run_here(folder, "--json").stdout)


def test_every_json_key_is_described(troubled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    section = page.partition("## `doctor --json`\n")[2].partition("\n## ")[0]
    described = {
        word for cell in re.findall(r"^\| (`[^|]+) \|", section, re.MULTILINE) for word in re.findall(r"`(\w+)`", cell)
    }
    one, answer = troubled
    assert [process["pid"] for process in answer["processes"]] == [one["pid"]]
    assert described == {*answer, *answer["checks"][0], *one}
    inner = {*one["spans"], *one["trouble"], *one["patches"]}
    assert inner <= set(re.findall(r"`(\w+)`", section))


def test_what_is_wrong_in_a_running_service_fails(troubled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Nothing delivered, a patch switched off, a policy that matches nothing, a bad spool."""
    one, answer = troubled
    assert answer["ok"] is False
    found = [made(check) for check in answer["checks"]]
    process = [check for check in found if check.name == f"process {one['pid']}"]
    states = {check.found.split(":")[0].split(" since ")[0]: check.state for check in process}
    assert states.pop(next(iter(states))) == OK
    assert states.pop("cannot deliver to otlp_proto_grpc http") == FAIL
    assert states.pop("patches switched off after 10 failures each") == FAIL
    assert states.pop("faults of stagetrace itself, without harm to requests") == WARN
    assert states.pop(next(state for state in states if state.startswith("its policy matched none"))) == WARN
    assert states == {}
    assert [check.state for check in found if check.name == "spool"] == [OK, FAIL]


def test_no_such_process_is_a_failure(tmp_path: Path) -> None:
    found = checks(tmp_path, "--pid", "4194305")
    assert [(check.name, check.state, check.found) for check in found.pop("processes")] == [
        ("processes", FAIL, "there is no traced process 4194305")
    ]
    assert found == {}


def test_files_of_killed_processes_are_cleared_and_counted(tmp_path: Path) -> None:
    folder, me = tmp_path / "status", status.myself()
    status.write(folder, me._replace(pid=2**22 + 1), json.dumps({"namespace": me.namespace}))
    found = checks(tmp_path)["processes"]
    assert found[0].found == "deleted files: 1 of a process that was killed"
    assert list(folder.iterdir()) == []


ODD = [
    "{}",
    '{"spans": 3, "judged": [], "patches": "x", "trouble": {"reason": 4}, "policy": 5, "started_unix": 1e300}',
    '{"spans": {"received": "many"}, "judged": {"a": 3, "b": {"good": null}}, "patches": {"failed": {"a": [1]}}}',
    '{"service": "\\u001b[31mred", "command": null, "patches": {"failures": {"x": {}}}, "policy_problem": ["a"]}',
]


@pytest.mark.parametrize("text", ["", "[", *ODD])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_whatever_stands_in_a_file_is_no_traceback(text: str, form: list[str], tmp_path: Path) -> None:
    """Root reads files of other users."""
    me = status.myself()
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / me.name).write_text(text)
    done = run_here(tmp_path, "--pid", str(me.pid), *form)
    assert done.stderr == ""
    assert done.returncode in (0, 1)
    assert f"process {me.pid}" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_file_that_has_changed_and_cannot_be_used_is_a_failure() -> None:
    problem = "sla.yaml:1:23: within: the duration '1' has no unit.\nwrite 1ms"
    policy = {"policy": ["a for 99% over 28d"], "policy_file": "sla.yaml", "policy_problem": problem}
    _, found = processes.checks(status.Found(Path("7-7.json"), policy, alive=True))
    what = f"its STAGETRACE_SLA is used as it was before its file changed: {problem.splitlines()[0]}"
    assert (found.state, found.found, found.fix) == (FAIL, what, "write 1ms")


def test_losses_are_warned_of() -> None:
    counts = {"received": 100, "dropped": 5, "dropped_breaches": 2, "rejected": 3, "lost": 4, "spool_full": 1}
    one = status.Found(Path("7-7.json"), {"spans": counts}, alive=True)
    about, dropped, lost = processes.checks(one)
    assert about.state == OK
    assert (dropped.state, dropped.found) == (WARN, "7 spans dropped for want of room, 2 of them of breaches")
    assert lost.found == (
        "spans lost: 3 rejected by the receiver out of good batches, 1 not spooled, since the spool was full, "
        "4 not delivered before the end"
    )


def test_ignored_times_of_a_load_balancer_are_warned_of() -> None:
    one = status.Found(Path("7-7.json"), {"ignored_headers": {"in the future": 3, "unreadable": 1}}, alive=True)
    _, ignored = processes.checks(one)
    assert ignored.state == WARN
    assert ignored.found.endswith("were not plausible, and ignored: 3 in the future, 1 unreadable")


def test_stacks_that_were_not_sampled_are_shown() -> None:
    one = status.Found(Path("7-7.json"), {"skipped_stalls": 12}, alive=True)
    _, skipped = processes.checks(one)
    assert skipped.state == WARN
    assert skipped.found.startswith("stacks of late requests that were not sampled: 12;")


@pytest.mark.parametrize(("word", "state"), [("skipped", WARN), ("not_reached", WARN), ("libraries", OK)])
def test_breaches_without_a_line_of_code_are_counted_by_the_reason(word: str, state: str) -> None:
    counts = {"judged": {"fast": {"breach": 40, "good": 2}}, "without_code": {word: 7, "not_late": 2}}
    _, without = processes.checks(status.Found(Path("7-7.json"), counts, alive=True))
    assert without.state == state
    assert without.found.startswith("without a line of code: 9 of 40 breaches (7 ")


@pytest.mark.usefixtures("services")
def test_sources_that_a_unix_socket_lacks_are_shown_for_the_process(tmp_path: Path) -> None:
    folder, path = tmp_path / "status", tmp_path / "socket"
    env = environment(folder, NOWHERE, STAGETRACE_SOCKET_WAIT="1", STAGETRACE_WIRE="1")
    env |= {"MODULE": "ml", "UNIX_SOCKET": str(path)}
    argv = [PYTHON, "two_sockets.py"]
    with run_service(tmp_path, env=env, argv=argv) as service:
        assert service.call("POST", "/predict", json={})[1].status_code == 200
        assert status_in(folder)["silent_sources"] == {}
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://x") as client:
            assert client.post("/predict", json={}).status_code == 200
        one = status_in(folder, lambda one: one["silent_sources"])
        found = checks(tmp_path, "--pid", str(one["pid"]))[f"process {one['pid']}"]
    (unmeasured,) = (one.found for one in found if one.state == OK and "not measured" in one.found)
    for title in ("the wait in the socket", "the wire behind a connection"):
        assert f"{title} (requests came by a Unix socket, for which the kernel has no readings)" in unmeasured
