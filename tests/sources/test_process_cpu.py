"""CPU time of the process on its requests: differences that add up, from the first request on."""

from __future__ import annotations

import os
import time
from typing import Any

from stagetrace.semconv import STAGETRACE_PROCESS_CPU_MS
from stagetrace.sources.process_cpu import INTERVAL_NS, ProcessCpu


def compute(cpu_s: float) -> None:
    until = time.process_time() + cpu_s
    while time.process_time() < until:
        sum(range(1000))


def readings(one: ProcessCpu, times: list[int], cpu_s: float = 0.0) -> list[float | None]:
    """Return what requests that end at these times carry, before each of which the process computes."""
    found = []
    for now in times:
        compute(cpu_s)
        attributes: dict[str, Any] = {}
        one.add_to(attributes, now)
        found.append(attributes.get(STAGETRACE_PROCESS_CPU_MS))
    return found


def test_differences_add_up_and_leave_out_the_start() -> None:
    """One request in a quarter of a second carries what was computed since the last one that did."""
    one, step = ProcessCpu(), INTERVAL_NS // 2
    before = time.process_time()
    found = readings(one, [10**18 + number * step for number in range(9)], 0.005)
    used_ms = 1e3 * (time.process_time() - before)
    assert [value is not None for value in found] == [False] + [False, True] * 4
    assert 8 * 5 <= sum(filter(None, found)) <= used_ms


def test_a_clock_that_was_set_back_ends_no_readings() -> None:
    found = readings(ProcessCpu(), [10**18, 10**18 - 10**12, 10**18 - 10**12 + INTERVAL_NS])
    assert found[0] is None
    assert None not in found[1:]


def test_a_forked_process_counts_its_own() -> None:
    one = ProcessCpu()
    compute(0.02)
    readings(one, [10**18])
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        first, second = readings(one, [10**18 + INTERVAL_NS, 10**18 + 2 * INTERVAL_NS], 0.002)
        os.write(into, f"{first} {second}".encode())
        os._exit(0)
    os.waitpid(pid, 0)
    carried = os.read(out, 100).decode().split()
    assert carried[0] == "None"
    assert 2 <= float(carried[1]) < 20
