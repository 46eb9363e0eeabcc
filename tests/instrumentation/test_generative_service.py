"""A service of generative models, under a real server: spans, verdicts, and the responses of an untraced one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from services import Service, run_service

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sink import Request, Sink

pytestmark = pytest.mark.usefixtures("services")

POLICY = (
    "GET /generate within 60s first_token 1us per_token 60s; GET /chat within 60s first_token 60s per_token 1us; "
    "GET /stream within 60s first_token 60s per_token 60s; GET /embed within 60s first_token 1us; * within 60s"
)
PATHS = (
    *("/generate", "/stream", "/stream?tokens=30", "/chat", "/twice", "/abandoned", "/embed", "/fail"),
    *("/vllm", "/vllm?tokens=1"),
)


@pytest.fixture(scope="module")
def service(sink: Sink, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    env = sink.environment(STAGETRACE_SLA=POLICY)
    with run_service(tmp_path_factory.mktemp("service"), "generative", env=env) as found:
        yield found
    assert "fault of stagetrace" not in found.log


def inferences(request: Request) -> list[dict[str, Any]]:
    return [stage.attributes for stage in request.stages if stage.name == "inference"]


def test_responses_are_those_of_an_untraced_service(service: Service, tmp_path: Any) -> None:
    with run_service(tmp_path, "generative") as untraced:
        for path in PATHS:
            one, other = service.client.get(path), untraced.client.get(path)
            assert (one.status_code, one.content) == (other.status_code, other.content)


def test_a_completion_has_its_tokens_and_its_verdict(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", "/generate?tokens=5")
    assert json.loads(response.text)["usage"]["completion_tokens"] == 5
    entry = request.entry.attributes
    (inference,) = inferences(request)
    for described in (entry, inference):
        assert (described["gen_ai.usage.input_tokens"], described["gen_ai.usage.output_tokens"]) == (6, 5)
        assert described["gen_ai.operation.name"] == "text_completion"
        assert described["gen_ai.request.model"] == described["ml.model.name"] == "tiny.gguf"
    start = next(stage.start for stage in request.stages if stage.name == "inference")
    since_entry = entry["stagetrace.tokens.first_ms"] - inference["stagetrace.tokens.first_ms"]
    assert since_entry == pytest.approx((start - request.entry.start) / 1e6, abs=1)  # the call, and its stage
    assert (entry["sla.verdict"], entry["sla.breach.promise"]) == ("breach", "first_token")
    assert entry["sla.breach.missed"] == f"first_token: {entry['stagetrace.tokens.first_ms']:.15g} ms, 0.001 ms allowed"
    assert "sla.fallback" not in entry


def test_each_token_after_the_first_is_judged_by_their_mean(service: Service, sink: Sink) -> None:
    request, _ = sink.traced(service, "GET", "/chat")
    entry = request.entry.attributes
    assert (entry["gen_ai.operation.name"], entry["sla.breach.promise"]) == ("chat", "per_token")
    took = float(entry["sla.breach.missed"].split()[1])
    assert took == pytest.approx(entry["stagetrace.tokens.gap.mean_ms"], abs=1e-6)
    assert entry["sla.breach.stage"] == "inference"


def test_a_stream_is_counted_as_a_server_iterates_it(service: Service, sink: Sink) -> None:
    """In the threads of a pool, each step in another context; its many steps are few spans."""
    request, _ = sink.traced(service, "GET", "/stream?tokens=30")
    entry = request.entry.attributes
    assert (entry["gen_ai.usage.output_tokens"], entry["gen_ai.request.stream"]) == (30, True)
    assert (entry["sla.verdict"], "sla.fallback" in entry) == ("good", False)
    assert "stagetrace.tokens.incomplete" not in entry
    assert entry["stagetrace.tokens.first_ms"] <= entry["stagetrace.network.first_byte_ms"]
    first = entry["gen_ai.response.time_to_first_chunk"] * 1e3
    assert entry["stagetrace.tokens.first_ms"] <= first <= entry["stagetrace.network.first_byte_ms"]
    assert {one["gen_ai.usage.output_tokens"] for one in inferences(request)} == {30}


def test_calls_of_a_request_are_summed(service: Service, sink: Sink) -> None:
    request, response = sink.traced(service, "GET", "/twice")
    assert response.json() == [3, 4]
    assert [one["gen_ai.usage.output_tokens"] for one in inferences(request)] == [3, 4]
    entry = request.entry.attributes
    assert (entry["gen_ai.usage.output_tokens"], entry["stagetrace.tokens.calls"]) == (7, 2)


def test_what_is_given_up_and_what_fails_is_marked(service: Service, sink: Sink) -> None:
    request, _ = sink.traced(service, "GET", "/abandoned")
    assert request.entry.attributes["stagetrace.tokens.incomplete"] is True
    request, response = sink.traced(service, "GET", "/fail")
    assert response.status_code == 503
    assert inferences(request)[0]["stagetrace.tokens.error"] == "ValueError"
    assert request.entry.attributes["stagetrace.tokens.error"] == "ValueError"
    assert request.entry.attributes["error.type"] == "503"


def test_where_nothing_is_generated_the_verdict_reports_it(service: Service, sink: Sink) -> None:
    request, _ = sink.traced(service, "GET", "/embed")
    entry = request.entry.attributes
    assert (entry["gen_ai.operation.name"], entry["gen_ai.usage.input_tokens"]) == ("embeddings", 9)
    assert (entry["sla.verdict"], entry["sla.fallback"]) == (
        "good",
        "first_token not judged: tokens not known",
    )


def test_phases_of_an_engine_are_details_of_the_stage(service: Service, sink: Sink) -> None:
    request, _ = sink.traced(service, "GET", "/vllm")
    details = {one.name: one for one in request.others if one.name in {"queue", "prefill"}}
    parents = {one.span_id: one for one in request.stages}
    assert {parents[one.parent_id].name for one in details.values()} == {"inference"}
    assert details["queue"].end == pytest.approx(details["prefill"].start, abs=1000)
    took = (details["prefill"].end - details["prefill"].start) / 1e9
    assert request.entry.attributes["gen_ai.latency.time_in_model_prefill"] == pytest.approx(took, abs=1e-3)
    assert request.entry.attributes["gen_ai.usage.output_tokens"] == 4
