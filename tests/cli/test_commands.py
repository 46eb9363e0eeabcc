"""The commands against a real Jaeger: what is on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from backend.processes import WITHIN_S, started
from backends import free_port
from cli.reference import arguments as arguments_of
from cli.running import COMMAND, answered, cli, environment, printed, process, refusal, refused, time_of
from stagetrace import __version__, semconv
from stagetrace.cli.registry import VERBS
from store.feed import MS, Made, entry, recent, send

if TYPE_CHECKING:
    from backends import Jaeger

SERVICE = "shop"


@pytest.fixture(scope="module")
def made(jaeger: Jaeger) -> list[Made]:
    """Three breaches, newest first, beside a good request, of a service that no other test has."""
    base = recent()
    breaches = [entry(SERVICE, base - n * 1000 * MS + n, ms=80.25) for n in range(3)]
    good = entry(SERVICE, base + MS, ms=20, breached=False)
    newest = breaches[0]
    stages = [newest.stage("preprocess", base, base + 10 * MS), newest.stage("inference", base + 10 * MS, newest.end)]
    send(jaeger, [*breaches, good, *stages])
    return breaches


def test_breaches_json_is_one_object_of_the_documented_keys(jaeger: Jaeger, made: list[Made]) -> None:
    hop = {"service": SERVICE, "stage": "inference", "duration_ms": 80.25, "peer": None}
    assert answered("breaches", "--each", "--store", jaeger.url, "--service", SERVICE) == {
        "complete": True,
        "requests": 4,
        "judged": 4,
        "missed": 3,
        "excluded": 0,
        "overrun_ms": 90.75,
        "lost": [{"stage": "inference", "cause": "unknown", "missed": 3, "overrun_ms": 90.75, "share": 1.0}],
        "counted_all": True,
        "stored": 4,
        "estimated": False,
        "counted": False,
        "sampling_known": True,
        "newest_request_unix_nano": made[0].start + MS,
        "breaches": [
            {
                "trace_id": one.trace_id,
                "span_id": one.span_id,
                "service": SERVICE,
                "name": "POST /predict",
                "route": "/predict",
                "start_unix_nano": one.start,
                "duration_ms": 80.25,
                "threshold_ms": 50.0,
                "overrun_ms": 30.25,
                "objective": "POST /predict within 50ms",
                "stage": "inference",
                "severity": "major",
                "cause": "unknown",
                "evidence": "inference took 80.25 ms of 80.25 ms",
                "code": None,
                "missed": [{"bound": "within", "took_ms": 80.25, "allowed_ms": 50.0}],
                "model": None,
                "stages": {"inference": 80.25},
                "peer": None,
                "owner": {**hop, "complete": True},
                "path": [hop],
            }
            for one in made
        ],
    }


def test_breaches_for_people_is_a_table_with_ids_that_trace_takes(jaeger: Jaeger, made: list[Made]) -> None:
    shown = printed("breaches", "--each", "--service", SERVICE, STAGETRACE_STORE=jaeger.url)
    counts, about, _, note, head, *rows, _, step = shown.splitlines()
    day, _, clock = time_of(made[0].start)[:23].partition("T")
    assert note == f"{day}; service {SERVICE}; allowed 50 ms; severity major"
    assert head.split("  ")[0] == "time (UTC)"
    ids = [row.split()[-1] for row in rows]
    assert ids == [one.trace_id[:8] for one in made]
    cells = [cell.strip() for cell in rows[0].split("  ") if cell]
    assert cells[:-1] == [clock, "POST /predict", "80.25 ms", "30.25 ms", "inference"]
    assert printed("trace", ids[1], STAGETRACE_STORE=jaeger.url).startswith(f"trace {made[1].trace_id}, ")
    assert counts == "3 of 4 judged requests missed their objective, 90.8 ms over in all: inference/unknown 100 %."
    assert about.startswith(f"All requests of service {SERVICE} since ")
    assert step == f"Next: stagetrace trace {made[0].trace_id}"


def test_the_next_step_that_is_printed_works(jaeger: Jaeger, made: list[Made]) -> None:
    listed = printed("breaches", "--each", "--store", jaeger.url, "--service", SERVICE)
    step = listed.splitlines()[-1].partition(": stagetrace ")[2]
    done = process(*step.split())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"trace {made[0].trace_id}, ")
    assert f"BREACH {SERVICE} POST /predict: took 80.25 ms, 50 ms allowed, over by 30.25 ms (major)" in done.stdout


def test_fail_makes_a_breach_exit_one(jaeger: Jaeger, made: list[Made]) -> None:
    assert made
    at = ("breaches", "--each", "--store", jaeger.url, "--service", SERVICE, "--fail")
    printed(*at, code=1)
    answered(*at, code=1)
    calm = printed(*at, "--since", time_of(made[0].start + 1))
    assert calm.startswith("0 of 1 judged requests missed their objective.\nAll requests of service shop since ")


def test_fail_is_no_good_news_where_nothing_was_judged(jaeger: Jaeger, made: list[Made]) -> None:
    at = ("breaches", "--each", "--store", jaeger.url, "--service", SERVICE, "--since", time_of(made[0].start + 2 * MS))
    shown = printed(*at)
    assert re.match(
        r"No requests in this window, the last one 1\d min ago, at 20.*\nAll requests of service shop ", shown
    )
    failed = cli(*at, "--fail")
    assert (failed.returncode, failed.stdout) == (2, shown)
    assert failed.stderr == "stagetrace: no request was judged, so that --fail has no answer\n"
    answer = answered(*at)
    assert (answer["requests"], answer["judged"], answer["newest_request_unix_nano"]) == (0, 0, made[0].start + MS)


def test_where_jaeger_has_too_many_requests_to_count_the_numbers_say_so(
    jaeger: Jaeger, made: list[Made], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made
    monkeypatch.setattr("stagetrace.store.jaeger.reader.COUNTED", 2)
    monkeypatch.setattr("stagetrace.store.jaeger.reader._LEAST", 1)
    at = ("breaches", "--each", "--store", jaeger.url, "--service", SERVICE)
    done = cli(*at, "--json")
    answer = json.loads(done.stdout)
    assert (answer["counted_all"], answer["missed"], len(answer["breaches"])) == (False, 3, 3)
    assert 3 <= answer["judged"] <= 4
    reason = f"not all requests are counted: only 2 traces of {SERVICE}"
    assert (answer["complete"], answer["reason"]) == (False, reason)
    assert cli(*at).stdout.startswith("3 requests missed their objective, ")
    assert cli(*at, "--fail").returncode == 1
    few = cli(*at, "--limit", "1")
    assert few.stdout.startswith("at least 3 requests missed their objective, ")
    assert "These are the newest 1 of 3; --limit 3 shows all." in few.stdout
    assert few.stderr == (
        "stagetrace: INCOMPLETE: not all requests are counted: only the newest 3 breaches, "
        f"only 2 traces of {SERVICE}\n"
    )


def test_trace_json_is_one_object_with_every_span(jaeger: Jaeger, made: list[Made]) -> None:
    trace = answered("trace", made[0].trace_id.upper(), "--store", jaeger.url)
    assert (trace["trace_id"], trace["complete"]) == (made[0].trace_id, True)
    top, first, second = trace["spans"][1], trace["spans"][0], trace["spans"][2]
    assert [first["name"], top["name"], second["name"]] == ["preprocess", "POST /predict", "inference"]
    assert first["parent_span_id"] == second["parent_span_id"] == top["span_id"] == made[0].span_id
    assert [one["is_critical"] for one in trace["spans"]] == [True, True, True]
    assert top == {
        "trace_id": made[0].trace_id,
        "span_id": made[0].span_id,
        "parent_span_id": None,
        "name": "POST /predict",
        "service": SERVICE,
        "kind": "SERVER",
        "status": "UNSET",
        "start_unix_nano": made[0].start,
        "end_unix_nano": made[0].end,
        "duration_ms": 80.25,
        "is_critical": True,
        "attributes": made[0].attributes,
        "events": [],
    }


def test_control_characters_of_a_request_do_not_reach_the_terminal(jaeger: Jaeger) -> None:
    base = recent()
    nasty = entry("nasty", base, attributes={"http.route": "/\x1b[2J\n", semconv.SLA_BREACH_EVIDENCE: "a\x1b]0;x\x07b"})
    child = nasty.stage("in\x1bference", base, nasty.end)
    send(jaeger, [nasty, child])
    listed = printed("breaches", "--each", "--store", jaeger.url, "--service", "nasty")
    drawn = printed("trace", nasty.trace_id, "--store", jaeger.url)
    assert "\x1b" not in listed + drawn
    assert "/\\x1b[2J\\n" in listed
    assert "a\\x1b]0;x\\x07b" in drawn


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["breaches", "--each", "--store", "jaeger://\udcff"], "no host has such a name"),
        *(
            (["requests", "--store", "x", option, "a=\udcff"], f"argument {option}: 'a=\\udcff' is not UTF-8")
            for option in ("--service", "--route", "--model", "--segment")
        ),
        (["query", "SELECT '\udcff'", "--store", "x"], "is not UTF-8"),
    ],
)
def test_arguments_that_are_not_utf8_are_refused(arguments: list[str], expected: str) -> None:
    assert expected in refused(*arguments)


NEEDED = {"URL": "http://localhost:1/", "ID": "ab" * 16, "SHELL": "bash", "SQL": "SELECT 1", "FILE": "x.csv"}
NEEDED |= {"TEXT": "deploy 1.5.0", "OBJECTIVE": "predict", "TRACE": "ab" * 16}
REQUIRED = {"prune": ["--before=30d"], "replay": ["--against=http://localhost:1"]}


@pytest.mark.parametrize("verb", VERBS)
def test_each_misspelt_option_of_each_command_names_the_right_one(verb: str) -> None:
    taken = arguments_of(verb)
    options = [option for action in taken for option in action.option_strings if option.startswith("--")]
    needed = [NEEDED[str(action.metavar)] for action in taken if not action.option_strings and verb != "run"]
    needed += REQUIRED.get(verb, [])
    for option in options:
        swapped = f"{option[:-2]}{option[-1]}{option[-2]}"
        wrong = swapped if swapped not in options and swapped != option else f"{option}x"
        said = f"unrecognized arguments: {wrong}=1\ndid you mean {option}?\ntry: stagetrace {verb} --help\n"
        assert refused(verb, *needed, f"{wrong}=1") == f"stagetrace: {said}"


def test_no_answer_is_exit_code_two_with_a_remedy(jaeger: Jaeger, made: list[Made]) -> None:
    """An unreachable store, another server's port, an unknown service, an unknown trace.

    In processes of their own where gRPC might write to stderr, too.
    """
    assert made
    nothing = f"jaeger://127.0.0.1:{free_port()}"
    cases = {
        ("breaches", "--each", "--store", nothing): f"{nothing}: no server listens there",
        ("trace", "ab" * 16, "--store", nothing): f"{nothing}: no server listens there",
        (
            "breaches",
            "--each",
            "--store",
            jaeger.query_http.replace("http", "jaeger"),
        ): "a server answers there, but not in gRPC",
        (
            "breaches",
            "--each",
            "--store",
            jaeger.otlp_grpc.replace("http", "jaeger"),
        ): "it has no jaeger.api_v3.QueryService",
        ("breaches", "--each", "--store", jaeger.url, "--service", "shoq"): "there is no service 'shoq'\nit holds ",
        ("trace", "ab" * 16, "--store", jaeger.url): f"there is no trace {'ab' * 16}\nit may still be on its way",
    }
    for arguments, expected in cases.items():
        said = refusal((process if arguments[0] == "breaches" else cli)(*arguments))
        assert said.startswith("stagetrace: jaeger://"), arguments
        assert expected in said
        assert len(said.splitlines()) == 2, said


def test_a_process_ends_with_the_exit_code_and_keeps_stdout_for_the_answer() -> None:
    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"stagetrace {__version__}\n", "")
    done = process("nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no command nonsense" in done.stderr


def test_a_closed_pipe_is_quiet(jaeger: Jaeger, made: list[Made]) -> None:
    at = ["--store", jaeger.url]
    for arguments in (["breaches", "--each", *at], ["trace", made[0].trace_id, *at], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*COMMAND, *arguments], env=environment(), stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (141, b"")


def test_ctrl_c_while_waiting_is_exit_code_130() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(WITHIN_S)
        store = f"jaeger://127.0.0.1:{server.getsockname()[1]}"
        with started([*COMMAND, "breaches", "--each", "--store", store], env=environment()) as command:
            connection, _ = server.accept()
            connection.settimeout(WITHIN_S)
            assert connection.recv(1)  # it has asked, and waits for an answer
            command.send_signal(signal.SIGINT)
            output = command.communicate(timeout=WITHIN_S)
            connection.close()
    assert (command.returncode, *output) == (130, b"", b"")


def test_what_the_encoding_lacks_is_replaced_and_bars_become_ascii(jaeger: Jaeger) -> None:
    base = recent()
    made = entry("küche", base, attributes={"http.route": "/köln"})
    send(jaeger, [made])
    drawn = process("trace", made.trace_id, "--store", jaeger.url, PYTHONIOENCODING="ascii")
    assert drawn.returncode == 0
    assert "k\\xfcche POST /predict" in drawn.stdout
    assert "------" in drawn.stdout
    assert drawn.stdout.isascii()


def test_a_verb_imports_only_what_it_needs() -> None:
    """`stagetrace run` becomes the user's service: neither gRPC nor a store may come with it."""
    script = (
        "import sys; from stagetrace.cli.main import main; code = main(['run', '--help']); "
        "print([name for name in sys.modules if name.startswith(('grpc', 'stagetrace.store', 'google'))], code)"
    )
    argv = [sys.executable, "-c", script]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"
