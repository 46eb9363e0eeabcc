"""A patch that fails ten times is switched off: logged once, counted, and all the others go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services import Service, run_service
from stagetrace import guard, log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sink import Sink

PATCH = "stagetrace.instrumentation.failing"
REQUESTS = 30


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Reset the counts; return the log."""
    lines: list[str] = []
    monkeypatch.setattr(guard, "failures", {})
    monkeypatch.setattr(guard, "_switches", {})
    monkeypatch.setattr(log, "_logged", set())
    monkeypatch.setattr(log, "error", lines.append)
    return lines


class Part:
    """A part of a patch that fails, and counts its calls."""

    def __init__(self, module: str = PATCH, name: str = "part") -> None:
        self.calls = 0

        def part() -> str:
            self.calls += 1
            raise RuntimeError("broken")

        part.__module__, part.__qualname__ = module, name
        self.function: Callable[[], str] = part


def test_a_place_that_fails_ten_times_is_not_called_again() -> None:
    part = Part()
    call = guard.guarded(part.function)
    assert [call() for _ in range(REQUESTS)] == [None] * REQUESTS
    assert part.calls == guard.LIMIT == 10
    assert guard.failures == {f"{PATCH}.part": 10}
    assert guard.switched_off() == [PATCH]


def test_that_is_said_once(said: list[str]) -> None:
    call = guard.guarded(Part().function)
    for _ in range(REQUESTS):
        call()
    first, second = said
    assert first.startswith(f"{PATCH}.part failed (RuntimeError: broken)")
    assert second.startswith(f"{PATCH}.part failed 10 times: its patch is switched off")


def test_nine_failures_switch_nothing_off() -> None:
    call = guard.guarded(Part().function)
    for _ in range(9):
        call()
    assert guard.switched_off() == []


def test_the_other_parts_of_that_hook_are_not_called_and_those_of_other_hooks_are() -> None:
    def works() -> str:
        return "called"

    works.__module__ = PATCH
    same = guard.guarded(works)
    works.__module__ = "stagetrace.instrumentation.another"
    other = guard.guarded(works)
    broken = guard.guarded(Part().function)
    for _ in range(10):
        broken()
    assert (same(), other()) == (None, "called")


def test_what_ends_something_is_called_even_then() -> None:
    """A request that began before the patch was switched off must still finish."""
    begin, end = Part(name="begin"), Part(name="end")
    beginning, ending = guard.guarded(begin.function), guard.guarded_end(end.function)
    for _ in range(10):
        beginning()
    ending()
    assert end.calls == 1
    assert guard.failures[f"{PATCH}.end"] == 1


def test_failures_of_ends_switch_their_hook_off_too() -> None:
    end = guard.guarded_end(Part().function)
    for _ in range(10):
        end()
    assert guard.switched_off() == [PATCH]


def test_what_is_no_hook_is_counted_and_goes_on() -> None:
    """The judging of requests, and the queue: one bad span in a thousand must not end all others."""
    part = Part("stagetrace.sla.processor")
    call = guard.guarded(part.function)
    for _ in range(REQUESTS):
        call()
    assert part.calls == REQUESTS
    assert guard.failures == {"stagetrace.sla.processor.part": REQUESTS}
    assert guard.switched_off() == []


def test_a_patch_of_another_package_is_switched_off_like_ours() -> None:
    call = guard.guarded(Part("pinewood_stagetrace.patch").function)
    for _ in range(REQUESTS):
        call()
    assert guard.switched_off() == ["pinewood_stagetrace.patch"]


def test_a_wrapper_that_guards_itself_is_switched_off_by_its_reports() -> None:
    patch = guard.switch(PATCH)
    for _ in range(10):
        assert not patch.off
        guard.report(PATCH, RuntimeError("broken"))
    assert patch.off
    assert guard.switch(PATCH) is patch


def test_a_closed_stderr_does_not_keep_a_hook_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: Any) -> None:
        raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(log, "error", closed)
    monkeypatch.setattr(log, "_logged", set())
    call = guard.guarded(Part().function)
    for _ in range(10):
        call()
    assert guard.switched_off() == [PATCH]


SERVE_BY = "stagetrace.protocols.http_request:HttpRequest.set_route"


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    """Serve an application that makes one part of stagetrace fail, and counts how often it has."""
    with run_service(folder, "switchable", env=sink.environment(STAGETRACE_SLA="* within 1s")) as running:
        yield running


@pytest.fixture
def breaking(service: Service) -> Iterator[Callable[[str], None]]:
    def make_broken(part: str) -> None:
        service.client.get(f"/break/{part}").raise_for_status()

    yield make_broken
    service.client.get("/mend").raise_for_status()


@pytest.mark.parametrize(
    ("part", "patch"),
    [
        ("stagetrace.protocols.http:request_block", "stagetrace.protocols."),
        ("stagetrace.protocols.asgi_request:AsgiRequest.begin_response", "stagetrace.protocols."),
        (SERVE_BY, "stagetrace.patches.starlette"),
        ("stagetrace.patches.sklearn:description", "stagetrace.patches.sklearn"),
    ],
)
def test_after_ten_failures_requests_run_untouched_by_that_patch(
    part: str, patch: str, service: Service, breaking: Callable[[str], None]
) -> None:
    """In a real service the broken part is called ten times and never again."""
    begun = len(service.log)
    breaking(part)
    for _ in range(REQUESTS):
        assert service.call("POST", "/async-predict", json={})[1].json() == [0]
    assert service.call("GET", "/failures")[1].json() == 10
    log_text = service.log[begun:]
    assert log_text.count("injected fault") == 1, log_text
    off = [line for line in log_text.splitlines() if "is switched off in this process" in line]
    assert len(off) == 1, log_text
    assert patch in off[0]


def test_the_other_patches_go_on(service: Service, sink: Sink, breaking: Callable[[str], None]) -> None:
    """The patch that records routes is off: request, stages and model are still recorded, the route is resolved."""
    breaking(SERVE_BY)
    traces = [service.call("POST", "/predict", json={"inference_s": 0.02})[0] for _ in range(REQUESTS)]
    request = sink.request(traces[-1])
    assert "inference" in request.names
    assert request.entry.attributes["ml.model.name"] == "SleepyModel"
    assert request.entry.attributes["http.route"] == "/predict"
    assert request.entry.attributes["sla.verdict"] == "good"
    entries = [sink.request(trace_id).entry for trace_id in traces]
    assert all("sla.verdict" in entry.attributes for entry in entries)


def test_an_error_is_logged_without_credentials_at_the_cut_too(said: list[str]) -> None:
    text = "x" * 180 + " http://user:hunter2hunter2hunter2@host"
    guard.report("a place", ValueError(text))
    (line,) = said
    assert line.startswith(f"a place failed (ValueError: {'x' * 180} http://REDACTED@ho")
    assert "hunter" not in line
