"""SGLang in process: its `Engine`, and what serves the requests of its server; what it measures of each is taken.

It reports queue and prefill only if made with `enable_metrics=True`.
"""

from __future__ import annotations

from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from stagetrace import semconv
from stagetrace.instrumentation.base import patching, wrap_all
from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.instrumentation.models.generation import PHASES, Reads, generating

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.request.generation import Call

    Arguments = tuple[Any, tuple[Any, ...], dict[str, Any]]

INPUT_IDS = 2  # the place of that argument
VERSION = "0.5.23"


def _name(engine: Any) -> str:
    settings = engine.server_args
    name = str(settings.served_model_name or settings.model_path)
    return PurePath(name).name if name[:1] in "/.~" else name


def _prompts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    prompts = args[0] if args else kwargs.get("prompt")
    if prompts is None:
        prompts = args[INPUT_IDS] if len(args) > INPUT_IDS else kwargs.get("input_ids")
    is_one = isinstance(prompts, list) and prompts and isinstance(prompts[0], int)
    return None if is_one else prompts  # one prompt of tokens is a list, too


SGLANG = Library(
    __name__,
    "sglang",
    name=_name,
    rows=_prompts,
    recognised="`Engine.generate`, `.async_generate`, `.encode`, `.async_encode`, `.rerank`; its server's requests",
    stand_in=f"{VERSION}, by a stand-in: it needs a GPU",
)


def patch_engine(module: ModuleType) -> None:
    """Wrap the engine of a service's own."""
    generate = Reads(semconv.TEXT_COMPLETION, _streamed, _completed)
    encode = Reads(semconv.EMBEDDINGS, result=_embedded)
    reads = {"generate": generate, "async_generate": generate, "encode": encode, "async_encode": encode}
    wraps = {name: partial(generating, library=SGLANG, reads=how) for name, how in reads.items()}
    wraps["rerank"] = partial(SGLANG.wrap, how=Calls("Engine", ("rerank",)))
    wrap_all((module.Engine, name, wrap) for name, wrap in wraps.items() if name in vars(module.Engine))


def _begin(call: Call, arguments: Arguments) -> None:
    _, args, kwargs = arguments
    asked: Any = args[0] if args else kwargs.get("obj")
    if type(asked).__name__ == "EmbeddingReqInput":
        call.attributes[semconv.OPERATION_NAME] = semconv.EMBEDDINGS
    elif asked.stream:
        call.attributes[semconv.REQUEST_STREAM] = True


def _item(call: Call, item: Any, now: int) -> None:
    """Read what `generate_request` yields: the parts of a stream, or once all there is; then nobody asks for more."""
    if semconv.REQUEST_STREAM in call.attributes:
        _streamed(call, item, now)
        return
    is_embedding = call.attributes[semconv.OPERATION_NAME] == semconv.EMBEDDINGS
    (_embedded if is_embedding else _completed)(call, item, now)
    call.end(now)


def _streamed(call: Call, item: Any, now: int) -> None:
    """Read one part of a stream, which has the number of tokens of its sequence until now."""
    if call.state is None:
        call.state = {}
    known = item["meta_info"]
    count, since, _ = call.state.get(known["id"], (0, None, 0))
    fresh = known["completion_tokens"] - count
    if fresh > 0:
        call.add(now, fresh, is_first=since is None, since=since)
    call.state[known["id"]] = count + max(fresh, 0), now if fresh > 0 else since, known["prompt_tokens"]
    call.input = sum(tokens for *_, tokens in call.state.values())
    if len(call.state) == 1:
        call.cached = known.get("cached_tokens")
        _measured(call, known, ("queue", "prefill"))


def _completed(call: Call, result: Any, _now: int) -> None:
    """Read the result of a prompt, or of each of a batch."""
    known = [one["meta_info"] for one in (result if isinstance(result, list) else [result])]
    call.input = sum(one["prompt_tokens"] for one in known)
    call.output = sum(one["completion_tokens"] for one in known)
    call.cached = sum(one.get("cached_tokens") or 0 for one in known)
    if all("first_token_latency" in one and "request_finished_ts" in one for one in known):
        firsts = [one["request_received_ts"] + one["first_token_latency"] for one in known]
        ends = [one["request_finished_ts"] for one in known]
        call.first, call.last = round(min(firsts) * 1e9), round(max(ends) * 1e9)
        took = sum(end - first for first, end in zip(firsts, ends, strict=True))
        call.following = call.output - len(known), round(max(took, 0) * 1e9)
    if len(known) == 1:
        _measured(call, known[0], tuple(PHASES))


def _measured(call: Call, known: dict[str, Any], placed: tuple[str, ...]) -> None:
    """Take the phases that are known; its own `prefill` contains the queue, so that it is computed here."""
    begun, filled = known.get("forward_entry_time"), known.get("prefill_finished_time")
    waited, ended = known.get("queue_time"), known.get("request_finished_ts")
    times = {
        "queue": (None if begun is None or waited is None else begun - waited, begun),
        "prefill": (begun, filled),
        "decode": (filled, ended),
    }
    for name, (start, end) in times.items():
        if start is not None and end is not None and start <= end:
            attribute = PHASES[name]
            if attribute not in call.phases and name in placed:
                call.placed.append((name, round(start * 1e9), round(end * 1e9)))
            call.phases[attribute] = round((end - start) * 1e9)


def _embedded(call: Call, result: Any, _now: int) -> None:
    call.input = sum(one["meta_info"]["prompt_tokens"] for one in (result if isinstance(result, list) else [result]))


# What the engine and the server both call.
_REQUEST = Reads(semconv.TEXT_COMPLETION, _item, begin=_begin)
patch_manager = patching({"TokenizerManager.generate_request": partial(generating, library=SGLANG, reads=_REQUEST)})
