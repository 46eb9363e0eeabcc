"""Calls of models elsewhere: what the client span has of a language model's request and response."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from environments import folder_with
from model_apis import PAUSE_S, STREAMS, TEXT, WHOLE, ModelApis, run_model_apis, text_of
from parts import parts
from services import Service, run_service
from sink import CLIENT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sink import Received, Sink

pytestmark = pytest.mark.usefixtures("services")

EARLY = 0.95
PASSED_ON = ["httpx", "httpx2", "httpx-async", "httpx2-async", "requests", "urllib3-chunks", "aiohttp"]
HOW = [*PASSED_ON, "urllib3-parts", "requests-whole", "aiohttp-whole", "urllib3"]
DECODING = ["httpx", "httpx2-async", "urllib3-parts", "aiohttp"]  # by code of their own
CHAT = "/v1/chat/completions"
CHATTED = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "asked-7b",
    "gen_ai.response.model": "served-7b",
    "gen_ai.usage.input_tokens": 11,
    "gen_ai.usage.output_tokens": 7,
}
STREAMED = {**CHATTED, "gen_ai.request.stream": True}
SDKS = ("openai==3.57.0", "anthropic==2.14.0")


@pytest.fixture(scope="module")
def apis() -> Iterator[ModelApis]:
    with run_model_apis() as server:
        yield server


@pytest.fixture(scope="module")
def service(sink: Sink, folder: Path) -> Iterator[Service]:
    env = sink.environment(OTEL_SERVICE_NAME="asking", PYTHONPATH=str(folder_with(*SDKS)))
    with run_service(folder, "remote_models", env=env) as running:
        yield running


class Traced:
    """The response to one request, and its client spans in order of time."""

    def __init__(self, sink: Sink, service: Service, method: str, path: str, clients: int = 1, **kwargs: Any) -> None:
        self.trace_id, response = service.call(method, path, **kwargs)
        assert response.status_code == 200, service.log[-4000:]
        self.answer = response.json()
        spans = sink.wait_for(lambda all_: len(self._clients(all_)) >= clients)
        self.clients = sorted(self._clients(spans), key=lambda one: one.start)
        assert len(self.clients) == clients
        self.client = self.clients[-1]

    def _clients(self, spans: list[Received]) -> list[Received]:
        return [span for span in spans if span.trace_id == self.trace_id and span.kind == CLIENT]


def ask(sink: Sink, service: Service, apis: ModelApis, how: str, path: str, **body: Any) -> Traced:
    return Traced(sink, service, "POST", f"/ask/{how}", params={"url": apis.url + path}, json=body)


def gen_ai(span: Received) -> dict[str, Any]:
    """Return what the span has of the model, without the time to the first chunk."""
    return {
        name: value
        for name, value in span.attributes.items()
        if name.startswith("gen_ai.") and not name.endswith("time_to_first_chunk")
    }


def time_to_first_chunk(span: Received) -> float | None:
    return span.attributes.get("gen_ai.response.time_to_first_chunk")


MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.mark.smoke
@pytest.mark.parametrize("how", HOW)
def test_a_chat_is_read_by_every_client(how: str, service: Service, apis: ModelApis, sink: Sink) -> None:
    traced = ask(sink, service, apis, how, CHAT, messages=MESSAGES, model="asked-7b")
    assert json.loads(traced.answer) == WHOLE[CHAT]
    assert traced.client.name == "chat asked-7b"
    assert gen_ai(traced.client) == CHATTED
    assert time_to_first_chunk(traced.client) is None
    assert apis.headers[-1]["traceparent"] == f"00-{traced.trace_id}-{traced.client.span_id}-01"


@pytest.mark.parametrize("how", HOW)
def test_a_stream_is_read_by_every_client(how: str, service: Service, apis: ModelApis, sink: Sink) -> None:
    """The comment and the delta without content are not the first chunk."""
    traced = ask(sink, service, apis, how, CHAT, messages=MESSAGES, model="asked-7b", stream=True)
    assert traced.answer == text_of(STREAMS[CHAT])
    assert gen_ai(traced.client) == STREAMED
    if how == "urllib3":  # reads all before the response is passed on
        assert time_to_first_chunk(traced.client) is None
    else:
        seconds = time_to_first_chunk(traced.client)
        assert seconds is not None
        assert PAUSE_S * EARLY <= seconds <= (traced.client.end - traced.client.start) / 1e9


@pytest.mark.parametrize("how", ["httpx", "urllib3-parts", "aiohttp"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_times_that_an_engine_reports_are_read(
    how: str, stream: bool, service: Service, apis: ModelApis, sink: Sink
) -> None:
    """In the body, of a stream in its last event; the first token is counted from the arrival."""
    traced = ask(sink, service, apis, how, CHAT, messages=MESSAGES, model="timed", stream=stream)
    found = {name: value for name, value in traced.client.attributes.items() if name.startswith("stagetrace.callee.")}
    assert found == {
        "stagetrace.callee.source": "vllm",
        "stagetrace.callee.queue_ms": 0.0625,
        "stagetrace.callee.compute_ms": 0.375,
        "stagetrace.callee.first_token_ms": 0.1875,
    }


@pytest.mark.parametrize(
    ("how", "model"),
    [*((how, "gzip") for how in HOW), *((how, model) for how in DECODING for model in ("br", "split"))],
)
def test_encoded_and_divided_bodies_are_read(
    how: str, model: str, service: Service, apis: ModelApis, sink: Sink
) -> None:
    expected = {**STREAMED, "gen_ai.request.model": model}
    traced = ask(sink, service, apis, how, CHAT, messages=MESSAGES, model=model, stream=True)
    assert traced.answer == text_of(STREAMS[CHAT])
    assert gen_ai(traced.client) == expected
    del expected["gen_ai.request.stream"]
    traced = ask(sink, service, apis, how, CHAT, messages=MESSAGES, model=model)
    assert json.loads(traced.answer) == WHOLE[CHAT]
    assert gen_ai(traced.client) == expected


def test_a_transport_that_decodes_is_as_without_us(service: Service, apis: ModelApis, sink: Sink) -> None:
    traced = ask(sink, service, apis, "httpx-unzipping", CHAT, messages=MESSAGES, model="gzip")
    assert json.loads(traced.answer) == WHOLE[CHAT]


@pytest.mark.parametrize("how", PASSED_ON)
def test_no_chunk_is_held_back(how: str, service: Service, apis: ModelApis, sink: Sink) -> None:
    """The server sends the second content once the client has the first."""
    traced = ask(sink, service, apis, how, CHAT, messages=MESSAGES, model="paced", stream=True)
    assert traced.answer == text_of(STREAMS[CHAT])
    assert traced.client.attributes["gen_ai.usage.output_tokens"] == 7


REQUESTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "/v1/completions": ({"model": "asked-7b", "prompt": "a"}, "text_completion", "openai"),
    "/v1/responses": ({"model": "asked-7b", "input": "a"}, "chat", "openai"),
    "/v1/embeddings": ({"model": "asked-7b", "input": "a"}, "embeddings", "openai"),
    "/v1/messages": ({"model": "asked-7b", "messages": MESSAGES, "max_tokens": 9}, "chat", "anthropic"),
    "/v1beta/models/asked-7b:generateContent": ({"contents": []}, "generate_content", "gcp.gemini"),
    "/v1beta/models/asked-7b:streamGenerateContent": ({"contents": []}, "generate_content", "gcp.gemini"),
    "/api/chat": ({"model": "asked-7b", "messages": MESSAGES}, "chat", "ollama"),
    "/api/generate": ({"model": "asked-7b", "prompt": "a"}, "text_completion", "ollama"),
}


@pytest.mark.parametrize(
    ("path", "streams"),
    [(path, streams) for path in REQUESTS for streams in (False, True) if path in (STREAMS if streams else WHOLE)],
)
def test_each_api_is_read(path: str, streams: bool, service: Service, apis: ModelApis, sink: Sink) -> None:
    body, operation, provider = REQUESTS[path]
    asked = body if path.startswith("/v1beta") else {**body, "stream": streams}
    traced = ask(sink, service, apis, "httpx2", path, **asked)
    if not streams:
        assert json.loads(traced.answer) == WHOLE[path]
    expected = {**CHATTED, "gen_ai.operation.name": operation, "gen_ai.provider.name": provider}
    if operation == "embeddings":
        del expected["gen_ai.usage.output_tokens"]
    if streams:
        expected["gen_ai.request.stream"] = True
        assert traced.answer == text_of(STREAMS[path])
        assert (time_to_first_chunk(traced.client) or 0) >= PAUSE_S * EARLY
    assert gen_ai(traced.client) == expected
    assert traced.client.name == f"{operation} asked-7b"


@pytest.mark.parametrize("how", ["httpx2", "requests", "aiohttp"])
def test_a_body_too_large_is_not_read(how: str, service: Service, apis: ModelApis, sink: Sink) -> None:
    """Of a request as of a response: what is not known is absent."""
    traced = ask(sink, service, apis, how, CHAT, messages=MESSAGES, model="large")
    assert {name.rpartition(".")[2] for name in gen_ai(traced.client)} == {"name", "model"}
    assert "gen_ai.response.model" not in traced.client.attributes
    long = [{"role": "user", "content": "x" * 300_000}]
    traced = ask(sink, service, apis, how, CHAT, messages=long, model="asked-7b")
    if how != "aiohttp":  # which gets the body as it was before it was encoded
        expected = {name: value for name, value in CHATTED.items() if name != "gen_ai.request.model"}
        assert (gen_ai(traced.client), traced.client.name) == (expected, "chat")


@pytest.mark.parametrize("body", [{"model": "asked-7b"}, {"messages": MESSAGES}, ["model"]])
def test_other_requests_to_such_a_path_are_ordinary(body: Any, service: Service, apis: ModelApis, sink: Sink) -> None:
    traced = Traced(sink, service, "POST", "/ask/httpx2", params={"url": f"{apis.url}/v1/messages"}, json=body)
    assert traced.client.name == "POST"
    assert gen_ai(traced.client) == {}


@pytest.mark.parametrize(
    ("path", "answer", "expected"),
    [
        ("/openai/chat", TEXT, CHATTED),
        ("/openai/raw", TEXT, CHATTED),
        ("/openai/stream", f"Helusage{TEXT}", STREAMED),
        ("/openai/responses", 18, CHATTED),
        ("/openai-async/chat", TEXT, CHATTED),
        ("/openai-async/stream", f"Helusage{TEXT}", STREAMED),
        ("/anthropic/chat", TEXT, {**CHATTED, "gen_ai.provider.name": "anthropic"}),
        ("/anthropic/stream", TEXT, {**STREAMED, "gen_ai.provider.name": "anthropic"}),
    ],
)
def test_sdks_are_read(
    path: str, answer: Any, expected: dict[str, Any], service: Service, apis: ModelApis, sink: Sink
) -> None:
    traced = Traced(sink, service, "GET", path, params={"url": apis.url, "model": "asked-7b"})
    assert traced.answer == answer
    assert gen_ai(traced.client) == expected
    assert (time_to_first_chunk(traced.client) is not None) is path.endswith("stream")


def test_an_sdk_that_makes_a_span_itself_keeps_it(service: Service, apis: ModelApis, sink: Sink) -> None:
    """Anthropic's from version 2 on: it sends the context of its span, so ours would be a second one."""
    traced = Traced(sink, service, "GET", "/anthropic/own", params={"url": apis.url, "model": "asked-7b"})
    assert traced.answer == TEXT
    assert traced.client.scope == "com.anthropic.sdk.python"


@pytest.mark.parametrize("path", ["/openai/chat", "/openai-async/chat", "/anthropic/chat"])
def test_each_retry_is_a_call_of_its_own(path: str, service: Service, apis: ModelApis, sink: Sink) -> None:
    traced = Traced(sink, service, "GET", path, clients=2, params={"url": apis.url, "model": "busy"})
    first, second = traced.clients
    assert traced.answer == TEXT
    assert first.attributes["error.type"] == "429"
    assert "gen_ai.usage.input_tokens" not in first.attributes
    assert second.attributes["gen_ai.usage.input_tokens"] == 11
    assert first.name == second.name == "chat busy"


def test_a_stream_that_is_abandoned_has_what_came(service: Service, apis: ModelApis, sink: Sink) -> None:
    traced = Traced(sink, service, "GET", "/openai/abandoned", params={"url": apis.url, "model": "asked-7b"})
    assert traced.answer == "assistant"
    assert gen_ai(traced.client) == {name: value for name, value in STREAMED.items() if "usage" not in name}
    assert time_to_first_chunk(traced.client) is None


def test_no_text_is_recorded(service: Service, apis: ModelApis, sink: Sink) -> None:
    ask(sink, service, apis, "httpx", CHAT, messages=[{"role": "user", "content": "a secret"}], model="asked-7b")
    with sink.lock:
        assert not [one for one in sink.spans if "a secret" in str(one) or "of words" in str(one)]


READ = parts("""
    instrumentation.clients.base: _asked_of_model _read Call.reader
    instrumentation.clients.gen_ai_apis: asked_of parsed _asked
    instrumentation.clients.gen_ai_response: reader_of LinesReader.take LinesReader.conclude BodyReader.note
    patches.httpx: _read_body
    patches.aiohttp: _reading
    patches.urllib3: _read_body
""")


@pytest.mark.parametrize("part", READ)
def test_an_injected_fault_changes_no_body_and_is_logged(part: str, service: Service, apis: ModelApis) -> None:
    before = len(service.log)
    assert service.client.get(f"/break/{part}").status_code == 200
    try:
        for how in ("httpx2", "httpx-async", "requests", "urllib3-parts", "aiohttp"):
            body = {"messages": MESSAGES, "model": "asked-7b", "stream": True}
            answer = service.client.post(f"/ask/{how}", params={"url": apis.url + CHAT}, json=body)
            assert (answer.status_code, answer.json()) == (200, text_of(STREAMS[CHAT]))
    finally:
        assert service.client.get("/mend").status_code == 200
    said = [line for line in service.log[before:].splitlines() if "injected fault" in line]
    assert said
    assert all(line.startswith("stagetrace:") for line in said), said
    assert len(said) == len(set(said))
