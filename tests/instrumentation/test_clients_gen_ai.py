"""What is recognised of requests to language models, and read of their responses; pure functions."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from model_apis import PAUSE, STREAMS, TEXT, WHOLE, text_of
from stagetrace.instrumentation.clients.gen_ai_apis import MAX_REQUEST, asked_of
from stagetrace.instrumentation.clients.gen_ai_response import MAX_BODY, BodyReader, reader_of

EVENTS = "text/event-stream"
MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "a"},
    "/v1/responses": {"input": "a"},
    "/v1/embeddings": {"input": "a"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1beta/models/asked-7b:generateContent": {"contents": []},
    "/v1beta/models/asked-7b:streamGenerateContent": {"contents": []},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "a"},
}


def reader(path: str, content_type: str, started: int = 0) -> BodyReader:
    asked = asked_of("h", path, {"model": "asked-7b", **BODIES[path]})
    assert asked is not None
    found = reader_of(asked.api, 200, content_type, started)
    assert found is not None
    return found


def read(path: str, content_type: str, *chunks: bytes) -> dict[str, Any]:
    """Return the attributes without `gen_ai.`, and without the time to the first chunk, but whether there is one."""
    one = reader(path, content_type, time.time_ns())
    for chunk in chunks:
        one.feed(chunk)
    found = {name.removeprefix("gen_ai."): value for name, value in one.attributes().items()}
    timed = found.pop("response.time_to_first_chunk", None)
    return {**found, "timed": timed is not None}


def events(*given: dict[str, Any]) -> bytes:
    return "".join(f"data: {json.dumps(one)}\n\n" for one in given).encode()


ALL = {"response.model": "served-7b", "usage.input_tokens": 11, "usage.output_tokens": 7}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 4096])
@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_is_read_alike_wherever_it_is_divided(path: str, size: int, ends: str) -> None:
    content_type = "application/x-ndjson" if path.startswith("/api") else EVENTS
    body = text_of(STREAMS[path]).replace("\n", ends).encode()
    assert read(path, content_type, *(body[at : at + size] for at in range(0, len(body), size))) == {
        **ALL,
        "timed": True,
    }


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_that_ends_early_counts_no_output(path: str) -> None:
    """Counts so far are not those of the response, however the API reports them."""
    content_type = "application/x-ndjson" if path.startswith("/api") else EVENTS
    chunks = [chunk.encode() for chunk in STREAMS[path] if chunk != PAUSE]
    for ends in range(len(chunks) + 1):
        found = read(path, content_type, *chunks[:ends])
        assert found.get("usage.output_tokens", 7) == 7
        assert found.get("usage.input_tokens", 11) == 11
    assert "usage.output_tokens" not in read(path, content_type, *chunks[:1])


def test_a_last_line_that_nothing_ends_is_read_if_it_is_whole() -> None:
    chunks = [chunk.encode() for chunk in STREAMS["/api/chat"] if chunk != PAUSE]
    body = b"".join(chunks).rstrip()
    assert read("/api/chat", "application/x-ndjson", body) == {**ALL, "timed": True}
    assert "usage.output_tokens" not in read("/api/chat", "application/x-ndjson", body[:-1])
    assert read("/api/chat", "application/x-ndjson", chunks[1].rstrip()) == {
        "response.model": "served-7b",
        "timed": False,
    }


def test_counts_in_each_chunk_count_once_it_is_the_last() -> None:
    """VLLM's `continuous_usage_stats`."""
    chunks = [
        events(
            {
                "model": "m",
                "choices": [{"delta": {"content": "a"}, "finish_reason": reason}],
                "usage": {"prompt_tokens": 3, "completion_tokens": count},
            }
        )
        for count, reason in ((1, None), (2, None), (3, "stop"))
    ]
    path = "/v1/chat/completions"
    assert read(path, EVENTS, *chunks[:2]) == {"response.model": "m", "usage.input_tokens": 3, "timed": True}
    assert read(path, EVENTS, *chunks)["usage.output_tokens"] == 3


@pytest.mark.parametrize("path", WHOLE)
def test_a_whole_body_is_read_once_it_is_complete(path: str) -> None:
    body = json.dumps(WHOLE[path], indent=1).encode()
    expected = {name: value for name, value in ALL.items() if "output" not in name or "embeddings" not in path}
    assert read(path, "application/json; charset=utf-8", body[:9], body[9:]) == {**expected, "timed": False}
    if "embeddings" not in path:
        assert read(path, "application/json", body[:-1]) == {"timed": False}


def test_tokens_of_a_cache_are_added_where_the_api_does_not() -> None:
    """LiteLLM's proxy has Anthropic's counts beside OpenAI's, which contain them."""
    usage = {"prompt_tokens": 10, "completion_tokens": 1, "cache_read_input_tokens": 8}
    found = read("/v1/chat/completions", "application/json", json.dumps({"usage": usage}).encode())
    assert found["usage.input_tokens"] == 10
    usage = {"input_tokens": 2, "output_tokens": 1, "cache_read_input_tokens": 8}
    found = read("/v1/messages", "application/json", json.dumps({"usage": usage}).encode())
    assert found["usage.input_tokens"] == 10


def test_geminis_array_is_read_when_it_has_ended() -> None:
    path = "/v1beta/models/asked-7b:streamGenerateContent"
    texts = [chunk[len("data: ") :] for chunk in STREAMS[path] if chunk != PAUSE]
    assert read(path, "application/json", f"[{','.join(texts)}]".encode()) == {**ALL, "timed": False}


def _delta(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"delta": delta}]}


@pytest.mark.parametrize(
    ("path", "event", "is_content"),
    [
        ("/v1/chat/completions", _delta(role="assistant", content=""), False),
        ("/v1/chat/completions", _delta(role="assistant", content=None, tool_calls=[]), False),
        ("/v1/chat/completions", {"choices": []}, False),
        ("/v1/chat/completions", {"choices": [None], "usage": 3}, False),
        ("/v1/chat/completions", _delta(content=" "), True),
        ("/v1/chat/completions", _delta(reasoning_content="hm"), True),
        ("/v1/chat/completions", _delta(tool_calls=[{"index": 0, "function": {"name": "f"}}]), True),
        ("/v1/responses", {"type": "response.reasoning_summary_text.delta", "delta": "hm"}, True),
        ("/v1/responses", {"type": "response.output_text.delta", "delta": ""}, False),
        ("/v1/responses", {"type": "response.output_text.done", "text": "a"}, False),
        ("/v1/messages", {"type": "ping"}, False),
        ("/v1/messages", {"type": "content_block_start", "content_block": {"type": "thinking", "thinking": ""}}, False),
        ("/v1/messages", {"type": "content_block_start", "content_block": {"type": "tool_use", "name": "f"}}, True),
        ("/v1/messages", {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}, True),
        (
            "/v1beta/models/asked-7b:streamGenerateContent",
            {"candidates": [{"content": {"parts": [{"text": ""}]}}]},
            False,
        ),
        (
            "/v1beta/models/asked-7b:streamGenerateContent",
            {"candidates": [{"content": {"parts": [{"functionCall": {}}]}}]},
            True,
        ),
    ],
)
def test_the_first_chunk_is_the_first_with_content(path: str, event: dict[str, Any], is_content: bool) -> None:
    assert read(path, EVENTS, events(event))["timed"] is is_content


def test_an_event_too_long_leaves_the_counts_unknown() -> None:
    """It may have been the one that counts."""
    path = "/v1/chat/completions"
    counted = {"model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    long = {**counted, **_delta(content="x" * MAX_BODY)}
    for size in (1000, MAX_BODY * 2):
        body = events(_delta(content="a"), counted, long, _delta(content="b"))
        found = read(path, EVENTS, *(body[at : at + size] for at in range(0, len(body), size)))
        assert found == {"response.model": "m", "timed": True}


def test_what_is_kept_is_bounded() -> None:
    for content_type in (EVENTS, "application/json"):
        one = reader("/v1/chat/completions", content_type)
        for _ in range(100):
            one.feed(b"x" * 65536)
        kept = sum(len(value) for value in vars(one).values() if isinstance(value, (bytes, bytearray)))
        assert kept <= MAX_BODY
        assert one.attributes() == {}


@pytest.mark.parametrize("usage", [{"prompt_tokens": True}, {"prompt_tokens": "3"}, [3], "3", {"prompt_tokens": None}])
def test_what_is_no_count_is_left_out(usage: Any) -> None:
    body = json.dumps({"model": ["m"], "usage": usage}).encode()
    assert read("/v1/chat/completions", "application/json", body) == {"timed": False}


@pytest.mark.parametrize("body", [b"\xff\xfe", b"[" * 100_000, b"{", b"null", b"", b"data: \n\ndata: x\n\n"])
def test_what_is_no_json_is_left_out(body: bytes) -> None:
    for content_type in (EVENTS, "application/json"):
        assert read("/v1/chat/completions", content_type, body) == {"timed": False}
    assert asked_of("h", "/v1/chat/completions", body) is None


@pytest.mark.parametrize("status", [201, 429, 500])
def test_other_responses_are_not_read(status: int) -> None:
    asked = asked_of("h", "/v1/chat/completions", {"model": "m", "messages": []})
    assert asked is not None
    assert reader_of(asked.api, status, EVENTS, 0) is None
    assert reader_of(asked.api, 200, "text/html", 0) is None


@pytest.mark.parametrize(
    ("host", "path", "provider"),
    [
        ("api.openai.com", "/v1/chat/completions", "openai"),
        ("vllm.internal", "/v1/chat/completions", "openai"),
        ("mine.openai.azure.com", "/openai/deployments/d/chat/completions", "azure.ai.openai"),
        ("api.groq.com", "/openai/v1/chat/completions", "groq"),
        ("api.mistral.ai", "/v1/chat/completions", "mistral_ai"),
    ],
)
def test_the_provider_is_that_of_the_server_or_of_the_api(host: str, path: str, provider: str) -> None:
    asked = asked_of(host, path, json.dumps({"model": "m", "messages": MESSAGES}))
    assert asked is not None
    assert asked.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": "m",
    }


@pytest.mark.parametrize("path", ["/", "/v1/chat", "/predict", "/v1/models/m:predict", "/v1/messages/count_tokens", ""])
def test_other_paths_are_no_models(path: str) -> None:
    assert asked_of("h", path, {"model": "m", "messages": MESSAGES, "max_tokens": 1, "prompt": "", "input": ""}) is None


def test_a_body_that_is_too_large_is_told_by_paths_that_are_certain() -> None:
    large = json.dumps({"model": "m", "messages": [{"content": TEXT * MAX_REQUEST}], "prompt": "", "max_tokens": 1})
    for path, name in (("/v1/chat/completions", "chat"), ("/v1/completions", None), ("/v1/messages", "chat")):
        asked = asked_of("h", path, large)
        assert (asked and asked.name) == name
        assert asked is None or "gen_ai.request.model" not in asked.attributes


def test_a_name_too_long_is_no_model() -> None:
    asked = asked_of("h", "/v1/chat/completions", {"model": "m" * 1000, "messages": MESSAGES})
    assert asked is not None
    assert asked.name == "chat"
