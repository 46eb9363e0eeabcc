"""What engines of language models report of a request in the body of its response, in their own words and units.

vLLM (`--enable-per-request-metrics`, and `include_metrics` in the request), SGLang, NVIDIA Dynamo and NIM
(`nvext.timing`), llama.cpp, Ollama and Groq. Triton reports no times of a request (server#6692 of its repository).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from stagetrace.instrumentation.clients.callee_timing import Times

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
