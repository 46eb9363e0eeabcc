"""Credentials are redacted in queries, paths and any text: by their names, and by the forms of well-known secrets."""

from __future__ import annotations

import pytest

from stagetrace import text as redaction
from stagetrace.text import redacted, redacted_arguments, redacted_end, redacted_path, redacted_query, redacted_start

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uhbUJU1p1r"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nIBAAK\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://bob:hunter2@db:5432/x is down", "postgres://REDACTED@db:5432/x is down"),
        ("https://hunter2@git.example/x", "https://REDACTED@git.example/x"),
        ("redis://:p@hunter2@a and redis://:1hunter/2@b", "redis://REDACTED@a and redis://REDACTED@b"),
        ("root:hunter2@tcp(db:3306)/x", "REDACTED@tcp(db:3306)/x"),
        ("GET https://h/a?api_key=hunter2&x=1&code=hunter2", "GET https://h/a?api_key=REDACTED&x=1&code=REDACTED"),
        ("url=https://h/?pass%77ord=hunter2", "url=https://h/?pass%77ord=REDACTED"),
        ("{'password': 'hunter 2', 'n': 1}", "{'password': REDACTED, 'n': 1}"),
        ('{"client_secret": "hun\\"ter2"}', '{"client_secret": REDACTED}'),
        (r"body: {\"token\": \"hunter2\"}", r"body: {\"token\": REDACTED}"),
        ("tokens=['hunter', '2'] and more", "tokens=REDACTED and more"),
        ("(b'authorization', b'Bearer hunter2')", "(b'authorization', REDACTED)"),
        ("Authorization: Bearer hunter2\nnext", "Authorization: REDACTED\nnext"),
        ("Authorization: Digest username=hunter, response=2\nnext", "Authorization: REDACTED\nnext"),
        ("Cookie: id=hunter2; theme=hunter2\nnext", "Cookie: REDACTED\nnext"),
        ("got Bearer aHVudGVyMg== here", "got Bearer REDACTED here"),
        (
            "serve --token hunter2 --port 80 --db-password=hunter2",
            "serve --token REDACTED --port 80 --db-password=REDACTED",
        ),
        ("secret = 'hunter2", "secret = REDACTED"),
        (f"bad {JWT}.", "bad REDACTED"),
        ("key AKIAIOSFODNN7EXAMPLE!", "key REDACTED!"),
        ("sk-ant-api03-abcdefghijklmnop is wrong", "REDACTED is wrong"),
        ("token ghp_16C7e42F292c6912E7710c838347Ae178B4a", "token REDACTED"),
        (f"read {PEM} from", "read REDACTED from"),
        (PEM[:60], "REDACTED"),
        ("[SQL: SELECT ?]\n[parameters: ('hunter]2',)]\n(more)", "[SQL: SELECT ?]\n[parameters: REDACTED]\n(more)"),
    ],
)
def test_credentials_in_a_text_are_redacted(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "UNAUTHENTICATED: no token was sent, and one is needed in the metadata `authorization`, after the word Bearer",
        "could not convert string to float: 'abc'",
        "status code: 500, key: 5, sig: 11",
        "Basic authentication failed; bearer authentication is needed",
        "http://[::1]:80/a?x=me@example.org and bob@example.org",
        'File "/srv/app.py", line 3, in predict\n    raise ValueError(f"bad {x}")',
        "sk-learn and eyJ are no secrets",
        "",
    ],
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_queries_and_paths() -> None:
    query = f"a=1&pass%77ord=hunter2&x={JWT}&key=hunter2;sig=hunter2&flag"
    assert redacted_query(query) == "a=1&pass%77ord=REDACTED&x=REDACTED&key=REDACTED;sig=REDACTED&flag"
    assert redacted_path(f"/verify/{JWT}/now") == "/verify/REDACTED/now"
    assert redacted_path("/app;jsessionid=hunter2") == "/app;jsessionid=REDACTED"
    assert redacted_path("/fetch/http://bob:hunter2@h/x") == "/fetch/http://REDACTED@h/x"
    for path in ("/", "/v1/models/tokenizer:predict", "/models/sentence-transformers/all-MiniLM-L6-v2", "/a@b"):
        assert redacted_path(path) == path


def test_arguments_of_a_command_line() -> None:
    given = [
        "serve",
        "--db-password",
        "hunter 2",
        "--port",
        "80",
        "--token=hunter2",
        "--key",
        "x",
        "http://u:hunter2@h",
    ]
    shown = ["serve", "--db-password", "REDACTED", "--port", "80", "--token=REDACTED", "--key", "REDACTED"]
    assert redacted_arguments(given) == [*shown, "http://REDACTED@h"]


def test_words_of_the_environment_are_secret_in_texts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    redaction._secret.cache_clear()
    try:
        monkeypatch.setenv("STAGETRACE_REDACT", "patient, iban")
        assert redacted("patient_id=17, IBAN: DE02, ward=3") == "patient_id=REDACTED, IBAN: REDACTED, ward=3"
    finally:
        redaction._secret.cache_clear()


def test_a_cut_text_shows_no_part_of_a_credential() -> None:
    text = "x" * 90 + " password=" + "hunter2" * 10 + " rest" * 40
    assert redacted_start("short", 100) == redacted_end("short", 100) == "short"
    start = redacted_start(text, 100)
    assert start == "x" * 90 + " password="[:10] + f"... (cut, of {len(text)} characters)"
    end = redacted_end(" rest" * 40 + " password=" + "hunter2" * 10 + "x" * 60, 100)
    assert "hunter" not in start + end
    assert end.startswith("(cut, of ")
    assert len(end) < 140


UNITS = (
    *(
        "a",
        "a ",
        "a=",
        "a:",
        "a:a@",
        "=",
        "@",
        " ",
        "\n",
        ".",
        "-",
        "--a ",
        "%",
        "'",
        '"',
        "'\\",
        "://",
        "://a:",
        "://a:b/",
    ),
    *("eyJ", "eyJaaaaaaaaaaaaaaaa.", "token", "token=", "token='", 'token="\\', 'token=\\"', "token=[", "cookie: "),
    *("[parameters: ", "-----BEGIN PRIVATE KEY-----", "Bearer ", "basic a", "sk-", "AKIA", "ghp_", "\\"),
)


@pytest.mark.parametrize("size", [100_000, pytest.param(1_000_000, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("unit", UNITS)
def test_a_long_text_of_anything_takes_linear_time(unit: str, size: int) -> None:
    """In quadratic time each would take longer than a test may."""
    redacted(unit * (size // len(unit)))
