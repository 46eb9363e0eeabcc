"""What recording a request costs, as a number of calls: of Python code of ours, and of what that calls in C.

A call of ours takes half a microsecond or more, so these figures are what keeps recording cheap. Whoever
exceeds one changes it here and says why; whoever needs far less lowers it. `count_calls.py --list KIND` names them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from services import run_python

pytestmark = pytest.mark.thorough

COUNT = str(Path(__file__).with_name("count_calls.py"))
# By kind of request: Python calls, calls into C, operations on context variables. A resumed coroutine counts as called:
# the pool's request awaits a thread twice, and each of these waits resumes the coroutines around it. FastAPI imports
# OpenTelemetry's API, so up to three of the calls of ASGI, with a parent six, are those of the bridge.
BUDGETS = {
    "async": (60, 112, 17),
    "pool": (130, 185, 22),
    "no model": (52, 94, 13),
    "with a parent": (73, 136, 17),
    "sampled out": (72, 131, 17),
    "stream of 100": (680, 2_030, 614),
    "flask": (86, 138, 35),
    "grpc threads": (63, 82, 8),
    "grpc asyncio": (61, 78, 7),
    "breach": (395, 400, 13),
}
TIMES = 0.85  # a budget of which less than this is needed is too large


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for which in ((), ("breaches",)):
        done = run_python(COUNT, *which, STAGETRACE="1")
        assert done.returncode == 0, done.stderr
        found |= json.loads(done.stdout)
    return found


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the figures are those of Python 3.11")
@pytest.mark.parametrize("kind", BUDGETS)
def test_a_request_makes_no_more_calls_than_its_budget(kind: str, counted: dict[str, dict[str, int]]) -> None:
    of = counted[kind]
    found = of["python"], of["c"], of["context"]
    assert all(TIMES * budget <= one <= budget for one, budget in zip(found, BUDGETS[kind], strict=True)), (kind, found)
