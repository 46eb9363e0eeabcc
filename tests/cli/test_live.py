"""What goes on until Ctrl-C, or looks otherwise on a terminal: tail -f, watch, tables; and what each command loads."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from answers import made as requests
from backend.processes import WITHIN_S, Lines, started
from backend.running import run_up
from cli import literal
from cli.literal import trace_id
from cli.running import COMMAND, answered, environment, printed, refused
from stagetrace.cli import output as terminal
from stagetrace.cli.main import main
from stagetrace.system.packages import requirement
from store.feed import MS, Made, entry, export, send

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from backends import Jaeger


@contextmanager
def following(*arguments: str) -> Iterator[Lines]:
    """Give the stdout of a command that goes on; Ctrl-C ends it, with 130 and nothing on stderr."""
    with started([*COMMAND, *arguments], env=environment()) as process:
        yield Lines(process.stdout)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=WITHIN_S)
        assert (process.returncode, errors) == (130, b"")


def test_tail_follows_a_file_that_grows(tmp_path: Path) -> None:
    """Also where a line is written in two parts, and where a span comes twice."""
    path = literal.write(tmp_path, literal.LINES[:1])
    with following("tail", "-f", "--store", str(path), "--interval", "0.1", "--service", "shop") as lines:
        assert lines.next().split() == [
            *("time", "(UTC)", "request", "model", "status", "took", "allowed", "verdict", "stage", "trace")
        ]
        assert lines.next() == "2026-03-01"
        assert lines.next().startswith("12:00:00.000  POST /predict ")
        with path.open("a") as file:
            half = len(literal.LINES[1]) // 2
            file.write(literal.LINES[0] + "\n" + literal.LINES[3] + "\n" + literal.LINES[2] + "\n")
            file.write(literal.LINES[1][:half])
            file.flush()
            assert lines.next().startswith("12:00:02.000 ")  # with the half of the line behind it
            file.write(literal.LINES[1][half:] + "\n" + literal.LINES[4] + "\n")
        assert lines.next().startswith("12:00:01.000 ")
        assert lines.next().startswith("12:00:04.000 ")


def _now(service: str, count: int) -> list[Made]:
    start = time.time_ns() // MS * MS
    return [entry(service, start + n * MS, breached=n % 2 == 0) for n in range(count)]


@pytest.mark.smoke
@pytest.mark.usefixtures("services")
def test_tail_follows_what_the_back_end_takes_in(tmp_path: Path) -> None:
    with run_up(tmp_path) as up:
        old, *new = _now("live", 4)
        export(up.as_jaeger.otlp_grpc, [old])
        options = "--interval 0.1 --json --segment http.route=/predict"
        with following("tail", "-f", "--store", f"local://{tmp_path / 'data'}", *options.split()) as lines:
            assert json.loads(lines.next())["trace_id"] == old.trace_id
            for span in new:
                export(up.as_jaeger.otlp_grpc, [span, span.stage("inference", span.start, span.end)])
                assert json.loads(lines.next())["trace_id"] == span.trace_id
            export(up.as_jaeger.otlp_grpc, [old])
            export(up.as_jaeger.otlp_grpc, last := _now("live", 1))
            assert json.loads(lines.next())["trace_id"] == last[0].trace_id


def test_tail_follows_jaeger(jaeger: Jaeger) -> None:
    old, new = _now("tailed", 2)
    send(jaeger, [old])
    at = ("--store", jaeger.url, "--service", "tailed", "--interval", "0.2", "--json")
    with following("tail", "-f", *at) as lines:
        assert json.loads(lines.next())["trace_id"] == old.trace_id
        send(jaeger, [new])
        assert json.loads(lines.next())["trace_id"] == new.trace_id


@contextmanager
def on_screen(*arguments: str, size: tuple[int, int] = (50, 160)) -> Iterator[Screen]:
    """Run a command on a terminal of this many lines and columns until the block ends."""
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        streams = dict.fromkeys(("stdin", "stdout", "stderr"), slave)
        with started([*COMMAND, *arguments], env=environment(TERM="xterm-256color"), **streams) as process:
            os.close(slave)
            yield Screen(process, master)
    finally:
        os.close(master)


class Screen:
    """What a terminal shows of a command."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self._process = process
        self._master = master
        self._shown = b""

    @property
    def text(self) -> str:
        return self._shown.decode(errors="replace")

    def until(self, expected: str) -> str:
        """Read until the text holds what is expected."""
        deadline = time.monotonic() + WITHIN_S
        while expected not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self._shown += os.read(self._master, 65536)
                except OSError:  # Linux' way of telling that the other side is closed
                    break
        assert expected in self.text
        return self.text

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self._process.send_signal(number)
        return self._process.wait(WITHIN_S)


def test_a_terminal_gets_a_drawn_table_and_no_markup_of_a_request(tmp_path: Path) -> None:
    nasty = literal.request(7, 0, {"inference": 5}, name="[bold]GET[/bold] \x1b[2J", **literal.verdict(breached=True))
    path = literal.write(tmp_path, [nasty])
    with on_screen("requests", "--store", str(path)) as screen:
        text = screen.until(trace_id(7)[:8])
        assert screen.end() == 0
    assert "\x1b[1m" in text  # a head in bold
    assert "[bold]GET[/bold] \\x1b[2J" in text
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_long_work_shows_a_count_on_a_terminal_and_takes_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool
) -> None:
    monkeypatch.setattr(terminal, "_PATIENCE_S", 0)  # as if everything took long
    command = ["export", str(tmp_path / "out.pb"), "--store", str(literal.write(tmp_path)), "--since", "2026-01-01"]
    errors = io.StringIO()
    monkeypatch.setattr(errors, "isatty", lambda: is_terminal)
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        assert main(command) == 0
    text = errors.getvalue()
    assert ("spans ...\x1b[K" in text) is is_terminal
    assert text.endswith("\r\x1b[K") if is_terminal else text == ""


def test_watch_shows_what_comes_until_ctrl_c(tmp_path: Path) -> None:
    path = literal.write(tmp_path, literal.LINES[:1])
    since = ("--since", "2026-03-01T00:00:00Z")
    with on_screen("watch", "--store", str(path), *since, "--interval", "0.1") as screen:
        assert "/health" not in screen.until("Newest breaches")
        with path.open("a") as file:
            file.write(literal.LINES[3] + "\n")
        screen.until("/health")
        assert screen.end(signal.SIGINT) == 130


def test_watch_shows_a_part_of_everything_on_a_small_terminal(tmp_path: Path) -> None:
    made = []
    for one in range(1, 41):
        broken = literal.verdict(breached=True, **{"http.route": f"/model-{one}"})
        made.append(literal.request((one << 96) + one, one, {"inference": 80}, **broken))
    path = literal.write(tmp_path, made)
    with on_screen("watch", "--store", str(path), "--since", "2026-03-01", size=(24, 80)) as screen:
        text = screen.until("Newest breaches")
        screen.until("12:00:00.040")
        assert screen.end(signal.SIGINT) == 130
    assert "Objectives and routes" in text
    assert len(re.findall(r"\.\.\. \d+ more lines", text)) >= 2


def test_watch_once_on_a_terminal_ends(tmp_path: Path) -> None:
    path = literal.write(tmp_path)
    with on_screen("watch", "--store", str(path), "--since", "2026-03-01T00:00:00Z", "--once") as screen:
        screen.until("Newest breaches")
        assert screen.end() == 0


BLOCKED = ("duckdb", "pyarrow", "rich", "deltalake", "zstandard", "starlette", "uvicorn")


# Prints the exit code, stdout and stderr of each command.
WITHOUT = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

names, commands = json.loads(sys.argv[1])
sys.modules.update(dict.fromkeys(names))
from stagetrace.cli.main import main

done = []
for command in commands:
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        code = main(command)
    done.append((code, output.getvalue(), errors.getvalue()))
print(json.dumps(done))
"""


def without(names: tuple[str, ...], commands: Sequence[Sequence[str]]) -> list[tuple[int, str, str]]:
    """Run commands in a process in which libraries are not installed; return exit code, stdout and stderr of each."""
    argv = [sys.executable, "-c", WITHOUT, json.dumps((names, commands))]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return [tuple(one) for one in json.loads(done.stdout)]


def test_the_plain_installation_reads_jaeger_and_files(jaeger: Jaeger, tmp_path: Path) -> None:
    (made,) = _now("plain", 1)
    send(jaeger, [made])
    path = literal.write(tmp_path)
    cases = (
        (["services", "--store", jaeger.url], "plain"),
        (["breaches", "--each", "--store", jaeger.url, "--service", "plain", "--route", "/predict"], made.trace_id),
        (["trace", made.trace_id, "--store", jaeger.url], made.trace_id),
        (["tail", "--store", jaeger.url, "--service", "plain"], made.trace_id[:8]),
        (["breaches", "--each", "--store", str(path)], trace_id(5)),
        (["trace", trace_id(1), "--store", str(path)], "inference"),
    )
    done = without(BLOCKED, [command for command, _ in cases])
    for (command, expected), (code, output, errors) in zip(cases, done, strict=True):
        assert (code, errors) == (0, ""), command
        assert expected in output


def test_what_needs_more_names_what_to_install(tmp_path: Path) -> None:
    path = literal.write(tmp_path)
    at = ["--store", str(path)]
    commands = [
        *([verb, *at] for verb in ("stages", "requests", "watch")),
        ["query", "SELECT 1", *at],
        ["export", str(tmp_path / "x.parquet"), *at],
        ["import", str(path), "--store", str(tmp_path / "store")],
        ["prune", "--before", "1d", "--store", str(tmp_path)],
    ]
    for command, (code, output, errors) in zip(commands, without(BLOCKED, commands), strict=True):
        assert (code, output) == (2, ""), command
        assert errors.splitlines()[-1] == f"pip install {requirement('backend')}"
        assert len(errors.splitlines()) == 2


@pytest.mark.thorough
def test_a_command_loads_only_what_its_store_needs(tmp_path: Path) -> None:
    """A cold start is mostly imports. Without rich tables are plain, and a pipe never loads it."""
    path = literal.write(tmp_path)
    parquet, store = tmp_path / "x.parquet", tmp_path / "store"
    printed("export", parquet, "--store", path)
    printed("import", path, "--store", store)
    unwanted = {
        ("stages", str(parquet)): ("pyarrow", "grpc", "rich", "deltalake", "numpy"),
        ("stages", str(store)): ("grpc", "rich", "deltalake", "uvicorn", "starlette"),
        ("breaches --each", str(path)): ("duckdb", "pyarrow", "grpc", "rich", "numpy"),
    }
    for (verb, url), names in unwanted.items():
        script = (
            f"import sys; from stagetrace.cli.main import main; "
            f"code = main([*{verb.split()!r}, '--store', {url!r}, '--since', '2026-01-01T00:00:00Z']); "
            f"print([name for name in {names!r} if name in sys.modules], code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60, check=True
        )
        assert done.stdout.splitlines()[-1] == "[] 0", url


def test_prune_deletes_what_is_older(tmp_path: Path) -> None:
    store, none = tmp_path / "store", tmp_path / "none"
    printed("import", literal.write(tmp_path), "--store", store)
    answer = answered("prune", "--before", "2026-03-01T12:00:02Z", "--store", store)
    assert (answer["removed"], answer["complete"]) == (7, True)
    left = answered("requests", "--store", store, "--since", "2026-01-01")
    assert [one["trace_id"] for one in left["requests"]] == [trace_id(5), trace_id(4), trace_id(3)]
    missing = refused("prune", "--before", "1d", "--store", none)
    assert missing.splitlines()[0] == f"stagetrace: there is no store in {none}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell: str) -> None:
    script = printed("completion", shell)
    for word in ("stages", "query", "completion", "slowest", "relation", "network.send"):
        assert word in script


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("st", ["stages"]),
        ("", None),
        ("requests --so", ["--sort"]),
        ("requests --sort net", ["network.receive", "network.send"]),
        ("export x.csv --relation ", ["spans", "requests"]),
        ("completion z", ["zsh"]),
        ("breaches --cause io", ["io_wait"]),
    ],
)
def test_bash_completes(typed: str, expected: list[str] | None) -> None:
    words = ["stagetrace", *typed.split(" ")]
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f'eval "$1"; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; '
        'COMPREPLY=(); _stagetrace; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    argv = ["bash", "-c", script, "bash", printed("completion", "bash")]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=True)
    found = done.stdout.split()
    assert {"breaches", "watch", "--help"} <= set(found) if expected is None else found == expected


def test_bash_completes_the_names_of_a_store_and_runs_nothing_that_they_hold(tmp_path: Path) -> None:
    """Names are asked for in the background: the first key may find none, a later one does."""
    hostile = f"$(touch {tmp_path}/ran)`touch {tmp_path}/ran` x"
    made = [requests.Made(1, service="shop"), requests.Made(2, service=hostile, route="/pay it")]
    folder = requests.store(tmp_path / "store", made)
    script = (
        'eval "$1"; COMP_LINE="stagetrace slo --store $2 "; COMP_WORDS=(stagetrace slo "$3" "$4"); COMP_CWORD=3; '
        "for _ in $(seq 100); do _stagetrace; [ ${#COMPREPLY[@]} -gt 0 ] && break; sleep 0.1; done; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    env = {
        **environment(),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }

    def completed(option: str, word: str) -> list[str]:
        argv = ["bash", "-c", script, "bash", printed("completion", "bash"), str(folder), option, word]
        return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()

    assert completed("--service", "sh") == ["shop"]
    assert completed("--route", "") == ["/pay\\ it", "/predict"]
    assert len(completed("--service", "")) == 2
    assert not (tmp_path / "ran").exists()
