"""Without PyYAML a policy file is read where it is JSON, to the same policy, and an inline policy always is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from policy.test_policy_file import EVERYTHING
from services import run_python
from stagetrace import PolicyError
from stagetrace.policy import yaml_nodes
from stagetrace.policy.policy import Policy
from stagetrace.policy.yaml_nodes import Problem, Problems, WrongError

# YAML has no control characters, and more ends of lines.
TEXT = st.text(st.sampled_from(" ~\u00a1\u00e4\u20ac") | st.characters(min_codepoint=32, max_codepoint=126), max_size=9)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=20)
NO_JSON = "this is not JSON, and YAML needs PyYAML"


@pytest.fixture
def without_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no import of PyYAML succeed."""
    monkeypatch.setitem(sys.modules, "yaml", None)


def parsed(text: str, *, by_yaml: bool) -> tuple[Any, list[Problem]]:
    problems = Problems()
    with pytest.MonkeyPatch.context() as patch:
        if not by_yaml:
            patch.setitem(sys.modules, "yaml", None)
        try:
            return yaml_nodes.parse(text, problems), problems.found
        except WrongError as error:
            return None, [*problems.found, error.problem]


@given(VALUES, st.sampled_from([None, 1, "\t", 4]), st.booleans())
@example(value={"a": [{}, [], "", '\\/"\b\f\n\r\t\u00e4', -0.5, 1e300, 10**30]}, indent=2, is_ascii=True)
def test_json_is_read_as_it_is_with_pyyaml(value: Any, indent: Any, is_ascii: bool) -> None:
    """Values, places, and what is wrong: a key `<<`, and too many levels."""
    text = json.dumps(value, indent=indent, ensure_ascii=is_ascii)
    assert parsed(text, by_yaml=False) == parsed(text, by_yaml=True)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2, "<<": {"a": 1}, "b": {"c": 1,\n "c": 2}}',
        "[" * 25 + "]" * 25,
        '{"a":' * 25 + "1" + "}" * 25,
        "",
        " \n",
        '"\\u00e4\\/"',
        "1.5e3",
        "\r\n[\r\n1]",
    ],
)
def test_what_is_wrong_in_json_is_what_it_is_with_pyyaml(text: str) -> None:
    assert parsed(text, by_yaml=False) == parsed(text, by_yaml=True)


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("objectives:\n  - within: 1s\n", 1, 1),
        ("# a comment\n{}", 1, 1),
        ('{"objectives": [\n  {"within": 1s}]}', 2, 14),
        ('{"objectives": [\n  {"within": "1s"},\n]}', 3, 1),
        ('{"objectives": [\n  {"within": "1s"}', 2, 19),
        ("{'a': 1}", 1, 2),
        ('{"a" 1}', 1, 6),
        ('{"a": 1} {"b": 2}', 1, 10),
        ('{"a": 01}', 1, 7),
        ('{"a": "x\ty"}', 1, 7),
        ('{"a": "\\x"}', 1, 7),
        ('{"a": nulls}', 1, 7),
        ("[1 2]", 1, 4),
        ("]", 1, 1),
    ],
)
def test_what_is_no_json_is_told_where(text: str, line: int, column: int) -> None:
    node, problems = parsed(text, by_yaml=False)
    fix = "`pip install pyyaml`, or write JSON"
    assert (node, problems) == (None, [Problem(yaml_nodes.At(line, column), NO_JSON, fix)])


@pytest.mark.usefixtures("without_yaml")
def test_a_policy_in_yaml_is_refused_in_two_lines(tmp_path: Path) -> None:
    path = tmp_path / "sla.yaml"
    path.write_text(EVERYTHING)
    with pytest.raises(PolicyError) as error:
        Policy.load(str(path))
    assert str(error.value) == f"cannot read the policy {path}:1:1: {NO_JSON}\n`pip install pyyaml`, or write JSON"


PROGRAM = """
import sys
from stagetrace.policy.policy import Policy
assert "yaml" not in sys.modules
for text in sys.argv[1:]:
    print(len(Policy.load(text).objectives))
"""


def test_an_interpreter_without_packages_reads_json_and_inline_policies(tmp_path: Path) -> None:
    """The file says all that a file can."""
    source = str(Path(yaml_nodes.__file__).parents[2])
    path = tmp_path / "sla.json"
    path.write_text(json.dumps(yaml.safe_load(EVERYTHING), indent=2))
    inline = "POST /predict within 50ms for 99.9% over 28d; * within 1s"
    done = run_python("-S", "-c", PROGRAM, str(path), inline, PYTHONPATH=source)
    whole = Policy.load(str(path))
    assert done.stdout.split() == [str(len(whole.objectives)), "2"], done.stderr
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "yaml", None)
        assert Policy.load(str(path)) == whole


@pytest.mark.thorough
@pytest.mark.usefixtures("without_yaml")
def test_ten_thousand_objectives_are_read_in_json() -> None:
    text = json.dumps({"objectives": [{"match": {"route": f"/{one}"}, "within": "1s"} for one in range(10_000)]})
    assert len(Policy.read(text, "sla.json").objectives) == 10_000
