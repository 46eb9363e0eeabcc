"""`stagetrace sla check`: exit code 0 or 2, findings by line and column, and what the policy says."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cli.running import cli, refused

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
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


def test_what_a_policy_says(tmp_path: Path) -> None:
    """A few lines for each objective; a warning does not count."""
    path = tmp_path / "sla.yaml"
    path.write_text(GOOD)
    done = cli("sla", "check", str(path))
    assert done.returncode == 0
    budgets = "the budgets of stages are 3000 ms in all, more than the 2000 ms of the whole: reduce them"
    assert done.stderr == f"{path}:18:3: warning: {budgets}\n"
    assert done.stdout == (
        "predict: requests of POST /predict with model churn*: 99.9% within 250ms, over 28d\n"
        "    and the first chunk of a stream within 100ms, each further token within 20ms on average\n"
        "    a request's own deadline (grpc-timeout) counts in place of these bounds\n"
        "    budgets of stages: inference 150ms\n"
        "    counted by tenant.tier, up to 50 segments\n"
        "    a server's error is a breach; a client that disconnects is a breach; the first 30 s of a process are "
        "excluded; later objectives judge them, too\n"
        "GET /health excluded: requests of GET /health are not judged\n"
        "* within 2s[tenant.tier=free]: all requests with tenant.tier free: 99% within 2s, over 28d\n"
        "    budgets of stages: inference 3s\n"
        "    alerts: none\n"
        "* within 2s: all requests: 99% within 2s, over 28d\n"
        "    budgets of stages: inference 3s\n"
        "    alerts: page at 3 times the budget over 1h and 5m; after 10m without a judged request; none with fewer "
        "than 10 requests\n"
        "alerts: page at 14.4 times the budget over 1h and 5m; page at 6 times the budget over 6h and 30m; "
        "ticket at 1 times the budget over 3d and 6h; none with fewer than 10 requests\n"
    )


def test_a_policy_with_an_error_ends_with_2(tmp_path: Path) -> None:
    path = tmp_path / "sla.yaml"
    path.write_text("objectives:\n- within: 250\n- target: 200%\n  withn: 1s")
    done = cli("sla", "check", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.removeprefix(f"{path}:") for line in done.stderr.splitlines()] == [
        "2:11: error: within: the duration '250' has no unit (us, ms, s, m): write 250ms",
        "3:3: error: an objective without within: write within: 250ms, or excluded: true",
        "3:11: error: target: '200%' is not a percentage above 0% and up to 100%: write it like 99.9%",
        "4:3: error: 'withn' is no key of an objective: write within",
    ]
    done = cli("sla", "check", "* within 1s; /a within 1ms", "--json")
    answer = json.loads(done.stdout)
    assert (done.returncode, done.stderr, answer["ok"], answer["file"]) == (2, "", False, "policy")
    assert [(one["line"], one["column"], one["level"]) for one in answer["findings"]] == [(1, 14, "error")]
    assert answer["objectives"][0] == {"name": "* within 1s", "says": ["all requests: 99% within 1s, over 28d"]}


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused("sla", "check", "nowhere.yaml")
    assert "the word `within` is missing" in refused("sla", "check", "nowhere")
    (tmp_path / "latin.yaml").write_bytes(b"\xff")
    done = cli("sla", "check", str(tmp_path / "latin.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "latin.yaml:1:1: error: the byte 0xff is not UTF-8" in done.stderr
