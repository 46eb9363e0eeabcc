"""Text of unknown origin as it is shown: nothing in it controls a terminal, and JSON keeps its meaning."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagetrace.text import LINES, MESSAGE, bounded, printable, printable_json, printable_lines, spreadsheet_cell

HIDDEN = (
    "\x00\x07\x08\x0b\x1b\x7f\x85\x9b\xa0\xad\u061c\u200b\u200e\u200f\u2028\u2029\u202e\u2066\ufeff\ud800\U000e0001"
)
TEXTS = st.text(st.one_of(st.characters(), st.sampled_from([*HIDDEN, "\n", "\t", "\r", "=", "'"])))


@given(TEXTS)
def test_nothing_that_does_not_show_is_left(text: str) -> None:
    assert printable(text).isprintable()
    assert printable_lines(text).replace("\n", "").replace("\t", "").isprintable()
    assert printable_lines(text).count("\n") == text.count("\n")
    assert printable(printable(text)) == printable(text)
    assert spreadsheet_cell(text).isprintable()


@given(TEXTS)
def test_json_means_the_same(text: str) -> None:
    for ascii_only in (True, False):
        shown = printable_json(json.dumps([text], ensure_ascii=ascii_only))
        assert shown.isprintable()
        assert json.loads(shown) == [text]


@given(st.lists(TEXTS.filter(str.isprintable), max_size=9).map("\n".join), st.integers(0, 3000), TEXTS)
def test_a_message_is_bounded_and_keeps_its_end(begin: str, length: int, end: str) -> None:
    text = f"{begin}{'x' * length}\n{end}"
    shown = bounded(text)
    assert len(shown) <= MESSAGE + len(" ... [1,000,000 characters cut] ... ")
    assert len(shown.split("\n")) <= LINES
    whole = printable_lines(text)
    assert shown.endswith(whole.split("\n")[-1][-100:])
    if len(whole) <= MESSAGE and whole.count("\n") < LINES:
        assert shown == whole
    else:
        assert " cut]" in shown


def test_what_is_cut_is_counted() -> None:
    assert bounded("x" * 1500 + "\nremedy").endswith("\nremedy")
    assert " ... [507 characters cut] ... " in bounded("x" * 1500 + "\nremedy")
    assert bounded("a\nb\nc\nd\nremedy") == "a\nb ... [2 lines cut]\nremedy"


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-1+1", "'-1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "'\\t=1"),
        ("\r=1", "'\\r=1"),
        ("＝1", "'＝1"),  # noqa: RUF001 -- a full-width one
        ("-5", "-5"),
        ("+1.5e-3", "+1.5e-3"),
        ("-1,234.5", "-1,234.5"),
        ("a=1", "a=1"),
        ("/p\x1b[2J", "/p\\x1b[2J"),
        ("", ""),
    ],
)
def test_no_cell_is_a_formula(text: str, cell: str) -> None:
    assert spreadsheet_cell(text) == cell
