"""The JSON Schema of policy files: editors accept and refuse by it what the reader does."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cli.running import printed
from policy.policy_page import PAGE, page
from policy.test_policy_file import EVERYTHING
from stagetrace.policy import policy_keys
from stagetrace.policy.policy import Policy
from stagetrace.policy.policy_file import PolicyFileError, document
from stagetrace.policy.policy_lint import ERROR, lint

ROOT = Path(__file__).parents[2]
SCHEMA = policy_keys.schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
# What no schema can say, or ours does not: of several values at once, of time zones, of sizes.
BEYOND = re.compile(
    r"is taken by|is no time zone|is longer than the long one|stands at the top|stands beside model"
    r"|stands beside service|no whole number of seconds|its name, made of"
)
WHOLE = yaml.safe_load(EVERYTHING)
VALUES: list[Any] = [
    {"timezone": "UTC", "calendar": "day"},
    None, True, False, 0, 1, 5, 2.0, 2.5, -1, 10**10, "", " ", "x", "a b", "a;b", "a(b)", "yes", [], {}, [1], ["a"],
    ["a", "a"], ["a b"], {"a": "b"}, {"a": 1}, {"a": None}, {"a b": "c"}, {"": "c"}, "250ms", "250 ms", "1.5S", "0ms",
    "1h", "5", "1e3ms", "99%", "99.9 %", "0%", "0.0%", "100%", "100.0%", "100.1%", "28d", "1.5m", "0d", "month",
    "Month@UTC", "month@", "moon", "year@Europe/Berlin", {"calendar": "month"},
    {"calendar": "month", "timezone": "UTC"}, {"timezone": "UTC"}, {"calendar": "moon"}, "POST /a", "/a",
    "POST GET /a", " /a ", "P1 /a", "/a/b", "pkg.Svc/Do", "GET", "bad", "excluded", "breach", "ignored", "page",
    {"inference": "1ms"}, {"inference": 1}, {"inferense": "1ms"}, {"by": "a"}, {"by": ["a", "header:X"]}, {"by": []},
    {"by": ["header:"]}, {"by": "a", "max": 5}, {"by": "a", "max": 5000}, {"max": 1}, {"from": "grpc-timeout"},
    {"from": ["x"]}, {"from": ["x-slo-ttft-ms"]}, {"from": "grpc-timeout", "mode": "tighten"}, {"mode": "tighten"},
    "http://a", "https://a:80/b?c", "ftp://a", "http://", "http://a b", "http:///x", "header:x", "header:",
    "baggage:", "x" * 1001, [{"within": "1s"}], [{"excluded": True}], [{"when": {"a": "b"}}],
    [{"when": {"a": "b"}, "within": "1s", "p99": "1s"}], [{"when": {"a": "b"}, "excluded": True, "within": "1s"}],
    [{"factor": 2, "long": "1h", "short": "5m"}], [{"factor": 0, "long": "1h", "short": "5m"}],
    [{"factor": 2, "long": "1h"}],
    {"burn": []}, {"no_data": "never"}, {"traces": "http://a"}, "never", {"route": "GET /x", "method": "GET"},
    {"route": "/x", "method": "get"},
    {"rpc": "a/b", "route": "x"}, {"rpc": "a/b", "model": "m"},
]  # fmt: skip
KEYS = [
    key
    for one in ("POLICY", "OBJECTIVE", "OVERRIDE", "MATCH", "SEGMENTS", "DEADLINE", "ALERTS", "BURN")
    for key in getattr(policy_keys, one)
]
KEYS += ["calendar", "timezone", "withn", "a-b"]


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values of a document."""
    below: list[tuple[Any, Any]] = []
    if isinstance(node, (dict, list)):
        below = list(node.items() if isinstance(node, dict) else enumerate(node))
    return [path, *(found for key, value in below for found in places(value, (*path, key)))]


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """Return a document with one to three changes: a value replaced or removed, a key added."""
    document = copy.deepcopy(WHOLE)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(document)))
        parent = document
        for key in path[:-1]:
            parent = parent[key]
        how = draw(st.sampled_from(["replace", "remove", "add", "trim"]))
        node = parent[path[-1]] if path else document
        if how == "add" and isinstance(node, dict):
            node[draw(st.sampled_from(KEYS))] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == "trim" and isinstance(node, dict) and node:
            for key in draw(st.lists(st.sampled_from(sorted(node)), unique=True)):
                del node[key]
        elif path and how == "remove":
            del parent[path[-1]]
        elif path:
            parent[path[-1]] = copy.deepcopy(draw(st.sampled_from(VALUES)))
    return document


def refusal(document: Any) -> list[str]:
    """Return why the reader refuses a document, without what no schema can say; empty if it does not."""
    try:
        Policy.read(json.dumps(document), "")
    except PolicyFileError as error:
        return [one.what for one in error.problems if not BEYOND.search(one.what)]
    return []


@given(mutated())
def test_the_schema_accepts_what_the_reader_accepts(document: Any) -> None:
    why = refusal(document)
    errors = [one.message for one in VALIDATOR.iter_errors(document)]
    assert bool(errors) is bool(why), (document, errors, why)


@pytest.mark.parametrize("path", [*ROOT.glob("docs/*.md"), *ROOT.glob("*/sla.yaml")], ids=lambda path: path.name)
def test_the_examples_keep_to_the_schema(path: Path) -> None:
    text = path.read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if path.suffix == ".md" else [text]
    for block in blocks:
        if re.search(r"^objectives:", block, re.MULTILINE):
            VALIDATOR.validate(yaml.safe_load(block))
            found = document(block, str(path))
            assert [one for one in lint(*found)[0] if one.level == ERROR] == []


def test_the_page_has_the_keys_that_are_declared() -> None:
    assert page(PAGE.read_text()) == PAGE.read_text(), "run tests/policy/policy_page.py"


def test_the_schema_is_one_and_is_printed() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(printed("sla", "check", "--schema")) == SCHEMA
