"""Headers and query strings on the entry span: only if a variable asks for them, secrets never; bad settings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from services import run_service
from sink import SERVER, run_sink
from stagetrace import settings
from stagetrace.protocols.http import AskedFor

if TYPE_CHECKING:
    from collections.abc import Mapping

HIDDEN = "hunter2"
SECRETS = """
    authorization Proxy-Authorization cookie x-api-key api_key apikey x-auth-token X-Amz-Security-Token
    password passwd db_pwd client_secret access_token csrf-token sessionid X-Amz-Signature
    AWSAccessKeyId sig key code X-Goog-Iap-Jwt-Assertion otp private-key credentials x-patient-id
"""
NAMES = SECRETS.split()
HARMLESS = {"x-harmless": "shown-header", "design": "shown-design", "monkey": "shown-monkey"}
BODY = f'{{"password": "{HIDDEN}"}}'.encode()


def sent_by(folder: Path, env: Mapping[str, str]) -> tuple[bytes, dict[str, Any], str]:
    """Make a request full of secrets; return all bytes sent of it, the entry span's attributes, and the log."""
    with run_sink() as sink:
        whole = sink.environment(STAGETRACE_SLA="* within 1us", **env)
        with run_service(folder, "semantics", env=whole) as service:
            headers = {**dict.fromkeys(NAMES, HIDDEN), **HARMLESS, "user-agent": "the case"}
            query = "&".join(f"{name}={value}" for name, value in headers.items() if name != "user-agent")
            answer = service.client.post(f"/validated?{query};token={HIDDEN}&flag", headers=headers, content=BODY)
            assert answer.status_code == 422
            service.stop()
        entries = [span for span in sink.spans if span.kind == SERVER]
        entry = next(span for span in entries if span.attributes["user_agent.original"] == "the case")
        return b"".join(span.SerializeToString() for span in sink.protos), entry.attributes, service.log


@pytest.mark.usefixtures("services")
def test_nothing_secret_and_nothing_unrequested_is_recorded(tmp_path: Path) -> None:
    sent, attributes, log = sent_by(tmp_path, {})
    assert HIDDEN.encode() not in sent
    assert b"shown-" not in sent
    never = ("url.query", "http.request.header", "http.request.body")
    assert not [name for name in attributes if name.startswith(never) and not name.endswith(".size")]
    assert HIDDEN not in re.sub("INFO: .*", "", log)  # uvicorn's own access log shows the query


@pytest.mark.usefixtures("services")
def test_requested_values_are_recorded_without_secrets(tmp_path: Path) -> None:
    asked = {
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": ".*",
        "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE": ".*",
        "STAGETRACE_RECORD_QUERY": "1",
        "STAGETRACE_REDACT": "patient, nobody",
    }
    sent, attributes, _ = sent_by(tmp_path, asked)
    assert HIDDEN.encode() not in sent
    query = attributes["url.query"].replace(";", "&").split("&")
    harmless = [f"{name}={value}" for name, value in HARMLESS.items()]
    assert [pair for pair in query if not pair.endswith("=REDACTED")] == [*harmless, "flag"]
    assert len(query) == len(NAMES) + len(HARMLESS) + 2
    assert attributes["http.request.header.x_harmless"] == ["shown-header"]
    assert attributes["http.request.header.x_patient_id"] == ["[REDACTED]"]
    assert attributes["http.response.header.content_type"] == ["application/json"]


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("OTEL_PYTHON_FASTAPI_EXCLUDED_URLS", "no URL is excluded"),
        ("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "no header is shown"),
        ("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", "no header is shown"),
    ],
)
def test_an_invalid_pattern_is_logged_once_and_shows_nothing_secret(variable: str, said: str, tmp_path: Path) -> None:
    asked = {"OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST": "x-harmless", "STAGETRACE_RECORD_QUERY": "1"}
    sent, attributes, log = sent_by(tmp_path, {**asked, variable: "("})
    (line,) = [line for line in log.splitlines() if variable in line]
    reason = "missing ), unterminated subpattern at position 0"
    assert line.endswith(f"is no list of regular expressions ({reason}): {said}.")
    assert attributes["url.query"]
    shown = attributes.get("http.request.header.x_harmless")
    assert shown in (None, ["[REDACTED]"]) if said == "no header is shown" else shown == ["shown-header"]
    assert HIDDEN.encode() not in sent.replace(b"x-patient-id=hunter2", b"")


@pytest.mark.parametrize(
    ("query", "shown"),
    [
        (b"a=1&b=2", "a=1&b=2"),
        (b"a=%20+&b", "a=%20+&b"),
        (b"to%6ben=s", "to%6ben=REDACTED"),
        (b"a[token]=s&a[b]=c", "a[token]=REDACTED&a[b]=c"),
        (b"token=a=b&c", "token=REDACTED&c"),
        (b"token", "token"),
        (b"=s&&;", "=s&&;"),
        (b"TOKEN=\xff\xfe", "TOKEN=REDACTED"),
        (b"plain=\xff", "plain=\xff"),
    ],
)
def test_a_query_string_is_shown_as_it_came_but_for_secrets(
    query: bytes, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGETRACE_RECORD_QUERY", "1")
    assert AskedFor().attributes({"headers": [], "query_string": query}, None) == {"url.query": shown}


def test_each_built_in_secret_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs/environment.md").read_text()
    for word in settings.SECRET:
        if "-" not in word[1:] and "_" not in word:
            assert f"`{word}`" in text, word
