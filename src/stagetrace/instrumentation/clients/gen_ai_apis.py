"""The HTTP APIs of language models: which of them a request calls, and what it asks for.

All SDKs send one of a few formats through HTTP clients that are patched anyway, so no SDK is patched. A request is
recognised by path and body, as `/messages` alone may be anything. Texts of prompts and completions are never kept.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from stagetrace import semconv

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_REQUEST: Final = 256 * 1024  # bytes of a body that is parsed, which takes up to 2 ms
MAX_MODEL: Final = 256  # characters of a model's name
GENERATED: Final = ("content", "reasoning_content", "reasoning", "refusal", "tool_calls", "function_call", "audio")


class Api(NamedTuple):
    """One API: how its requests are recognised, and how its responses are read."""

    operation: str
    provider: str  # whose format it has
    needs: str  # a member of each request
    has_content: Callable[[Mapping[str, Any]], bool]  # whether an event of a stream holds generated content
    is_last: Callable[[Mapping[str, Any]], bool] = bool  # whether an event of a stream counts all output tokens
    usage: bytes = b'"usage"'  # the key of the counts of tokens, in a stream
    streams: bool = False  # where the request does not say
    is_certain: bool = False  # the path alone tells it: for bodies that are not parsed


class Asked(NamedTuple):
    """What a request asks for."""

    api: Api
    name: str  # of the span
    attributes: Mapping[str, Any]


def _members(value: Any, name: str) -> list[Mapping[str, Any]]:
    """Return the objects in a list that is a member of an object."""
    found = value.get(name)
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else []


def _object(value: Any, name: str) -> Mapping[str, Any]:
    found = value.get(name)
    return found if isinstance(found, Mapping) else {}


def _in_delta(event: Mapping[str, Any]) -> bool:
    deltas = [_object(choice, "delta") for choice in _members(event, "choices")]
    return any(delta.get(name) for delta in deltas for name in GENERATED)


def _in_text(event: Mapping[str, Any]) -> bool:
    return any(choice.get("text") for choice in _members(event, "choices"))


def _in_response_event(event: Mapping[str, Any]) -> bool:
    return str(event.get("type", "")).endswith(".delta") and bool(event.get("delta"))


def _in_block(event: Mapping[str, Any]) -> bool:
    if event.get("type") == "content_block_start":
        return bool(_object(event, "content_block").get("name"))  # of a tool, which the model has chosen
    delta = _object(event, "delta")
    return event.get("type") == "content_block_delta" and any(
        delta.get(name) for name in ("text", "thinking", "partial_json")
    )


def _in_parts(event: Mapping[str, Any]) -> bool:
    contents = [_object(candidate, "content") for candidate in _members(event, "candidates")]
    parts = [part for content in contents for part in _members(content, "parts")]
    return any(part.get("text") or part.keys() - {"text", "thought", "thoughtSignature"} for part in parts)


def _in_line(event: Mapping[str, Any]) -> bool:
    message = _object(event, "message") or event
    return any(message.get(name) for name in ("content", "response", "thinking", "tool_calls"))


def _nothing(_event: Mapping[str, Any]) -> bool:
    return False


def _is_last_choice(event: Mapping[str, Any]) -> bool:
    choices = _members(event, "choices")
    return not choices or any(choice.get("finish_reason") for choice in choices)


def _is_last_candidate(event: Mapping[str, Any]) -> bool:
    return any(candidate.get("finishReason") for candidate in _members(event, "candidates"))


def _is_last_delta(event: Mapping[str, Any]) -> bool:
    return event.get("type") == "message_delta"


_GEMINI: Final = Api(
    semconv.GENERATE_CONTENT,
    "gcp.gemini",
    "contents",
    _in_parts,
    _is_last_candidate,
    b'"usageMetadata"',
    is_certain=True,
)
# The end of an URL's path -> the API. OpenAI's are those of vLLM, SGLang, NIM, llama.cpp, Ollama and many others, too.
_PATHS: Final[Mapping[str, Api]] = {
    "/chat/completions": Api(semconv.CHAT, "openai", "messages", _in_delta, _is_last_choice, is_certain=True),
    "/completions": Api(semconv.TEXT_COMPLETION, "openai", "prompt", _in_text, _is_last_choice),
    "/responses": Api(semconv.CHAT, "openai", "input", _in_response_event),
    "/embeddings": Api(semconv.EMBEDDINGS, "openai", "input", _nothing),
    "/v1/messages": Api(semconv.CHAT, "anthropic", "max_tokens", _in_block, _is_last_delta, is_certain=True),
    "/api/chat": Api(semconv.CHAT, "ollama", "messages", _in_line, usage=b'"eval_count"', streams=True),
    "/api/generate": Api(semconv.TEXT_COMPLETION, "ollama", "prompt", _in_line, usage=b'"eval_count"', streams=True),
    "/api/embed": Api(semconv.EMBEDDINGS, "ollama", "input", _nothing),
}
_ENDS: Final = (*_PATHS, ":generateContent", ":streamGenerateContent")
_GEMINI_PATH: Final = re.compile("/models/([^/:]+):(stream)?[gG]enerateContent$")
# The end of a server's name -> the provider, as the conventions name it.
_PROVIDERS: Final[Mapping[str, str]] = {
    ".openai.azure.com": "azure.ai.openai",
    ".services.ai.azure.com": "azure.ai.inference",
    "aiplatform.googleapis.com": "gcp.vertex_ai",
    "api.cohere.ai": "cohere",
    "api.cohere.com": "cohere",
    "api.deepseek.com": "deepseek",
    "api.groq.com": "groq",
    "api.mistral.ai": "mistral_ai",
    "api.perplexity.ai": "perplexity",
    "api.x.ai": "x_ai",
}


def asked_of(host: str, path: str, body: Any) -> Asked | None:
    """Return what a POST request asks of a language model, None if it calls no API of one.

    `body` is bytes or a text of JSON, or what it is made of.
    """
    if not path.endswith(_ENDS):
        return None
    gemini = _GEMINI_PATH.search(path)
    api = _GEMINI if gemini else next((api for end, api in _PATHS.items() if path.endswith(end)), None)
    if api is None:
        return None
    members = _parsed(body)
    if members is None:
        if not (api.is_certain and _is_large(body)):
            return None
        members = {}
    elif api.needs not in members or not (gemini or isinstance(members.get("model"), str)):
        return None
    model = gemini[1] if gemini else members.get("model")
    streams = bool(gemini[2]) if gemini else members.get("stream", api.streams) is True
    return _asked(api, host, model if model and len(model) <= MAX_MODEL else "", streams=streams)


@functools.lru_cache(maxsize=256)
def _asked(api: Api, host: str, model: str, *, streams: bool) -> Asked:
    attributes: dict[str, Any] = {
        semconv.OPERATION_NAME: api.operation,
        semconv.PROVIDER_NAME: next((name for end, name in _PROVIDERS.items() if host.endswith(end)), api.provider),
    }
    if model:
        attributes[semconv.REQUEST_MODEL] = model
    if streams:
        attributes[semconv.REQUEST_STREAM] = True
    return Asked(api, f"{api.operation} {model}".rstrip(), attributes)


def _is_large(body: Any) -> bool:
    return isinstance(body, (bytes, bytearray, str)) and len(body) > MAX_REQUEST


def _parsed(body: Any) -> Mapping[str, Any] | None:
    """Return a request's body as an object; None if it is none, or too large to parse."""
    if isinstance(body, (bytes, bytearray, str)) and len(body) <= MAX_REQUEST:
        body = parsed(body)
    return body if isinstance(body, Mapping) else None


def parsed(text: bytes | bytearray | str) -> Any:
    """Return what a text of JSON holds; None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
