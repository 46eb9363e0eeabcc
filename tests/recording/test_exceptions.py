"""What is recorded of an exception: its type, and by STAGETRACE_RECORD_EXCEPTIONS redacted message and stack trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from opentelemetry.sdk.trace import TracerProvider

from stagetrace import log
from stagetrace.request import limits
from stagetrace.request.context import here, meet_otel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

SAID = "cannot reach https://bob:hunter2@db/?token=hunter2"
SHOWN = "cannot reach https://REDACTED@db/?token=REDACTED"


class OddError(Exception):
    """What an application may raise: its text is what `text` returns."""

    def __str__(self) -> str:
        text: Any = self.args[0]
        return str(text())


def fail() -> NoReturn:
    raise TypeError("in vain")


@pytest.fixture
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("STAGETRACE_RECORD_EXCEPTIONS", request.param)
    limits.recorded.cache_clear()
    yield
    limits.recorded.cache_clear()


def as_(mode: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("mode", [mode], indirect=True)


def recorded(error: BaseException) -> tuple[Mapping[str, Any], str | None]:
    """Return the attributes of the event and the description of the status."""
    assert meet_otel()
    span: Any = TracerProvider(shutdown_on_exit=False).get_tracer("test").start_span("test")
    limits.record(span, error, 7)
    here.set_error(span, limits.description_of(error))
    (event,) = span.events
    assert (event.name, event.timestamp) == ("exception", 7)
    return event.attributes, span.status.description


def raised(*causes: BaseException) -> BaseException:
    """Return the first exception, raised from the next, which was raised from the one after it."""
    first, *rest = causes
    try:
        raise first from (raised(*rest) if rest else None)
    except type(first) as error:
        return error


@pytest.mark.parametrize("mode", ["", "type", " TYPE "], indirect=True)
@pytest.mark.usefixtures("mode")
def test_the_type_alone_is_recorded_by_default() -> None:
    """The text is not even asked for."""
    assert recorded(raised(ValueError(SAID))) == ({"exception.type": "ValueError"}, "ValueError")
    asked: list[int] = []
    attributes, description = recorded(raised(OddError(lambda: asked.append(1))))
    assert attributes == {"exception.type": f"{__name__}.OddError"}
    assert (description, asked) == ("OddError", [])
    assert limits.details("no such patient: Bob") is None


@as_("message")
@pytest.mark.usefixtures("mode")
def test_a_message_is_recorded_without_credentials() -> None:
    attributes, description = recorded(raised(ValueError(SAID)))
    assert attributes == {"exception.type": "ValueError", "exception.message": SHOWN}
    assert description == f"ValueError: {SHOWN}"
    assert limits.details(SAID.encode()) == SHOWN


@as_("full")
@pytest.mark.usefixtures("mode")
def test_a_stack_trace_is_recorded_without_credentials() -> None:
    """Those of its causes are in it."""
    attributes, _ = recorded(raised(ValueError("refused"), KeyError("password=hunter2"), OSError(SAID)))
    stack = attributes["exception.stacktrace"]
    assert "hunter2" not in stack
    assert f"OSError: {SHOWN}\n" in stack
    assert "KeyError: 'password=REDACTED'\n" in stack
    assert stack.count("raise first from") == 3
    assert stack.endswith("ValueError: refused\n")


@as_("full")
@pytest.mark.usefixtures("mode")
@pytest.mark.parametrize(
    ("text", "begin"),
    [
        (fail, "(no text: its __str__ raised TypeError)"),
        (lambda: "x" * 100_000_000, "x" * limits.MAX_MESSAGE + "... (cut, of 100000000 characters)"),
        (lambda: "\udcff", "\\udcff"),
    ],
)
def test_an_odd_text_of_an_exception_is_harmless(text: Any, begin: str) -> None:
    attributes, description = recorded(raised(OddError(text)))
    assert attributes["exception.message"] == begin
    assert description == f"OddError: {begin}"
    assert len(attributes["exception.stacktrace"]) < 2 * limits.MAX_STACK
    attributes["exception.stacktrace"].encode()


@as_("full")
@pytest.mark.usefixtures("mode")
def test_of_a_long_stack_trace_the_end_is_kept() -> None:
    error = raised(ValueError("at last"), *(ValueError(f"cause {number}") for number in range(200)))
    stack = recorded(error)[0]["exception.stacktrace"]
    assert len(stack) < limits.MAX_STACK + 100
    assert stack.startswith("(cut, of ")
    assert stack.endswith("ValueError: at last\n")


@as_("everything")
@pytest.mark.usefixtures("mode")
def test_an_unusable_value_is_logged_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(log, "_logged", set())
    assert recorded(ValueError(SAID))[0] == recorded(ValueError(SAID))[0] == {"exception.type": "ValueError"}
    problem = "STAGETRACE_RECORD_EXCEPTIONS=everything is none of: type, message, full; using type."
    assert capfd.readouterr().err == f"stagetrace: {problem}\n"
