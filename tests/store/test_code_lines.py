"""Which lines of code a text selects, in Python as in DuckDB."""

from __future__ import annotations

import duckdb
import pytest

from stagetrace.store.entries import code_pattern, is_one_of, is_whole

CODES = (
    "app.py:4 in predict",
    "app.py:41 in Model.predict",
    "src/app.py:41 in <lambda>",
    "app_py:41 in predict",
    "a (b).py:1 in f[0]+",
    "app.py:41",
    "Ä.py:4 in x'y\\",
    "",
)
SELECTED = {
    ("app.py",): {0, 1, 5},
    ("app.py:4",): {0},
    ("app.py:41",): {1, 5},
    ("app.py:41 in Model.predict",): {1},
    ("app.py:4 in",): set(),
    ("*app.py:41",): {1, 2, 5},
    ("*predict",): {0, 1, 3},
    ("app.py:4*",): {0, 1, 5},
    ("* in <lambda>", "app.py:4"): {0, 2},
    ("a (b).py",): {4},
    ("a (b).py:1 in f[0]+",): {4},
    ("Ä.py", "Ä.py:4 in x'y\\"): {6},
    ("*",): set(range(8)),
    ("pp.py",): set(),
}


@pytest.mark.parametrize("texts", SELECTED)
def test_a_text_selects_the_same_codes_everywhere(texts: tuple[str, ...]) -> None:
    expected = {CODES[number] for number in SELECTED[texts]}
    assert {code for code in CODES if is_one_of(code, texts)} == expected
    assert not is_one_of(None, texts)
    query = "SELECT code FROM (SELECT unnest($1) AS code) WHERE regexp_full_match(code, $2)"
    assert {code for (code,) in duckdb.execute(query, [list(CODES), code_pattern(texts)]).fetchall()} == expected


def test_a_whole_code_selects_itself_alone() -> None:
    for code in CODES:
        if is_whole(code):
            assert [one for one in CODES if is_one_of(one, (code,))] == [code]
    assert [code for code in CODES if not is_whole(code)] == ["app.py:41", ""]
    assert not is_whole("app.py:4* in predict")
