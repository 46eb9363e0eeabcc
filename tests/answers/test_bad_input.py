"""Data that hardly any answer can be made of: a plain sentence from each verb, in each form, and no traceback."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

import pytest

from answers.made import MS, NOON, Made, store
from cli.running import cli, refused
from stagetrace.cli.registry import VERBS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.thorough

EVER = ("--since", "1970-01-01T00:00:00Z")
ALL = {
    "slo": (),
    "bottleneck": (),
    "capacity": (),
    "causes": (),
    "report": EVER,
    "drift": (),
    "compare": (),
    "cost": (),
    "segments": ("--by", "tenant.id"),
}
ANSWERS = {verb: options for verb, options in ALL.items() if verb in VERBS}
HOSTILE = "\x1b[31m<script>alert(1)</script>|`_*"
LONGEST = 3  # lines of an error


def many(count: int = 400, **more: Any) -> Iterator[Made]:
    """Yield ordinary requests, one in ten a breach."""
    chance = random.Random(count)
    for number in range(1, count + 1):
        took = {"preprocess": chance.uniform(1, 5), "inference": chance.lognormvariate(3.2, 0.5)}
        start = NOON + number * 250 * MS
        yield Made(number, **{"start_unix_nano": start, "stages": took, "within_ms": 45.0, **more})


def renamed(count: int = 300) -> Iterator[Made]:
    """Yield requests of two services of one name."""
    for one in many(count):
        where = {"service.instance.id": f"pod-{one.number % 2}", "deployment.environment.name": "ab"[one.number % 2]}
        yield replace(one, resource=where)


def each(change: Callable[[Made], dict[str, Any]], count: int = 300) -> Iterator[Made]:
    """Yield ordinary requests, each changed."""
    for one in many(count):
        yield replace(one, **change(one))


STORES: dict[str, Callable[[], Iterator[Made]]] = {
    "nothing": lambda: many(0),
    "one request": lambda: many(1),
    "one breach": lambda: each(lambda _: {"within_ms": 1.0}, 1),
    "two requests": lambda: many(2),
    "all alike": lambda: many(200, stages={"inference": 10.0}, start_unix_nano=NOON),
    "nothing judged": lambda: many(200, within_ms=None),
    "all excluded": lambda: many(100, verdict="excluded"),
    "only breaches": lambda: many(200, within_ms=0.5),
    "sampled": lambda: many(300, probability=0.1),
    "sampled in an unknown way": lambda: many(300, probability=0.0),
    "no stages": lambda: many(200, stages={}, duration_ms=20.0),
    "negative durations": lambda: each(lambda one: {"duration_ms": -5.0 if one.number % 2 else 10.0}),
    "nothing takes any time": lambda: many(200, stages={"inference": 0.0}),
    "clocks that step": lambda: each(
        lambda one: {"start_unix_nano": one.start_unix_nano + (-3600 if one.number % 3 else 86_400 * 400) * 10**9}
    ),
    "a clock that was set meanwhile": lambda: each(lambda _: {"start_unix_nano": 0, "duration_ms": NOON / MS}, 20),
    "impossible readings": lambda: each(
        lambda one: {"attributes": {"stagetrace.cpu.time_ms": 1e308, "ml.batch.size": 2**62 * (one.number % 2 * 2 - 1)}}
    ),
    "at the beginning of time": lambda: each(lambda one: {"start_unix_nano": one.number}),
    "many values of an attribute": lambda: each(
        lambda one: {"attributes": {"tenant.id": f"t{one.number}", "request.id": f"{one.number:032x}"}}, 3000
    ),
    "two services of one name": renamed,
    "hostile names": lambda: each(
        lambda _: {"route": HOSTILE, "name": HOSTILE, "service": HOSTILE, "attributes": {"tenant.id": HOSTILE}}
    ),
}
FIRST = (
    *("nothing", "one request", "nothing judged", "sampled in an unknown way", "negative durations"),
    *("impossible readings", "hostile names"),
)
EACH = [*FIRST, *(pytest.param(name, marks=pytest.mark.thorough) for name in STORES if name not in FIRST)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def made(name: str) -> Path:
        return store(tmp_path_factory.mktemp("bad") / "store", STORES[name]())

    return made


def run(*command: str) -> tuple[int, str, str]:
    done = cli(*command)
    return done.returncode, done.stdout, done.stderr


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or isfinite(value)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("verb", ANSWERS)
def test_a_sentence_whatever_the_data(verb: str, name: str, folder: Callable[[str], Path]) -> None:
    command = (verb, *dict.fromkeys((*ANSWERS[verb], *EVER)), "--store", str(folder(name)))
    code, output, errors = run(*command, "--json")
    assert code in (0, 1, 2)
    if code == 2 and not output:
        assert 1 <= len(errors.splitlines()) <= LONGEST
        assert "cannot read what is stored" not in errors
        return
    found = json.loads(output)
    assert isinstance(found["complete"], bool)
    assert found["sentence"]
    assert "nan" not in found["sentence"].lower().split()
    assert finite(found)
    for form in ("text", "markdown", "html") if name in ("hostile names", "one request") else ():
        again, output, _ = run(*command, "--format", form)
        assert again == code
        assert "\x1b" not in output
        in_code = form == "markdown"  # pictures are blocks of code, in which Markdown takes nothing for HTML
        shown = re.sub(r"^```text$.*?^```$", "", output, flags=re.MULTILINE | re.DOTALL) if in_code else output
        assert "<script>alert" not in shown or form == "text"


@pytest.mark.parametrize("verb", ANSWERS)
def test_a_selection_of_what_is_not_there(verb: str, folder: Callable[[str], Path]) -> None:
    """An unknown route is an error that lists the known ones, as in each verb that selects."""
    assert "/predict" in refused(verb, *ANSWERS[verb], *EVER, "--store", folder("sampled"), "--route", "/nowhere")
