"""OpenTelemetry's variables for HTTP mean what `opentelemetry.util.http` makes of them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.util import http as official
from opentelemetry.util.http.constants import BOT_PATTERNS, TEST_PATTERNS

from services import run_python
from stagetrace import settings
from stagetrace.protocols import http
from stagetrace.protocols.http import AskedFor, agent_attributes
from stagetrace.protocols.http_variables import (
    METHODS,
    SYNTHETIC,
    ExcludedUrls,
    captured,
    listed,
    names,
    sanitize_method,
)

REQUEST, RESPONSE = "http.request.header.", "http.response.header."
ALL_METHODS = "OTEL_PYTHON_INSTRUMENTATION_HTTP_CAPTURE_ALL_METHODS"
# Lists of regular expressions, as variables have them: with empty ones, spaces and capitals.
PARTS = ["health", "", "/a/.*", "X-.*", "x-tenant", " x-b ", "AUTH", "[xy]-?", "a|b", "$", "(?:x)+", "\u00e4", "ready$"]
LISTS = st.lists(st.sampled_from(PARTS), max_size=4).map(",".join)
NAMES = st.sampled_from(
    ["x-tenant", "X-Tenant", "x_tenant", "authorization", "x-", "y", "a", "", "\u00e4", "x-b", "xx-a"]
)


@pytest.mark.parametrize("asks_for_all", ["", "0", "1"])
@pytest.mark.parametrize("method", [*sorted(METHODS), "get", "Query", "BREW", "brew", "", "GE T", "\u00df"])
def test_methods_are_those_of_opentelemetry(method: str, asks_for_all: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALL_METHODS, asks_for_all)
    assert sanitize_method(method) == official.sanitize_method(method)


@pytest.mark.parametrize("text", [*TEST_PATTERNS, *BOT_PATTERNS, "curl", "robot", "", "bingbot alwayson googlebot"])
def test_synthetic_agents_are_those_of_opentelemetry(text: str) -> None:
    agent = f"Mozilla/5.0 ({text.upper()}/2.1)"
    theirs = official.detect_synthetic_user_agent(agent)
    assert agent_attributes(agent.encode()).get("user_agent.synthetic.type") == theirs
    assert set(SYNTHETIC) == {*TEST_PATTERNS, *BOT_PATTERNS}


@given(LISTS, st.lists(st.sampled_from([*PARTS, "http://h/health", "https://h/a/b?x=ready"]), max_size=3).map("/".join))
def test_excluded_urls_are_those_of_opentelemetry(patterns: str, url: str) -> None:
    theirs = official.parse_excluded_urls(patterns).url_disabled(url)
    assert bool(patterns and ExcludedUrls(listed(patterns)).url_disabled(url)) == theirs


@pytest.mark.parametrize("patterns", ["(", "a,(", "a)(b", "*"])
def test_what_is_no_regular_expression_excludes_nothing(
    patterns: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for made in (official.parse_excluded_urls, lambda text: ExcludedUrls(listed(text))):
        with pytest.raises(re.error):
            made(patterns)
    monkeypatch.setenv("OTEL_PYTHON_STARLETTE_EXCLUDED_URLS", patterns)
    monkeypatch.setattr("stagetrace.log._logged", set())
    assert http.excluded.__wrapped__("STARLETTE") is None
    assert "OTEL_PYTHON_STARLETTE_EXCLUDED_URLS is no list of regular expressions (" in capfd.readouterr().err


@given(LISTS, LISTS, st.dictionaries(NAMES, st.lists(st.text(max_size=3), min_size=1, max_size=2), max_size=5))
def test_captured_headers_are_those_of_opentelemetry(asked: str, secret: str, headers: dict[str, list[str]]) -> None:
    """As the lists of a variable; those of a request and of a response differ by the names of attributes alone."""
    wanted, hidden = listed(asked), listed(secret)
    theirs: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    is_secret = names(hidden).search if hidden else (lambda _: None)
    for prefix, name in (
        (REQUEST, official.normalise_request_header_name),
        (RESPONSE, official.normalise_response_header_name),
    ):
        theirs |= official.get_custom_header_attributes(headers, wanted, hidden, name)
        if wanted:
            ours |= captured(headers, names(wanted), lambda one: is_secret(one) is not None, prefix)
    assert ours == theirs


@pytest.mark.parametrize(
    ("setting", "variable"),
    [
        (settings.CAPTURE_REQUEST, official.OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST),
        (settings.CAPTURE_RESPONSE, official.OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE),
        (settings.SANITIZE_FIELDS, official.OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS),
        (settings.ALL_METHODS, official.OTEL_PYTHON_INSTRUMENTATION_HTTP_CAPTURE_ALL_METHODS),
    ],
)
@pytest.mark.parametrize("text", [None, "", " ", "a", " a , b,", ",", "a,,b"])
def test_variables_are_read_as_opentelemetry_reads_them(
    text: str | None, setting: settings.Setting, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(variable, raising=False)
    if text is not None:
        monkeypatch.setenv(variable, text)
    assert listed(setting.raw()) == official.get_custom_headers(variable)


@pytest.mark.parametrize(
    ("sanitized", "shown"), [("", "a"), ("x-t.*", "[REDACTED]"), ("x-other", "a"), ("(", "[REDACTED]")]
)
def test_headers_are_shown_unless_a_variable_hides_them(
    sanitized: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is no regular expression hides all."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "X-Tenant, x-token")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", sanitized)
    headers = [(b"x-tenant", b"a"), (b"x-token", b"b"), (b"x-not-asked", b"c")]
    found = AskedFor().attributes({"headers": headers}, None)
    assert found == {f"{REQUEST}x_tenant": [shown], f"{REQUEST}x_token": ["[REDACTED]"]}


def test_nothing_of_opentelemetry_is_needed() -> None:
    source = str(Path(http.__file__).parents[2])
    code = "from stagetrace.protocols import http_variables; import sys; print('opentelemetry' in sys.modules)"
    done = run_python("-S", "-c", code, PYTHONPATH=source)
    assert done.stdout == "False\n", done.stderr
    assert "opentelemetry.util.http" in sys.modules  # here, for the comparison
