"""What verbs print, whole: each file of `golden/` has command lines, and below each one its output.

The lines of stderr begin with `! `, and an exit code other than 0 with `? `. JSON has a key on each line. Commands run
in a folder with the stores of `STORES`, at noon of the day after the requests.
`PYTHONPATH=src python tests/cli/golden.py` writes the outputs anew, and for a new verb a file with its help: look at
what has changed before it is committed.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from answers.made import MS, NOON, Made, lines, messages, store
from cli import literal
from cli.running import cli
from messages import leaves
from stagetrace import semconv
from stagetrace.cli.registry import VERBS
from stagetrace.otlp.decode.json import encode

FOLDER: Final = Path(__file__).parent / "golden"
_NOW: Final = NOON + 86_400 * 10**9
_FLOAT: Final = re.compile(r"-?\d+\.\d{7,}(e-?\d+)?")
IN_PREDICT, IN_LOAD = "app.py:41 in predict", "app.py:7 in load"


def _breach(number: int, over_ms: float, code: str | None, **more: Any) -> Made:
    """Return a breach that began so many seconds after noon as its number has it."""
    stages, attributes = {"inference": 50 + over_ms}, {"sla.breach.code": code}
    return Made(number, NOON + number * 1000 * MS, stages, within_ms=50, attributes=attributes, **more)


# Breaches of seven kinds, and a good request.
GROUPS: Final = [
    *(_breach(number, over_ms, IN_PREDICT, cause="lock_wait") for number, over_ms in ((1, 30), (2, 10), (3, 80))),
    _breach(4, 20, IN_PREDICT, cause="gc"),
    *(_breach(number, over_ms, IN_LOAD, cause="lock_wait") for number, over_ms in ((5, 20), (6, 40))),
    _breach(7, 20, None, cause="lock_wait"),
    _breach(8, 20, IN_PREDICT, cause="lock_wait", route="/rank"),
    _breach(9, 20, IN_PREDICT, cause="lock_wait", service="search"),
    _breach(10, 20, IN_PREDICT, cause="lock_wait", stage="preprocess"),
    Made(11, NOON, within_ms=50),
]


def _versions() -> Iterator[Made]:
    """Yield requests of two versions and two tenants, each with an id of its own; version 2 is slower for gold."""
    for number in range(1, 201):
        version, tenant = "12"[number > 100], ("gold", "free")[number % 2]
        took = 20.0 + number % 7 + (25.0 if version == "2" and tenant == "gold" else 0.0)
        yield Made(
            number,
            NOON + number * 1000 * MS,
            {"preprocess": 2.0 + number % 3, "inference": took},
            model="churn",
            version=version,
            within_ms=45.0,
            cause="cpu_wait",
            with_stage_spans=True,
            attributes={"tenant.id": tenant, "request.id": number},
            resource={"service.instance.id": "one", "service.version": f"1.{version}"},
        )


def _explained() -> list[Made]:
    """Return requests whose verdicts have reasons: of several objectives, excluded, none."""
    several = {
        "sla.verdicts": "breach: predict gold (99.9% over 28d); good: everything (99% over 28d)",
        "tenant.tier": "gold",
        "sla.objective": "predict gold",
        "sla.over_budget": "inference",
        "sla.deadline.source": "x-request-timeout-ms",
        "sla.threshold_ms": 180.0,
    }
    warmup = {"sla.excluded.reason": "warmup"}
    return [
        Made(1, NOON, {"preprocess": 20.0, "inference": 180.0}, within_ms=120.0, cause="cpu_wait", attributes=several),
        Made(2, NOON, {"inference": 5.0}, route="/embed", attributes=warmup, verdict="excluded"),
        Made(3, NOON, route="/other", name="GET /other"),
    ]


def _jobs(path: Path) -> None:
    """Write three traces of jobs, whose roots are INTERNAL spans."""
    took = {"load": 3.0, "fit": 40.0}
    made = [Made(n, NOON + n * MS, took, "jobs", name=f"job {n}", with_stage_spans=True) for n in range(1, 4)]
    (message,) = messages(made)
    for _, _, span in leaves(message):
        span.kind = span.SPAN_KIND_INTERNAL
    path.write_text(encode(message) + "\n")


def _parts(path: Path) -> None:
    """Write breaches of other bounds than the whole duration: of chunks, of tokens, and of an older release."""
    bounds = (
        ("first_chunk: 163.2 ms, 100 ms allowed; per_chunk: 210 ms, 150 ms allowed", "first_chunk"),
        ("first_token: 163.2 ms, 100 ms allowed; per_token: 41.5 ms, 40 ms allowed", "first_token"),
        (None, "first_chunk"),
    )
    made = []
    for number, (missed, first) in enumerate(bounds, 1):
        of = {semconv.SLA_BREACH_PROMISE: first, **({semconv.SLA_BREACH_MISSED: missed} if missed else {})}
        broken = literal.verdict(breached=True, **of)
        made.append(literal.request(number, number, {"inference": 80, "network.send": 400}, **broken))
    path.write_text("\n".join([*made, ""]))


_POLICY: Final = """\
version: 1
objectives:
  - {name: health, match: {route: GET /health}, excluded: true}
  - name: predict
    match: {route: POST /predict}
    within: 250ms
    target: 99.9%
    stages: {preprocess: 60ms, inference: 150ms}
    overrides:
      - {when: {tenant.tier: gold}, within: 120ms, name: predict gold}
      - {when: {tenant.tier: free}, within: 500ms, name: predict free}
    continue: true
  - {name: embed, match: {route: /embed, attributes: {"header:x-plan": gold}}, within: 10ms}
  - name: everything
    match: {route: "*"}
    within: 1s
    deadline: {from: [x-request-timeout-ms]}
  - {name: last, match: {route: "*"}, within: 1s}
"""
_FULL: Final = """\
objectives:
- name: predict
  match: {route: POST /predict, model: churn*}
  within: 250ms
  target: 99.9%
  first_chunk: 100ms
  per_token: 20ms
  stages: {inference: 150ms}
  segments: {by: [tenant.tier]}
  deadline: {from: [grpc-timeout], mode: replace}
  errors: bad
  disconnect: breach
  warmup: 30s
  continue: true
- match: {route: GET /health}
  excluded: true
- within: 2s
  stages: {inference: 3s}
  alerts: {burn: [{factor: 3, long: 1h, short: 5m}], no_data: 10m}
  overrides:
  - {when: {tenant.tier: free}, alerts: {burn: [], no_data: never}}
"""
_WRONG: Final = "objectives:\n- within: 250\n- target: 200%\n  withn: 1s"
_MANIFEST: Final = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
spec:
  template:
    spec:
      containers:
      - name: main
        env: [{name: PYTHONPATH, value: /app}]
"""
_PRICES: Final = {"currency": "EUR", "per_hour": 1.2}
STORES: Final[dict[str, Callable[[Path], Any]]] = {
    "literal.jsonl": lambda path: literal.write(path.parent).rename(path),
    "groups.jsonl": lambda path: lines(path, GROUPS),
    "versions": lambda path: store(path, _versions()),
    "sampled.jsonl": lambda path: lines(
        path, (Made(n, NOON + n * MS, within_ms=50, probability=0.25) for n in range(1, 21))
    ),
    "unknown.jsonl": lambda path: lines(
        path, (Made(n, NOON + n * MS, within_ms=50, probability=0.0) for n in range(1, 21))
    ),
    "unjudged.jsonl": lambda path: lines(path, (Made(n, NOON + n * MS) for n in range(1, 4))),
    "excluded.jsonl": lambda path: lines(path, (Made(n, NOON, within_ms=50, verdict="excluded") for n in range(1, 4))),
    "explained.jsonl": lambda path: lines(path, _explained()),
    "jobs.jsonl": _jobs,
    "parts.jsonl": _parts,
    "nothing": lambda path: store(path, ()),
    "sla.yaml": lambda path: path.write_text(_POLICY),
    "full.yaml": lambda path: path.write_text(_FULL),
    "wrong.yaml": lambda path: path.write_text(_WRONG),
    "deployment.yaml": lambda path: path.write_text(_MANIFEST),
    "latin.yaml": lambda path: path.write_bytes(b"\xff"),
    "prices.json": lambda path: path.write_text(json.dumps(_PRICES)),
}


def make_stores(folder: Path) -> None:
    """Make all stores in a folder."""
    for name, make in STORES.items():
        make(folder / name)


def rendered(text: str) -> str:
    """Return a file of `golden/` with the outputs as they are now, of commands in the present folder."""
    made = []
    for line in text.splitlines():
        if line.startswith("$ "):
            made += [line, *_output(line[2:])]
    return "\n".join([*made, ""])


def _output(command: str) -> Iterator[str]:
    words = shlex.split(command)
    variables = dict(word.split("=", 1) for word in words[: words.index("stagetrace")])
    arguments = words[words.index("stagetrace") + 1 :]
    with patch("time.time_ns", lambda: _NOW), patch("time.time", lambda: _NOW / 1e9):
        done = cli(*arguments, **variables)
    output, errors = (text.replace(str(Path.cwd()), "FOLDER") for text in (done.stdout, done.stderr))
    output = _FLOAT.sub(lambda found: f"{float(found[0]):.7g}", output)
    if output.startswith('{"'):
        output = _indented(json.loads(output))
    yield from output.splitlines()
    yield from (f"! {line}" for line in errors.splitlines())
    if done.returncode:
        yield f"? {done.returncode}"


def _indented(answer: dict[str, Any]) -> str:
    """Return an object of JSON with a line for each key, and for each item of its lists."""
    rows = []
    for key, value in answer.items():
        if isinstance(value, list) and value:
            items = ",\n".join(f"    {json.dumps(item, ensure_ascii=False)}" for item in value)
            rows.append(f'  "{key}": [\n{items}\n  ]')
        else:
            rows.append(f'  "{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n" + ",\n".join(rows) + "\n}"


if __name__ == "__main__":
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as temporary:
        make_stores(Path(temporary))
        os.chdir(temporary)
        for verb in VERBS:
            file = FOLDER / f"{verb.replace(' ', '_')}.txt"
            if not file.exists():
                file.write_text(f"$ COLUMNS=100 stagetrace {verb} --help\n", "utf-8")
        for file in sorted(FOLDER.glob("*.txt")):
            file.write_text(rendered(file.read_text("utf-8")), "utf-8")
