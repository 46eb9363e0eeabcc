"""OTEL_EXPORTER_OTLP_HEADERS is read as OpenTelemetry reads it, and what is malformed is logged without its value."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.util.re import parse_env_headers

from stagetrace import log
from stagetrace.otlp.export.transport import _headers, parsed_headers

TEXTS = [
    *("", " ", ",", ",,", "a=1", "a=1,b=2", " a = 1 , b\t=\t2 ", "A-B=Cd", "a=", "a= ", "=a", "a", "a,b=1", "a=1,"),
    *("a=b=c", "a==", "Authorization=Bearer%20t", "Authorization=Basic dXM6cGFzcw==", "x=a b", "x=a%20b c", "x=a%2Cb"),
    *("x=%C3%A4", "x=\u00e4", "\u00e4=x", "x=%", "x=%zz", "x=%ff", "a%20b=c", "%41=b", "%20=c", "a b=c", "a=b;c=d"),
    *('a="b"', "a=b\\c", "a=1,A=2", "a=1,a=%202", "a= b c ", "a=b \tc", "a=\tb c", "a\n=b", "\na=b\n", "a=b\n,c=d"),
    *("a=\x7f", "a=\x1f", "a(b=c", "a/b=c", "a:b=c", "a{b=c", "!#$%&'*+-.^_`|~=!", "a=#$&'()*+-./:<>?@[]^_`{|}~"),
]
ALPHABET = st.sampled_from("aZ09 \t\n,=;%20C3A4\"\\/:()<>@[]{}!#$&'*+-.^_`|~\x7f\x00\u00e4\u2028")


@pytest.mark.parametrize("text", TEXTS)
def test_headers_are_those_of_opentelemetry(text: str) -> None:
    assert parsed_headers(text) == parse_env_headers(text, liberal=True)


@given(st.text(ALPHABET, max_size=40) | st.lists(st.text(ALPHABET, max_size=12), max_size=4).map("=".join))
@example("a=\u2028b")
def test_headers_of_any_text_are_those_of_opentelemetry(text: str) -> None:
    assert parsed_headers(text) == parse_env_headers(text, liberal=True)


@pytest.mark.parametrize(
    ("text", "named", "sent"),
    [
        ("x-key=s\u00e4cret,a=1", "the header 'x-key' in OTEL_EXPORTER_OTLP_HEADERS", {"a": "1"}),
        ("authorization=Bearer s%0Acret,a=1", None, {"authorization": "Bearer s%0Acret", "a": "1"}),
        ("authorization=s%0Acret,a=1", "the header 'authorization' in", {"a": "1"}),
        ("a=1,s/cret", "a header in OTEL_EXPORTER_OTLP_HEADERS", {"a": "1"}),
        ("s%0acret=x,a=1", "a header in OTEL_EXPORTER_OTLP_HEADERS", {"a": "1"}),
    ],
)
def test_what_is_malformed_is_logged_once_and_without_its_value(
    text: str,
    named: str | None,
    sent: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A header with a control character, which percent-encoding can give it, would be refused with its value."""
    monkeypatch.setattr(log, "_logged", set())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", text)
    assert _headers("TRACES") == _headers("METRICS") == sent
    logged = capfd.readouterr().err
    assert (logged.count("is malformed and not sent"), logged.count(named or "malformed")) == (
        (1, 1) if named else (0, 0)
    )
    assert "cret" not in logged
