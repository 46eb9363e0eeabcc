"""`stagetrace doctor` as a user runs it: it finds each fault that an installation can have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from backend.running import run_up
from backends import free_port
from doctor import checks, run, run_here, sending_to
from otlp.receiver import Reply, run_receiver
from services import PYTHON, run_python
from sink import run_sink
from stagetrace.cli.doctor import checks as delivery
from stagetrace.cli.doctor import checks as installation
from stagetrace.otlp.export.spool import Spool
from stagetrace.output.processes import FAIL, OK, WARN, Check
from stagetrace.runtime import runtime
from stagetrace.system.packages import requirement

if TYPE_CHECKING:
    from backends import Collector, Jaeger

POLICY = "POST /predict within 50ms for 99.9% over 28d"


def compile_all() -> None:
    subprocess.run([PYTHON, "-m", "compileall", "-q", Path(runtime.__file__)], check=True)


def test_an_installation_without_bytecode_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As of uv, and of images that forbid to write it."""
    compile_all()
    assert installation.bytecode() == Check("bytecode", OK, "stagetrace is compiled")
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path))
    for forbidden, when in ((False, "first start of a service compiles it,"), (True, "PYTHONDONTWRITEBYTECODE is set")):
        monkeypatch.setattr(sys, "dont_write_bytecode", forbidden)
        found = installation.bytecode()
        assert found.state == WARN
        assert when in found.found
        assert found.fix is not None
        assert " -m compileall -q /" in found.fix
    command = installation.bytecode().fix.partition(",")[0].split()
    assert (Path(command[-1]) / "stagetrace" / "runtime").is_dir()


@pytest.mark.usefixtures("services")
@pytest.mark.smoke
def test_where_all_is_well_it_exits_zero(tmp_path: Path) -> None:
    compile_all()
    with run_sink() as sink:
        env = sending_to("grpc", sink.endpoint)
        done = run(tmp_path, STAGETRACE="1", STAGETRACE_NATIVE="0", STAGETRACE_SLA=POLICY, **env)
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines, blank, last = done.stdout.splitlines()
    assert head.split() == ["check", "found"]
    assert [line.split()[0] for line in lines] == ["ok"] * len(lines)
    names = ["python", "packages", "activation", "switch", "policy", "libraries", "native", "bytecode"]
    names += ["unseen time", "settings", "endpoint"]
    assert [re.split("  +", line)[1] for line in lines] == [*names, "spool", "back end", "processes"]
    assert (blank, last) == ("", f"Nothing fails; 0 of {len(lines)} checks warn.")


@pytest.mark.usefixtures("services")
def test_a_failure_is_followed_by_its_fix_and_the_exit_code_is_one(tmp_path: Path) -> None:
    done = run(tmp_path, STAGETRACE_SLA="POST /predict within 50")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.startswith("fail")]
    assert "STAGETRACE_SLA is not used: cannot read the SLA rule 'POST /predict within 50'" in lines[number]
    assert lines[number + 1].strip().startswith("-> Write [METHOD] ROUTE within DURATION")
    assert lines[-1].startswith("1 of ")
    done = run(tmp_path, STAGETRACE_SLA="POST /predict within 50; * within 1sec; GET /plain within 50 ms")
    assert done.returncode == 1
    assert (
        "STAGETRACE_SLA is used in part: cannot read the SLA rule 'POST /predict within 50': the duration '50' has "
        "no unit (us, ms, s, m): write 50ms; cannot read the SLA rule '* within 1sec': the duration '1sec' has "
        "the unit 'sec', which is none of us, ms, s, m: write 1s; "
        "its usable rules: GET /plain within 50ms for 99% over 28d\n"
    ) in done.stdout


@pytest.mark.parametrize("arguments", [["--pid", "none"], ["--pid", "0"], ["now"], ["--store", "x"]])
def test_wrong_usage_is_exit_code_two(arguments: list[str], tmp_path: Path) -> None:
    done = run_here(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) <= 3


def test_a_policy_file_is_read_as_a_service_would_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sla.yaml"
    monkeypatch.setenv("STAGETRACE_SLA", str(path))
    path.write_text(
        "objectives:" + "".join(f"\n- {{match: {{route: /{i}}}, name: r{i}, within: 1s}}" for i in range(60))
    )
    found = installation.policy()
    assert (found.state, found.found[:60]) == (OK, f"{path}: r0 for 99% over 28d; "[:60])
    assert found.found.endswith("; 10 more")
    path.write_text("objectives: [{within: 1s}, {name: dead, match: {route: POST /a}, within: 2s}]")
    found = installation.policy()
    assert (found.state, found.fix) == (WARN, f"stagetrace sla check {path} shows each with its place")
    assert "probably not meant: 'dead' can never judge" in found.found
    path.write_text("objectives: [{within: 1}]")
    found = installation.policy()
    assert (found.state, found.fix) == (FAIL, "write 1ms")
    assert found.found.startswith(
        f"STAGETRACE_SLA is not used: cannot read the policy {path}:1:23: within: the duration"
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Check]]:
    """Return the checks without an exporter and with some sources switched off."""
    hidden = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=hunter2"}
    off = {"STAGETRACE_SOCKET_WAIT": "0", "STAGETRACE_GC_PAUSE": "0", "STAGETRACE_STALLS": "0"}
    return checks(tmp_path_factory.mktemp("here"), STAGETRACE_SLA=POLICY, **hidden, **off)


def test_settings_of_this_shell(here: dict[str, list[Check]]) -> None:
    assert here["switch"][0].state == WARN
    assert here["switch"][0].found.startswith("STAGETRACE_SLA is set and STAGETRACE is not: ")
    assert here["policy"] == [Check("policy", OK, POLICY)]
    assert "OTEL_EXPORTER_OTLP_HEADERS (hidden)" in here["settings"][0].found
    assert "hunter2" not in str(here)
    assert here["endpoint"][0].state == WARN
    assert here["endpoint"][0].found == "OTEL_TRACES_EXPORTER=none: spans go nowhere"


@pytest.mark.thorough
def test_a_password_in_an_endpoint_is_not_shown(tmp_path: Path) -> None:
    endpoint = "http://user:hunter2@127.0.0.1:1"
    done = run_here(tmp_path, "--json", OTEL_TRACES_EXPORTER="otlp", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint)
    assert done.returncode == 1
    assert "http://127.0.0.1:1" in done.stdout
    assert "hunter2" not in done.stdout


def test_libraries_are_found_without_being_imported(here: dict[str, list[Check]]) -> None:
    (found,) = here["libraries"]
    assert all(f"{name} " in found.found for name in ("fastapi", "sklearn", "onnxruntime", "uvicorn", "aiohttp"))
    code = (
        "import sys; from stagetrace.cli.doctor import checks as i; i.libraries(['fastapi.x', 'sklearn.base']);"
        "print({'fastapi', 'sklearn', 'numpy'} & {*sys.modules})"
    )
    assert run_python("-c", code).stdout.strip() == "set()"


def test_servers_without_a_patch_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "find_spec", {"uvicorn": True, "robyn": True}.get)
    found = installation.libraries(["uvicorn.server"])
    assert found.found.endswith("; requests that robyn serves are not recorded")


def test_sources_that_the_platform_lacks_are_shown_with_the_reason(here: dict[str, list[Check]]) -> None:
    (found,) = here["unseen time"]
    measured, _, silent = found.found.partition("; not measured: ")
    assert "the wait for a CPU" in measured
    assert "the wait in the socket (switched off by STAGETRACE_SOCKET_WAIT)" in silent
    assert "the pauses of the garbage collector (switched off by STAGETRACE_GC_PAUSE)" in silent
    assert "the stacks of late requests (switched off by STAGETRACE_STALLS)" in silent


@pytest.mark.usefixtures("services")
def test_an_interpreter_that_reads_no_activation_file_is_reported(tmp_path: Path) -> None:
    """A virtual environment that sees this one's packages by PYTHONPATH alone."""
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True, timeout=60)
    python = tmp_path / "venv" / "bin" / "python"
    seen = os.pathsep.join(path for path in sys.path if path)
    code = (
        "from stagetrace.cli.doctor.checks import activation; c = activation()\nprint(c.state, c.found, c.fix, sep='|')"
    )
    env = {**os.environ, "PYTHONPATH": seen}
    done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=True)
    state, found, fix = done.stdout.strip().split("|")
    assert (state, found) == (
        FAIL,
        f"there is no stagetrace.pth on the path: STAGETRACE=1 alone does nothing in {python}",
    )
    assert fix.startswith(f"{python} -m pip install {requirement()}, or start the service with: stagetrace run")


# The way of spans.


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_the_endpoint_is_tried_for_real(protocol: str, jaeger: Jaeger, collector: Collector, tmp_path: Path) -> None:
    """Jaeger, a Collector and the embedded back end accept the export without spans, and store nothing."""
    grpc = protocol == "grpc"
    with run_up(tmp_path) as up:
        addresses = [
            jaeger.otlp_grpc if grpc else jaeger.otlp_http,
            collector.otlp_grpc if grpc else collector.otlp_http,
            f"http://{up.target()}" if grpc else up.url("http_port"),
        ]
        for address in addresses:
            endpoint = address if "://" in address else f"http://{address}"
            (found,) = checks(tmp_path, **sending_to(protocol, endpoint))["endpoint"]
            assert (found.state, "an export was accepted" in found.found) == (OK, True), found


@pytest.mark.usefixtures("services")
def test_a_span_makes_the_round_trip(jaeger: Jaeger, collector: Collector, tmp_path: Path) -> None:
    """It goes through the Collector into Jaeger, and is not found in another store."""
    env = sending_to("grpc", collector.otlp_grpc)
    (found,) = checks(tmp_path, "--round-trip", jaeger.url, **env)["round trip"]
    assert found.state == OK
    assert found.found.startswith(f"the span that was sent can be read from {jaeger.url}, ")


SENT = {"targets": [{"exporter": "otlp_proto_grpc", "endpoint": "http://x:4317", "delivered": True, "reason": ""}]}


def test_a_span_that_arrives_in_another_store_is_missed(monkeypatch: pytest.MonkeyPatch, jaeger: Jaeger) -> None:
    monkeypatch.setattr(delivery, "_ARRIVES_WITHIN_S", 0.5)
    missed = delivery.arrival("ab" * 16, jaeger.url, SENT)
    assert missed.state == FAIL
    assert missed.found.startswith(f"trace {'ab' * 16}, sent 0.5 s ago: ")


@pytest.mark.parametrize("url", ["", "jaeger:/x", "jaeger://", "jaeger://x:port", "nosuch://x", "/no/such/folder"])
def test_a_store_that_is_none_is_wrong_usage_at_once(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is checked, and nothing sent."""
    monkeypatch.delattr(delivery, "Probe")
    done = run_here(tmp_path, "--round-trip", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert 1 <= len(done.stderr.splitlines()) <= 3
    assert done.stderr.startswith("stagetrace: cannot open store ")


@pytest.mark.usefixtures("services")
def test_what_cannot_arrive_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing was sent, or the store does not respond."""
    store = f"jaeger://127.0.0.1:{free_port()}"
    monkeypatch.setattr(delivery, "_ARRIVES_WITHIN_S", 3600)
    nobody = delivery.arrival("ab" * 16, store, SENT)
    (unsent,) = checks(tmp_path, "--round-trip", store)["round trip"]  # no exporter is asked for there
    assert (nobody.state, unsent.state) == (FAIL, FAIL)
    assert store in nobody.found
    assert unsent.found == "no span was sent that could be read back"


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_headers_are_sent_and_missing_ones_are_asked_for(protocol: str, tmp_path: Path) -> None:
    with run_up(tmp_path, env={"STAGETRACE_TOKEN": "sesame"}) as up:
        endpoint = f"http://{up.target()}" if protocol == "grpc" else up.url("http_port")
        env = sending_to(protocol, endpoint)
        (refused,) = checks(tmp_path, **env)["endpoint"]
        env["OTEL_EXPORTER_OTLP_HEADERS"] = "authorization=Bearer%20sesame"
        (taken,) = checks(tmp_path, **env)["endpoint"]
    assert (refused.state, refused.fix.split("=")[0]) == (FAIL, "set OTEL_EXPORTER_OTLP_HEADERS")
    assert taken.state == OK


@pytest.mark.thorough
def test_a_receiver_that_does_not_answer_is_waited_for_within_a_bound(tmp_path: Path) -> None:
    with run_receiver() as receiver, ThreadPoolExecutor(2) as pool:
        receiver.always = Reply(pause_s=20)
        endpoints = {"grpc": receiver.grpc, "http/protobuf": receiver.http}
        started = [pool.submit(run, tmp_path, "--json", **sending_to(*each)) for each in endpoints.items()]
        answers = [json.loads(one.result().stdout) for one in started]
        receiver.always = Reply()
    for answer, endpoint in zip(answers, endpoints.values(), strict=True):
        (found,) = [check for check in answer["checks"] if check["name"] == "endpoint"]
        assert found["state"] == FAIL
        assert endpoint in found["found"]


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("env", "found", "fix"),
    [
        ({"OTEL_TRACES_EXPORTER": "otpl"}, "there is no exporter 'otpl'", "set OTEL_TRACES_EXPORTER or OTEL_"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
            "there is no exporter of http/json",
            "set OTEL_",
        ),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "http://127.0.0.1:1", "start a Collector there"),
    ],
)
def test_what_cannot_be_delivered_to(env: dict[str, str], found: str, fix: str, tmp_path: Path) -> None:
    (one,) = checks(tmp_path, **{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", **env})["endpoint"]
    assert one.state == FAIL
    assert found in one.found
    assert one.fix.startswith(fix)


@pytest.mark.usefixtures("services")
def test_the_embedded_back_end_is_seen(tmp_path: Path) -> None:
    (away,) = checks(tmp_path)["back end"]
    assert (away.state, away.found.split(" at ")[0]) == (OK, "`stagetrace up` does not run")
    with run_up(tmp_path, env={"STAGETRACE_TOKEN": "sesame"}) as up:
        ports = {f"STAGETRACE_{name}": str(up.ready[name.lower()]) for name in ("HTTP_PORT", "QUERY_HTTP_PORT")}
        (there,) = checks(tmp_path, **ports)["back end"]
        (half,) = checks(tmp_path, **{**ports, "STAGETRACE_QUERY_HTTP_PORT": str(free_port())})["back end"]
        other = str(up.ready["grpc_port"])
        (foreign,) = checks(tmp_path, STAGETRACE_HTTP_PORT=other, STAGETRACE_QUERY_HTTP_PORT=other)["back end"]
    assert (there.state, there.found.split(" at ")[0]) == (OK, "`stagetrace up` responds")
    assert half.state == WARN
    assert foreign.found.startswith("something else than `stagetrace up` listens")


def test_the_spool_is_looked_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spool = Spool(folder)
    spool.write(b"x" * 100, 7, breach=True)
    spool.write(b"y" * 50, 5, breach=False)
    spool.write(b"z" * 50, 4, breach=False)
    monkeypatch.setenv("STAGETRACE_SPOOL", str(folder))
    good = delivery.spool_check()
    assert good.state == OK
    assert good.found == f"{folder}: 7 spans of breaches and 9 others wait in 3 files, 200 bytes"
    name = next(name for name in spool.names() if "-4-" in name)
    (folder / name).write_bytes(b"?" * 50)
    spooled = spool.spooled(name)
    assert spooled is not None
    assert spooled.checksum == zlib.crc32(b"z" * 50)
    assert spool.read(spooled) is None
    spool.count(dropped=12)
    (bad,) = checks(tmp_path, STAGETRACE_SPOOL=str(folder))["spool"]
    assert bad.state == WARN
    assert bad.found.endswith("; spans lost so far: 12 dropped, 4 damaged; files set aside as damaged: 1")


@pytest.mark.parametrize("where", ["/proc/spool", "/dev/null/spool"])
def test_a_spool_that_cannot_be_used_fails(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAGETRACE_SPOOL", where)
    found = delivery.spool_check()
    assert (found.state, found.found.split(":")[0]) == (FAIL, f"{where} cannot be written to")


def test_a_spool_that_is_not_there_yet_is_not_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STAGETRACE_SPOOL", str(tmp_path / "a" / "b"))
    assert delivery.spool_check().state == OK
    assert not (tmp_path / "a").exists()
