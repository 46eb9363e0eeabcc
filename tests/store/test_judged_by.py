"""The verdict of one objective: out of the list as it is written, in Python as in DuckDB, whatever its name is."""

from __future__ import annotations

import re

import duckdb
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.policy.entry_span import MOST_WRITTEN, write
from stagetrace.store.entries import verdict_pattern, word_of

# As names may be: no semicolon, parenthesis or line break.
NAMES = st.one_of(
    st.sampled_from(["a", "b", "a b", "a.b", "breach: a", "good", "*", "POST /predict within 50ms", "é漢\U0001f600"]),
    st.text(st.characters(exclude_characters=";()", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1),
)
WORDS = st.sampled_from(["good", "breach", "excluded"])
LISTED = st.lists(
    st.tuples(WORDS, NAMES, st.just("99% over 28d")), min_size=1, max_size=5, unique_by=lambda one: one[1]
)
CONNECTION = duckdb.connect()


@given(LISTED, NAMES)
def test_each_listed_objective_has_its_verdict_and_no_other(listed: list[tuple[str, str, str]], other: str) -> None:
    text = write(listed)
    expected = {name: word for word, name, _ in listed}
    for name in (*expected, other):
        word = expected.get(name)
        assert word_of(name, None, "good", text) == word
        for breached in (False, True):
            found = verdict_pattern(name, breached=breached)
            wanted = word == "breach" if breached else word is not None
            assert bool(re.search(found, text)) is wanted
            assert CONNECTION.execute("SELECT regexp_matches($1, $2)", [text, found]).fetchone() == (wanted,)


def test_the_span_says_it_of_the_objective_that_it_shows_and_of_those_beyond_the_list_nobody() -> None:
    assert word_of("predict", "predict", "breach", None) == "breach"
    assert word_of("predict", "other", "breach", None) is None
    text = write([("good", f"r{number}", "99% over 28d") for number in range(MOST_WRITTEN + 1)])
    assert word_of(f"r{MOST_WRITTEN - 1}", None, None, text) == "good"
    assert word_of(f"r{MOST_WRITTEN}", None, None, text) is None
