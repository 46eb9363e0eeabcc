"""What the response of a language model says of model, tokens and time, read as its body passes to the application."""

from __future__ import annotations

import re
from collections.abc import Mapping
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from stagetrace import semconv
from stagetrace.guard import guarded
from stagetrace.instrumentation.clients.callee import Times
from stagetrace.instrumentation.clients.gen_ai_apis import MAX_MODEL, parsed

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.instrumentation.clients.gen_ai_apis import Api


MAX_BODY: Final = 256 * 1024  # bytes of a body, or of an event, that is kept
MAX_EVENTS: Final = 256  # that are parsed until there is content
MAX_END: Final = 1024  # bytes of both ends of a response with embeddings that are kept
OK: Final = 200
_DATA: Final = b"data:"
_OBJECT: Final = b"{"
_EVENTS: Final = "text/event-stream"
_LINES: Final = ("application/x-ndjson", "application/jsonl", "application/json-lines")
_INPUT: Final = ("prompt_tokens", "input_tokens", "promptTokenCount", "prompt_eval_count")
_OUTPUT: Final = ("completion_tokens", "output_tokens", "candidatesTokenCount", "eval_count")
_CACHED: Final = (
    "cache_read_input_tokens",
    "cache_creation_input_tokens",
)  # for Anthropic no part of the input
_THOUGHT: Final = "thoughtsTokenCount"  # Gemini does not count them among the candidates'
_COLON: Final = re.compile(rb"\s*:\s*[{\d]")
_MODEL: Final = re.compile(rb'"model"\s*:\s*"([^"\\]{1,%d})"' % MAX_MODEL)
_PROMPT_TOKENS: Final = re.compile(rb'"(?:prompt_tokens|prompt_eval_count)"\s*:\s*(\d+)')


class BodyReader:
    """Takes the parts of a response's body, decoded, as they pass; what is not known for sure is left out."""

    def __init__(self, api: Api, started: int) -> None:
        self._api = api
        self._started = started
        self._model: str | None = None
        self._usage: dict[str, int] = {}
        self._counts_all = False  # output tokens
        self._is_timed = True
        self.times: Times | None = None  # what the engine reports of its own

    @guarded
    def feed(self, data: bytes) -> None:
        """Take a part of the body."""
        self.take(data)

    @guarded
    def feed_whole(self, body: bytes) -> None:
        """Take a whole body, of whose parts nobody knows when they came."""
        self._is_timed = False
        self.take(body)

    def take(self, data: bytes) -> None:
        """Take a part of the body."""
        raise NotImplementedError

    def conclude(self) -> None:
        """Read what was kept."""

    def attributes(self) -> Mapping[str, Any]:
        """Return what is known of the response now."""
        self.conclude()
        attributes: dict[str, Any] = {}
        if self._model:
            attributes[semconv.RESPONSE_MODEL] = self._model
        read, written = _first(self._usage, _INPUT), _first(self._usage, _OUTPUT)
        if read is not None:
            cached = sum(self._usage.get(name, 0) for name in _CACHED) if self._api.provider == "anthropic" else 0
            attributes[semconv.INPUT_TOKENS] = read + cached
        if written is not None and self._counts_all:
            attributes[semconv.OUTPUT_TOKENS] = written + self._usage.get(_THOUGHT, 0)
        return attributes

    def note(self, document: Any) -> None:
        """Note model, usage and the engine's times of a document; in some events they are within a member."""
        self.times = times_in_body(document) or self.times
        for holder in (document, document.get("response"), document.get("message")):
            if isinstance(holder, Mapping):
                model = holder.get("model") or holder.get("modelVersion")
                if isinstance(model, str) and len(model) <= MAX_MODEL:
                    self._model = model
                for usage in (holder.get("usage"), holder.get("usageMetadata"), holder):
                    if isinstance(usage, Mapping):
                        counts = ((name, usage.get(name)) for name in (*_INPUT, *_OUTPUT, *_CACHED, _THOUGHT))
                        self._usage.update((name, count) for name, count in counts if type(count) is int)


class WholeReader(BodyReader):
    """Keeps a body of JSON, and reads it when the call ends."""

    def __init__(self, api: Api, started: int) -> None:
        super().__init__(api, started)
        self._body: bytearray | None = bytearray()  # None: too large

    def take(self, data: bytes) -> None:
        """Keep it."""
        if self._body is None or len(self._body) + len(data) > MAX_BODY:
            self._body = None
        else:
            self._body += data

    def conclude(self) -> None:
        """Read the whole body; a part of one is no JSON."""
        document = parsed(self._body) if self._body else None
        for one in document if isinstance(document, list) else [document]:  # Gemini's stream without `alt=sse`
            if isinstance(one, Mapping):
                self.note(one)
                self._counts_all = True


class EmbeddingsReader(BodyReader):
    """Keeps both ends of a response with embeddings: between them are numbers alone, which are slow to parse."""

    def __init__(self, api: Api, started: int) -> None:
        super().__init__(api, started)
        self._begin = self._end = b""

    def take(self, data: bytes) -> None:
        """Keep what belongs to an end."""
        if len(self._begin) < MAX_END:
            self._begin += data[:MAX_END]
        self._end = (self._end + data[-MAX_END:])[-MAX_END:]

    def conclude(self) -> None:
        """Search both ends."""
        for end in (self._begin, self._end):
            model, tokens = _MODEL.search(end), _PROMPT_TOKENS.search(end)
            if model is not None:
                self._model = model[1].decode(errors="replace")
            if tokens is not None:
                self._usage["prompt_tokens"] = int(tokens[1])


class LinesReader(BodyReader):
    """Reads a stream of events, of SSE or a line each: all until there is content, then those that count tokens."""

    def __init__(self, api: Api, started: int, prefix: bytes) -> None:
        super().__init__(api, started)
        self._prefix = prefix  # of the lines that are events
        self._skipped = 0 if prefix == _OBJECT else len(prefix)
        self._rest = bytearray()  # of a line that has not ended
        self._is_too_long = False  # this line
        self._has_gap = False  # a line was too long
        self._events = 0  # that were parsed
        self._content_at: int | None = None
        self._last = b""  # the last event that counts tokens

    def take(self, data: bytes) -> None:
        """Read the lines that end in it."""
        *lines, rest = data.split(b"\n")
        if lines:
            self._take_line(bytes(self._rest) + lines[0] if self._rest else lines[0])
            for line in lines[1:]:
                self._take_line(line)
            self._rest.clear()
        if self._is_too_long or len(self._rest) + len(rest) > MAX_BODY:
            self._rest.clear()
            self._is_too_long = self._has_gap = True
        else:
            self._rest += rest

    def _take_line(self, line: bytes) -> None:
        if self._is_too_long or len(line) > MAX_BODY:
            self._is_too_long, self._has_gap = False, True
        elif line.startswith(self._prefix):
            if self._content_at is None and self._events < MAX_EVENTS:
                self._seek_content(line)
            elif self._counts(line):
                self._last = line

    def _seek_content(self, line: bytes) -> None:
        self._events += 1
        event = parsed(line[self._skipped :])
        if not isinstance(event, Mapping):
            return
        self.note(event)
        self._counts_all = self._api.is_last(event)
        if self._api.has_content(event):
            self._content_at = time_ns()

    def _counts(self, line: bytes) -> bool:
        at = line.find(self._api.usage)
        return at >= 0 and _COLON.match(line, at + len(self._api.usage)) is not None

    def conclude(self) -> None:
        """Read a last line that nothing ends, if it is whole, and the last event that counts tokens."""
        if self._rest and parsed(self._rest[self._skipped :]) is not None:
            self._is_timed &= self._content_at is not None  # when it came is not known
            self._take_line(bytes(self._rest))
        event = parsed(self._last[self._skipped :]) if self._last else None
        if isinstance(event, Mapping):
            self.note(event)
            self._counts_all = self._api.is_last(event)
        if self._has_gap:  # where the last counts may have been
            self._usage.clear()

    def attributes(self) -> Mapping[str, Any]:
        """Return what is known of the response now, and when its first content came."""
        attributes = super().attributes()
        if self._content_at is None or not self._is_timed:
            return attributes
        return {**attributes, semconv.TIME_TO_FIRST_CHUNK: max(self._content_at - self._started, 0) / 1e9}


def reader_of(api: Api, status: int, content_type: str, started: int) -> BodyReader | None:
    """Return what reads the body of a response to a call that began then, in ns; None if that is no use."""
    kind = content_type.partition(";")[0].strip().lower()
    if status != OK:
        return None
    if kind == _EVENTS:
        return LinesReader(api, started, _DATA)
    if kind in _LINES:
        return LinesReader(api, started, _OBJECT)
    if kind != "application/json":
        return None
    return EmbeddingsReader(api, started) if api.operation == semconv.EMBEDDINGS else WholeReader(api, started)


def _first(usage: Mapping[str, int], names: tuple[str, ...]) -> int | None:
    return next((usage[name] for name in names if name in usage), None)


# --- times of the engine, in its own words and units: vLLM (`--enable-per-request-metrics`, and `include_metrics` in
# the request), SGLang, NVIDIA Dynamo and NIM (`nvext.timing`), llama.cpp, Ollama and Groq. Triton reports no times of
# a request (server#6692 of its repository).


S, MS, NS = 1e3, 1.0, 1e-6  # ms in a unit
MOST_MS: Final = 1e9
NOTHING: Final[dict[str, Any]] = {}


def times_in_body(body: Mapping[str, Any]) -> Times | None:
    """Return what a response's JSON, or the last event of a stream, tells of the engine's time; None if nothing."""
    for read in _READERS:
        times = read(body)
        if times is not None:
            return times
    return None


def _vllm(body: Mapping[str, Any]) -> Times | None:
    """Read `metrics`, in ms: its time to the first token begins when the request is scheduled, ours as it arrives."""
    part = _part(body, "metrics")
    names = ("queue_time_ms", "time_to_first_token_ms", "generation_time_ms")
    queue, first, rest = (_ms(part, name, MS) for name in names)
    if queue is None and first is None:
        return None
    return Times("vllm", queue, _sum(first, rest), first_token_ms=_sum(queue, first), is_whole=True)


def _sglang(body: Mapping[str, Any]) -> Times | None:
    part = _part(body, "meta_info")
    queue, total = _ms(part, "queue_time", S), _ms(part, "e2e_latency", S)
    return None if queue is None and total is None else Times("sglang", queue, None, total, is_whole=True)


def _dynamo(body: Mapping[str, Any]) -> Times | None:
    """Read `nvext.timing`, in ms, all of it since the request was received."""
    part = _part(_part(body, "nvext"), "timing")
    queue, total, first = (_ms(part, name, MS) for name in ("prefill_wait_time_ms", "total_time_ms", "ttft_ms"))
    if queue is None and total is None:
        return None
    return Times("dynamo", queue, None, total, first_token_ms=first, is_whole=True)


def _llama_cpp(body: Mapping[str, Any]) -> Times | None:
    part = _part(body, "timings")
    compute = _sum(_ms(part, "prompt_ms", MS), _ms(part, "predicted_ms", MS))
    return None if compute is None else Times("llama.cpp", None, compute, is_whole=True)


def _ollama(body: Mapping[str, Any]) -> Times | None:
    total = _ms(body, "total_duration", NS)
    compute = _sum(_ms(body, "prompt_eval_duration", NS), _ms(body, "eval_duration", NS))
    return None if total is None else Times("ollama", None, compute, total, is_whole=True)


def _groq(body: Mapping[str, Any]) -> Times | None:
    """Read `usage`, in seconds: its `total_time` is without the queue."""
    part = _part(body, "usage") or _part(_part(body, "x_groq"), "usage")
    queue, compute = _ms(part, "queue_time", S), _ms(part, "total_time", S)
    return None if queue is None or compute is None else Times("groq", queue, compute, is_whole=True)


_READERS: Final[tuple[Callable[[Mapping[str, Any]], Times | None], ...]] = (
    *(_vllm, _sglang, _dynamo),
    *(_llama_cpp, _ollama, _groq),
)


def _part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = body.get(name)
    return part if isinstance(part, dict) else NOTHING


def _ms(part: Mapping[str, Any], name: str, unit: float) -> float | None:
    value = part.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return value * unit if 0 <= value <= MOST_MS / unit else None


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other
