"""SIGTERM waits for a delivery where nobody handles it, and else does to each process what it does untraced."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys

import pytest

from missing import missing, unused
from stagetrace.system.sigterm import IN_C

pytestmark = pytest.mark.native

PRELUDE = """
import os, signal, subprocess, sys, threading, time
from stagetrace.system import sigterm

def say(*what):
    print(*what, flush=True)

def end_me():
    os.kill(os.getpid(), signal.SIGTERM)

def ended(child):
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def deliver():
    say("delivers")

sigterm.catch(deliver)
"""
ACTIVATED = "\nfrom stagetrace.activate import activate; activate()\n"
# Whether the kernel would call a handler for SIGTERM.
CAUGHT = """bool(int(open("/proc/self/status").read().partition("SigCgt:")[2].split()[0], 16) >> 14 & 1)"""
WAIT = "\ntime.sleep(3600)"


def run(code: str, *argv: str, prelude: str = PRELUDE) -> tuple[int, list[str], str]:
    """Run code in a process of its own; return how it ended, what it printed, and its errors."""
    if sys.platform != "linux":
        pytest.skip("elsewhere there is nothing in C for this")
    if not IN_C:
        unused()
    return run_anywhere(prelude + code, *argv)


def run_anywhere(code: str, *argv: str, **env: str) -> tuple[int, list[str], str]:
    command = [*argv, sys.executable, "-c", code]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout.split("\n")[:-1], done.stderr


# How a main thread may wait: each is broken off by a signal, and goes on.
WAITS = {
    "sleep": "time.sleep(3600)",
    "join": "(t := threading.Thread(target=time.sleep, args=(3600,), daemon=True)).start(); t.join()",
    "event": "threading.Event().wait()",
    "select": "import select; select.select([], [], [], 3600)",
    "input": "r, w = os.pipe(); os.dup2(r, 0); input()",
    "read": "r, w = os.pipe(); os.read(r, 1)",
    "asyncio": "import asyncio; asyncio.run(asyncio.sleep(3600))",
    "a wait for a child": "subprocess.run(['sleep', '5'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)",
    "pause": "signal.pause()",
    "Python": "\nwhile True: pass",
}


@pytest.mark.thorough
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_it_is_delivered_wherever_the_main_thread_is(wait: str) -> None:
    """Then the process ends by the signal; what it was at does not go on."""
    code = f"{ACTIVATED}threading.Timer(0.3, end_me).start()\n{wait}\nsay('went on')"
    assert run(code) == (-signal.SIGTERM, ["delivers"], "")


def test_code_in_c_that_keeps_the_gil_is_ended_at_the_bound() -> None:
    """As untraced, though nobody can deliver meanwhile."""
    code = """
import re
sigterm.BOUND_S = 0.5
sigterm._in_c.give_up_sigterm(), sigterm.catch(deliver)
subprocess.Popen(["sh", "-c", f"sleep 0.3; kill {os.getpid()}"])
re.match("(a+)+$", "a" * 64 + "b")
"""
    status, output, _ = run(code)
    assert (status, output) == (-signal.SIGTERM, [])


@pytest.mark.parametrize(
    "broken",
    [
        "sigterm._deliver = lambda: time.sleep(3600)",
        "sigterm._deliver = lambda: 1 / 0",
        """
from stagetrace.runtime.runtime import runtime
runtime.ready, runtime.flush_now, sigterm._deliver = True, lambda: 1 / 0, runtime.deliver_all""",
    ],
    ids=["hangs", "fails", "fails within"],
)
def test_a_delivery_that_fails_or_hangs_keeps_no_process_alive(broken: str) -> None:
    code = f"sigterm.BOUND_S = 0.5\nsigterm._in_c.give_up_sigterm(), sigterm.catch(deliver)\n{broken}\nend_me()"
    assert run(code + WAIT)[0] == -signal.SIGTERM


@pytest.mark.parametrize(
    "broken", ["sigterm.start = lambda *_: 1 / 0", "sigterm._in_c = None"], ids=["no thread", "nothing in C"]
)
def test_what_cannot_be_caught_ends_the_process_at_once(broken: str) -> None:
    prelude = PRELUDE.replace("sigterm.catch(deliver)", f"{broken}\nsigterm.catch(deliver)")
    status, output, _ = run("end_me()" + WAIT, prelude=prelude)
    assert (status, output) == (-signal.SIGTERM, [])


def test_more_of_them_do_not_cut_the_delivery_short() -> None:
    """A process group is told by its service manager and, one by one, by its parent."""
    code = "sigterm._deliver = lambda: (time.sleep(0.5), say('delivers'))\nend_me(), end_me(), end_me()"
    assert run(code + WAIT) == (-signal.SIGTERM, ["delivers"], "")


def test_a_process_that_ends_meanwhile_ends_by_it() -> None:
    """The signal came first."""
    code = "sigterm._deliver = lambda: (time.sleep(0.5), say('delivers'))\nend_me()\nsys.exit(3)"
    status, output, _ = run(code)
    assert status == -signal.SIGTERM
    assert "delivers" in "".join(output)  # it may be at both


def test_a_process_that_ends_by_itself_does_so() -> None:
    code = "import atexit\natexit.register(say, 'ends')\nsys.exit(3)"
    assert run(code) == (3, ["ends"], "")


def test_the_application_sees_the_default() -> None:
    code = """
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
assert signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM)) is signal.SIG_DFL
sigterm.catch_again()  # as the thread that sends does, now and then
end_me()
"""
    assert run(code + WAIT) == (-signal.SIGTERM, ["delivers"], "")


SOON = "threading.Timer(0.3, end_me).start()"
OWN = {
    "before": ("signal.signal(signal.SIGTERM, own)", SOON),
    "after": ("pass", f"signal.signal(signal.SIGTERM, own)\n{SOON}"),
    "before, ignoring": ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", "end_me(), say('own'), os._exit(0)"),
    "of asyncio": ("pass", "import asyncio\nasyncio.run(on_loop())"),
    "by sigwait": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})",
        f"{SOON}\nsignal.sigwait({{signal.SIGTERM}}); own()",
    ),
}
OWN_HANDLER = """
import os, signal, sys, time
def own(*_):
    print("own", flush=True)
    os._exit(0)
async def on_loop():
    import asyncio
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, own)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(3600)
"""


@pytest.mark.parametrize(("before", "after"), OWN.values(), ids=OWN)
def test_an_application_that_handles_it_does_so_alone(before: str, after: str) -> None:
    """Also where we look again."""
    prelude = f"{OWN_HANDLER}\n{before}\n{PRELUDE}"
    code = f"{after}\nsigterm.catch_again()"
    assert run(code + WAIT, prelude=prelude) == (0, ["own"], "")


def test_one_that_puts_the_default_back_and_signals_itself_ends_as_ever() -> None:
    code = """
def own(*_):
    say("own")
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_me()
signal.signal(signal.SIGTERM, own)
end_me()
"""
    status, output, _ = run(code + WAIT)
    assert (status, output) == (-signal.SIGTERM, ["own"])


def test_faulthandler_is_passed_on_from() -> None:
    code = "import faulthandler\nfaulthandler.register(signal.SIGTERM, chain=True)\nend_me()"
    status, output, errors = run(code + WAIT)
    assert (status, output) == (-signal.SIGTERM, ["delivers"])
    assert "most recent call first" in errors


CHILDREN = {
    "a fork": "os.fork() or time.sleep(3600)",
    "a fork that Python does not know of": "ctypes.CDLL(None).fork() or ctypes.CDLL(None).sleep(3600)",
    "a program": "subprocess.Popen(['sleep', '60']).pid",
    "a program by fork": "subprocess.Popen(['sleep', '60'], preexec_fn=lambda: None).pid",
    "a program by posix_spawn": "os.posix_spawn('/bin/sleep', ['sleep', '60'], os.environ)",
}


@pytest.mark.parametrize("child", CHILDREN.values(), ids=CHILDREN)
@pytest.mark.parametrize("asked", [False, True], ids=["", "of one that is told to end"])
def test_children_end_at_once(child: str, *, asked: bool) -> None:
    """From the first: there is no moment in which it would be lost on them."""
    code = f"""
import ctypes, warnings
warnings.simplefilter("ignore")
sigterm._deliver = lambda: time.sleep(3600)
if {asked}:
    end_me()
child = {child}
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
say(ended(child))
os._exit(0)
"""
    assert run(code) == (0, [str(int(signal.SIGTERM))], "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_multiprocessing_are_terminated_as_ever(method: str) -> None:
    code = f"""
import multiprocessing
context = multiprocessing.get_context({method!r})
if __name__ == "__main__":
    child = context.Process(target=time.sleep, args=(3600,), daemon=True)
    child.start()
    time.sleep(0.5)
    child.terminate()
    child.join()
    say(child.exitcode)
"""
    assert run(code) == (0, [str(-signal.SIGTERM)], "")


def test_a_child_that_serves_catches_it_itself() -> None:
    """As the thread that sends its first spans does. From 3.12 on, Python warns of a fork beside any thread."""
    code = """
import warnings
warnings.simplefilter("ignore", DeprecationWarning)
child = os.fork()
if not child:
    sigterm.catch_again()
    end_me()
    time.sleep(3600)
say(ended(child))
end_me()
"""
    output = ["delivers", str(int(signal.SIGTERM)), "delivers"]
    assert run(code + WAIT) == (-signal.SIGTERM, output, "")


def test_any_thread_may_catch_it() -> None:
    prelude = PRELUDE.replace(
        "sigterm.catch(deliver)", "(t := threading.Thread(target=sigterm.catch, args=(deliver,))).start(), t.join()"
    )
    assert run("end_me()" + WAIT, prelude=prelude) == (-signal.SIGTERM, ["delivers"], "")


def test_the_first_process_of_a_container_is_spared_by_the_kernel_and_delivers_each_time() -> None:
    """Until the container's end kills it."""
    unshared = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc")
    if not shutil.which("unshare") or subprocess.run([*unshared, "true"], capture_output=True, check=False).returncode:
        missing("this machine makes no namespaces for processes")
    code = f"""
assert os.getpid() == 1
for _ in range(2):
    while not {CAUGHT}:
        time.sleep(0.01)
    end_me()
    while sigterm._in_c.sigterm_came():
        time.sleep(0.01)
say("still there")
os._exit(0)
"""
    assert run(code, *unshared) == (0, ["delivers", "delivers", "still there"], "")


def test_a_process_that_serves_nothing_keeps_the_default() -> None:
    """With everything imported that could serve."""
    code = f"""
import fastapi, uvicorn, flask, grpc, hypercorn.asyncio, wsgiref.simple_server
print({CAUGHT})
"""
    assert run_anywhere(code, STAGETRACE="1") == (0, ["False"], "")


IN_PYTHON = """
import os, signal, sys, threading, time
from stagetrace.runtime import sigterm_python as sigterm
from stagetrace.runtime.runtime import runtime
runtime.deliver_all = lambda: (time.sleep(0.5), print("delivers", flush=True))
"""


def test_in_python_it_is_delivered_while_the_main_thread_waits_however_often_it_comes() -> None:
    """A forked child ends at once in any case."""
    code = """
with sigterm.delivering_first():
    child = os.fork()
    if not child:
        time.sleep(3600)
    os.kill(child, signal.SIGTERM)
    assert os.waitpid(child, 0)[1] == signal.SIGTERM
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3600)
"""
    done = run_anywhere(IN_PYTHON + code, STAGETRACE_NATIVE="0")
    assert done == (-signal.SIGTERM, ["delivers"], "")


@pytest.mark.parametrize(
    ("end", "start"),
    [
        ("", "serve()"),
        ("sys.exit(3)", "serve()"),
        (
            "runtime.deliver_at_exit()",
            "(p := get_context('fork').Process(target=serve)).start(); p.join(); os.kill(os.getpid(), -p.exitcode)",
        ),
    ],
    ids=["returns", "exits", "a process of multiprocessing"],
)
def test_in_python_a_process_that_ends_meanwhile_ends_by_the_signal(end: str, start: str) -> None:
    code = f"""
from multiprocessing import get_context

def serve():
    with sigterm.delivering_first():
        os.kill(os.getpid(), signal.SIGTERM)
    {end}

{start}
"""
    done = run_anywhere(IN_PYTHON.replace("0.5", "5") + code, STAGETRACE_NATIVE="0")
    assert done == (-signal.SIGTERM, [], "")


def test_in_python_a_child_forked_meanwhile_ends_as_it_likes() -> None:
    code = """
with sigterm.delivering_first():
    sigterm._asked = True
    child = os.fork()
    if child:
        print(os.waitpid(child, 0)[1], flush=True)
        sigterm._asked = False
sys.exit(0)
"""
    assert run_anywhere(IN_PYTHON + code, STAGETRACE_NATIVE="0") == (0, ["0"], "")


def test_in_python_a_handler_of_the_authors_own_stays() -> None:
    code = """
for own in (signal.SIG_IGN, lambda *_: None):
    signal.signal(signal.SIGTERM, own)
    with sigterm.delivering_first():
        assert signal.getsignal(signal.SIGTERM) is own
signal.signal(signal.SIGTERM, signal.SIG_DFL)
with sigterm.delivering_first():
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    assert run_anywhere(IN_PYTHON + code, STAGETRACE_NATIVE="0") == (0, [], "")


def test_a_pause_ends_with_any_other_signal() -> None:
    code = "signal.signal(signal.SIGUSR1, lambda *_: say('handled'))\nsignal.pause()\nsay('went on')"
    timer = "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()\n"
    assert run(ACTIVATED + timer + code) == (0, ["handled", "went on"], "")
