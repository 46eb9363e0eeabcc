"""What goes on until Ctrl-C, or looks otherwise on a terminal: tail -f, watch, tables; and what each command loads."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import TYPE_CHECKING

import pytest

from backend.running import run_up
from cli import literal
from cli.literal import trace_id
from cli.test_commands import COMMAND, cli, environment
from stagetrace.cli import terminal
from stagetrace.cli.main import main
from store.feed import MS, Made, entry, export, send

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from backends import Jaeger

pytestmark = pytest.mark.usefixtures("services")

WITHIN_S = 30


@contextmanager
def following(*arguments: str) -> Iterator[Lines]:
    """Give the stdout of a command that goes on; Ctrl-C ends it, with 130 and nothing on stderr."""
    command = [*COMMAND, *arguments]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            yield Lines(process.stdout.fileno())
        finally:
            process.send_signal(signal.SIGINT)
            code, errors = process.wait(WITHIN_S), process.stderr.read()
        assert (code, errors) == (130, b"")


class Lines:
    """Lines as they come."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._rest = b""

    def next(self) -> str:
        while b"\n" not in self._rest:
            assert select.select([self._file], [], [], WITHIN_S)[0], f"no line within {WITHIN_S} s"
            self._rest += os.read(self._file, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode()


def test_tail_follows_a_file_that_grows(tmp_path: Path) -> None:
    """Also where a line is written in two parts, and where a span comes twice."""
    path = tmp_path / "spans.jsonl"
    path.write_text(literal.LINES[0] + "\n")
    with following("tail", "-f", "--store", str(path), "--interval", "0.1", "--service", "shop") as lines:
        assert lines.next().split()[:3] == ["time", "(UTC)", "service"]
        assert lines.next().endswith(trace_id(1))
        with path.open("a") as file:
            half = len(literal.LINES[1]) // 2
            file.write(literal.LINES[0] + "\n" + literal.LINES[3] + "\n" + literal.LINES[1][:half])
            file.flush()
            time.sleep(0.5)
            file.write(literal.LINES[1][half:] + "\n" + literal.LINES[4] + "\n")
        assert lines.next().endswith(trace_id(2))
        assert lines.next().endswith(trace_id(5))


def _now(service: str, count: int) -> list[Made]:
    start = time.time_ns() // MS * MS
    return [entry(service, start + n * MS, breached=n % 2 == 0) for n in range(count)]


def test_tail_follows_what_the_back_end_takes_in(tmp_path: Path) -> None:
    with run_up(tmp_path) as up:
        old, *new = _now("live", 4)
        export(up.as_jaeger.otlp_grpc, [old])
        at = (
            "--store",
            f"local://{tmp_path / 'data'}",
            "--interval",
            "0.1",
            "--json",
            "--segment",
            "http.route=/predict",
        )
        with following("tail", "-f", *at) as lines:
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


class Screen:
    """A command on a terminal of 160 columns."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 160, 0, 0))
        changes = {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], env=environment(**changes), stdin=slave, stdout=slave, stderr=slave
        )
        os.close(slave)
        self.text = ""

    def until(self, expected: str) -> str:
        """Read until the text holds what is expected."""
        deadline = time.monotonic() + WITHIN_S
        while expected not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._master, 65536).decode()
                except OSError:  # Linux' way of telling that the other side is closed
                    break
        assert expected in self.text
        return self.text

    def end(self, number: int | None = None) -> int:
        if number is not None:
            self.process.send_signal(number)
        code = self.process.wait(WITHIN_S)
        os.close(self._master)
        return code


def test_a_terminal_gets_a_drawn_table_and_no_markup_of_a_request(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    nasty = literal.request(7, 0, {"inference": 5}, name="[bold]GET[/bold] \x1b[2J", **literal.verdict(breached=True))
    path.write_text(nasty + "\n")
    screen = Screen("requests", "--store", str(path))
    text = screen.until(trace_id(7))
    assert screen.end() == 0
    assert "\x1b[1m" in text  # a head in bold
    assert "[bold]GET[/bold] \\x1b[2J" in text
    assert "\x1b[2J" not in text


@pytest.mark.parametrize("is_terminal", [True, False])
def test_long_work_shows_a_count_on_a_terminal_and_takes_it_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_terminal: bool
) -> None:
    monkeypatch.setattr(terminal, "_PATIENCE_S", 0)  # as if everything took long
    (tmp_path / "spans.jsonl").write_text("\n".join(literal.LINES) + "\n")
    errors = io.StringIO()
    monkeypatch.setattr(errors, "isatty", lambda: is_terminal)
    with redirect_stdout(io.StringIO()), redirect_stderr(errors):
        code = main(
            [
                "export",
                str(tmp_path / "out.pb"),
                "--store",
                str(tmp_path / "spans.jsonl"),
                "--since",
                "2026-01-01T00:00:00Z",
            ]
        )
    assert code == 0
    text = errors.getvalue()
    assert ("spans ...\x1b[K" in text) is is_terminal
    assert text.endswith("\r\x1b[K") if is_terminal else text == ""


def test_watch_shows_what_comes_until_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    path.write_text(literal.LINES[0] + "\n")
    screen = Screen("watch", "--store", str(path), "--since", "2026-03-01T00:00:00Z", "--interval", "0.1")
    assert "/health" not in screen.until("Newest breaches")
    with path.open("a") as file:
        file.write(literal.LINES[3] + "\n")
    screen.until("/health")
    assert screen.end(signal.SIGINT) == 130


def test_watch_once_on_a_terminal_ends(tmp_path: Path) -> None:
    screen = Screen("watch", "--store", str(literal.write(tmp_path)), "--since", "2026-03-01T00:00:00Z", "--once")
    screen.until("Newest breaches")
    assert screen.end() == 0


BLOCKED = ("duckdb", "pyarrow", "rich", "deltalake", "zstandard", "starlette", "uvicorn")


def without(names: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as if libraries were not installed."""
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({names!r})); "
        f"from stagetrace.cli.main import main; sys.exit(main({list(arguments)!r}))"
    )
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=60, check=False)


def test_the_plain_installation_reads_jaeger_and_files(jaeger: Jaeger, tmp_path: Path) -> None:
    (made,) = _now("plain", 1)
    send(jaeger, [made])
    path = literal.write(tmp_path)
    for arguments, expected in (
        (["services", "--store", jaeger.url], "plain"),
        (["breaches", "--store", jaeger.url, "--service", "plain", "--route", "/predict"], made.trace_id),
        (["trace", made.trace_id, "--store", jaeger.url], made.trace_id),
        (["tail", "--store", jaeger.url, "--service", "plain"], made.trace_id),
        (["breaches", "--store", str(path)], trace_id(5)),
        (["trace", trace_id(1), "--store", str(path)], "inference"),
    ):
        done = without(BLOCKED, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert expected in done.stdout


@pytest.mark.parametrize("verb", ["stages", "requests", "watch", "query", "export", "import", "prune"])
def test_what_needs_more_says_what_to_install(tmp_path: Path, verb: str) -> None:
    path = literal.write(tmp_path)
    arguments = {
        "query": ["SELECT 1", "--store", str(path)],
        "export": [str(tmp_path / "x.parquet"), "--store", str(path)],
        "import": [str(path), "--store", str(tmp_path / "store")],
        "prune": ["--before", "1d", "--store", str(tmp_path)],
    }.get(verb, ["--store", str(path)])
    done = without(BLOCKED, verb, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == "pip install 'stagetrace[backend]'"
    assert len(done.stderr.splitlines()) == 2


def test_a_command_loads_only_what_its_store_needs(tmp_path: Path) -> None:
    """A cold start is mostly imports. Without rich tables are plain, and a pipe never loads it."""
    path = literal.write(tmp_path)
    parquet, store = tmp_path / "x.parquet", tmp_path / "store"
    assert cli("export", str(parquet), "--store", str(path)).returncode == 0
    assert cli("import", str(path), "--store", str(store)).returncode == 0
    unwanted = {
        ("stages", str(parquet)): ("pyarrow", "grpc", "rich", "deltalake", "numpy"),
        ("stages", str(store)): ("grpc", "rich", "deltalake", "uvicorn", "starlette"),
        ("breaches", str(path)): ("duckdb", "pyarrow", "grpc", "rich", "numpy"),
    }
    for (verb, url), names in unwanted.items():
        script = (
            f"import sys; from stagetrace.cli.main import main; "
            f"code = main([{verb!r}, '--store', {url!r}, '--since', '2026-01-01T00:00:00Z']); "
            f"print([name for name in {names!r} if name in sys.modules], code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[] 0", url


def test_prune_deletes_what_is_older(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    assert cli("import", str(literal.write(tmp_path)), "--store", store).returncode == 0
    done = cli("prune", "--before", "2026-03-01T12:00:02Z", "--store", store, "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, answer["removed"], answer["complete"]) == (0, 7, True)
    left = json.loads(cli("requests", "--store", store, "--since", "2026-01-01T00:00:00Z", "--json").stdout)
    assert [one["trace_id"] for one in left["requests"]] == [trace_id(5), trace_id(4), trace_id(3)]
    missing = cli("prune", "--before", "1d", "--store", str(tmp_path / "none"))
    assert (missing.returncode, missing.stderr.splitlines()[0]) == (
        2,
        f"stagetrace: there is no store in {tmp_path / 'none'}",
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell: str) -> None:
    done = cli("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("stages", "query", "completion", "slowest", "relation", "network.send"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("st", ["stages"]),
        ("", None),
        ("requests --so", ["--sort"]),
        ("requests --sort net", ["network.receive", "network.send"]),
        ("export x.csv --relation ", ["spans", "requests"]),
        ("completion z", ["zsh"]),
    ],
)
def test_bash_completes(typed: str, expected: list[str] | None) -> None:
    words = ["stagetrace", *typed.split(" ")]
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f'eval "$({" ".join(COMMAND)} completion bash)"; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; '
        'COMPREPLY=(); _stagetrace; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], env=environment(), capture_output=True, text=True, check=True)
    found = done.stdout.split()
    assert {"breaches", "watch", "--help"} <= set(found) if expected is None else found == expected
