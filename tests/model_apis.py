"""A small server with the HTTP APIs of language models and of KServe v2: canned responses, paced streams."""

from __future__ import annotations

import gzip
import json
import threading
import time
import zlib
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import brotli

if TYPE_CHECKING:
    from collections.abc import Iterator

PAUSE_S = 0.04  # before the first content of a stream
PAUSE = "pause"
LARGE = 300 * 1024
TEXT = 'a "usage": {"prompt_tokens": 1} of words'  # no count of tokens, but a text about one


def sse(*events: Any) -> list[Any]:
    """Return the chunks of a stream of server-sent events; a text stands for itself."""
    return [event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n" for event in events]


def named(*events: dict[str, Any]) -> list[Any]:
    """Return the same, with the names of events."""
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" if event else PAUSE for event in events]


def _choice(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "served-7b",
        "choices": choices,
        "usage": None,
    }


_COUNTS = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
_RESPONSE: dict[str, Any] = {
    "id": "r1",
    "object": "response",
    "created_at": 1,
    "model": "served-7b",
    "status": "in_progress",
    "output": [],
    "parallel_tool_calls": False,
    "tool_choice": "auto",
    "tools": [],
    "usage": None,
}
_RESPONDED = {
    **_RESPONSE,
    "status": "completed",
    "usage": {
        "input_tokens": 11,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 18,
    },
}
_MESSAGE: dict[str, Any] = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "served-7b",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {
        "input_tokens": 8,
        "cache_read_input_tokens": 2,
        "cache_creation_input_tokens": 1,
        "output_tokens": 1,
    },
}


def _candidate(text: str, reason: str | None, written: int) -> dict[str, Any]:
    return {
        "candidates": [
            {
                "content": {"parts": [{"text": text}], "role": "model"},
                "index": 0,
                **({"finishReason": reason} if reason else {}),
            }
        ],
        "modelVersion": "served-7b",
        "usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": written, "thoughtsTokenCount": 3},
    }


def _line(message: dict[str, Any], *, done: bool) -> dict[str, Any]:
    counts = {"prompt_eval_count": 11, "eval_count": 7} if done else {}
    return {"model": "served-7b", "created_at": "2026-11-28T00:00:00Z", **message, "done": done, **counts}


# As vLLM reports them: the time to the first token since the request was scheduled.
TIMES = {"queue_time_ms": 0.0625, "time_to_first_token_ms": 0.125, "generation_time_ms": 0.25, "mean_itl_ms": 0.01}
WHOLE: dict[str, Any] = {
    "/v1/chat/completions": {
        "id": "c1",
        "object": "chat.completion",
        "created": 1,
        "model": "served-7b",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": TEXT}}],
        "usage": _COUNTS,
    },
    "/v1/completions": {
        "id": "c1",
        "object": "text_completion",
        "created": 1,
        "model": "served-7b",
        "choices": [{"index": 0, "finish_reason": "stop", "text": TEXT, "logprobs": None}],
        "usage": _COUNTS,
    },
    "/v1/responses": _RESPONDED,
    "/v1/embeddings": {
        "object": "list",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -0.5] * 2000}],
        "model": "served-7b",
        "usage": {"prompt_tokens": 11, "total_tokens": 11},
    },
    "/v1/messages": {
        **_MESSAGE,
        "content": [{"type": "text", "text": TEXT}],
        "stop_reason": "end_turn",
        "usage": {**_MESSAGE["usage"], "output_tokens": 7},
    },
    "/v1beta/models/asked-7b:generateContent": _candidate(TEXT, "STOP", 4),
    "/api/chat": _line({"message": {"role": "assistant", "content": TEXT}}, done=True),
    "/api/generate": _line({"response": TEXT}, done=True),
}
STREAMS: dict[str, list[Any]] = {
    "/v1/chat/completions": sse(
        *(": a comment\n\n", _choice({"role": "assistant", "content": ""}), PAUSE),
        *(_choice({"content": "Hel"}), _choice({"content": "usage"}), _choice({"content": TEXT})),
        *(_choice({}, "stop"), {**_choice({}), "choices": [], "usage": _COUNTS}, "data: [DONE]\n\n"),
    ),
    "/v1/completions": sse(
        *({"id": "c1", "model": "served-7b", "choices": [{"index": 0, "text": ""}]}, PAUSE),
        *({"id": "c1", "model": "served-7b", "choices": [{"index": 0, "text": TEXT}]},),
        *({"id": "c1", "model": "served-7b", "choices": [], "usage": _COUNTS}, "data: [DONE]\n\n"),
    ),
    "/v1/responses": named(
        {"type": "response.created", "sequence_number": 0, "response": _RESPONSE},
        {
            "type": "response.output_item.added",
            "sequence_number": 1,
            "output_index": 0,
            "item": {"id": "i1", "type": "message", "role": "assistant", "status": "in_progress", "content": []},
        },
        {
            "type": "response.content_part.added",
            "sequence_number": 2,
            "item_id": "i1",
            "output_index": 0,
            "content_index": 0,
            "part": {"type": "output_text", "text": "", "annotations": []},
        },
        {},
        {
            "type": "response.output_text.delta",
            "sequence_number": 3,
            "item_id": "i1",
            "output_index": 0,
            "content_index": 0,
            "delta": TEXT,
            "logprobs": [],
        },
        {"type": "response.completed", "sequence_number": 4, "response": _RESPONDED},
    ),
    "/v1/messages": named(
        {"type": "message_start", "message": _MESSAGE},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        {},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 7},
        },
        {"type": "message_stop"},
    ),
    "/v1beta/models/asked-7b:streamGenerateContent": sse(
        PAUSE, _candidate("Hel", None, 1), _candidate(TEXT, "STOP", 4)
    ),
    "/api/chat": [
        json.dumps(_line({"message": {"role": "assistant", "content": ""}}, done=False)) + "\n",
        PAUSE,
        json.dumps(_line({"message": {"role": "assistant", "content": TEXT}}, done=False)) + "\n",
        json.dumps(_line({"message": {"role": "assistant", "content": ""}}, done=True)) + "\n",
    ],
    "/api/generate": [
        PAUSE,
        json.dumps(_line({"response": TEXT}, done=False)) + "\n",
        json.dumps(_line({"response": ""}, done=True)) + "\n",
    ],
}


def text_of(chunks: list[Any]) -> str:
    """Return the body of a stream."""
    return "".join(chunk for chunk in chunks if chunk != PAUSE)


class ModelApis(ThreadingHTTPServer):
    """The server; the model's name in a request chooses how it responds.

    `timed`: with the engine's own times.
    `gzip`, `br`: compressed. `split`: a stream in chunks of 7 bytes. `large`: more than a body that is kept. `busy`:
    429 at the first call of each trace. `paced`: after the first content it waits until the client has it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.received = threading.Event()
        self.calls: Counter[str] = Counter()  # by trace
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ModelApis

    def log_message(self, *_: Any) -> None:
        """Be quiet."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
        path = self.path.partition("?")[0]
        if path == "/received":
            self.server.received.set()
            return self._respond(200, "text/plain", [""])
        if path.startswith("/v2/"):
            return self._respond(200, "application/json", [_inferred(path)])
        loaded = json.loads(body)
        asked = loaded if isinstance(loaded, dict) else {}
        how = str(asked.get("model"))
        trace = self.headers.get("traceparent", "-")[3:35]
        self.server.calls[trace] += 1
        if how == "busy" and self.server.calls[trace] == 1:
            return self._respond(429, "application/json", ['{"error": {"message": "busy"}}'])
        if path in STREAMS and (asked.get("stream", path.startswith("/api/")) or "stream" in path):
            kind = "application/x-ndjson" if path.startswith("/api/") else "text/event-stream; charset=utf-8"
            events = [
                one.replace('"choices": [],', f'"metrics": {json.dumps(TIMES)}, "choices": [],')
                for one in STREAMS[path]
            ]
            return self._respond(200, kind, events if how == "timed" else STREAMS[path], how)
        whole = dict(WHOLE[path])
        if how == "timed":
            whole["metrics"] = TIMES
        if how == "large":
            whole["padding"] = "x" * LARGE
        return self._respond(200, "application/json", [json.dumps(whole)], how)

    def _respond(self, status: int, kind: str, chunks: list[str], how: str = "") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("retry-after-ms", "1")
        if how in ("gzip", "br"):
            self.send_header("content-encoding", how)
        if len(chunks) == 1:
            body = chunks[0].encode()
            body = gzip.compress(body) if how == "gzip" else brotli.compress(body) if how == "br" else body
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        try:
            self.server.received.clear()
            for chunk in _encoded(chunks, how):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
                if how == "paced" and b"Hel" in chunk and not self.server.received.wait(10):
                    break  # the client misses the rest
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # abandoned
            self.close_connection = True


def _encoded(chunks: list[str], how: str) -> Iterator[bytes]:
    deflate, compressor = zlib.compressobj(wbits=31), brotli.Compressor()
    for chunk in chunks:
        if chunk == PAUSE:
            time.sleep(PAUSE_S)
            continue
        data = chunk.encode()
        if how == "gzip":
            yield deflate.compress(data) + deflate.flush(zlib.Z_SYNC_FLUSH)
        elif how == "br":
            yield compressor.process(data) + compressor.flush()
        elif how == "split":
            yield from (data[at : at + 7] for at in range(0, len(data), 7))
        else:
            yield data
    if how == "gzip":
        yield deflate.flush()
    elif how == "br":
        yield compressor.finish()


def _inferred(path: str) -> str:
    name = path.split("/")[3]
    outputs = [{"name": "OUT", "datatype": "INT32", "shape": [2, 1], "data": [1, 2]}]
    return json.dumps({"model_name": name, "model_version": "1", "outputs": outputs})


@contextmanager
def run_model_apis() -> Iterator[ModelApis]:
    """Serve until the block ends."""
    server = ModelApis()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
