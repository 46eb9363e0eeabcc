"""vLLM in process: `LLM` for a batch of prompts, `AsyncLLM` for requests; what its engine measures of each is taken.

The engine runs in a process of its own and measures by its monotonic clock, which is that of the machine. `LLM` does so
only if made with `disable_log_stats=False`.
"""

from __future__ import annotations

from functools import partial
from pathlib import PurePath
from time import monotonic_ns, time_ns
from typing import TYPE_CHECKING, Any

from stagetrace import semconv
from stagetrace.instrumentation.base import patching, wrap_all
from stagetrace.instrumentation.models.base import Calls, Library, first_argument
from stagetrace.instrumentation.models.generation import PHASES, Reads, generating

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.request.generation import Call

    Arguments = tuple[Any, tuple[Any, ...], dict[str, Any]]

# RequestOutputKind: an output holds all tokens until then, or those since the one before; or there is only one.
DELTA, FINAL_ONLY = 1, 2
PHASES_OF_BEGIN = ("queue", "prefill")  # before the first token
VERSION = "0.33.0"


def _name(engine: Any) -> str:
    name = str(engine.model_config.model)
    return PurePath(name).name if name[:1] in "/.~" else name


def _prompts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    prompts = first_argument(args, kwargs)
    is_one = isinstance(prompts, list) and prompts and isinstance(prompts[0], dict | int)
    return None if is_one else prompts  # one conversation, and one prompt of tokens, is a list, too


VLLM = Library(
    __name__,
    "vllm",
    name=_name,
    rows=_prompts,
    recognised="`LLM.generate`, `.chat`, `.embed`, `.encode`, `.classify`, `.score`, `.beam_search`; "
    "`AsyncLLM.generate`, `.encode`, and with them `vllm serve`",
    not_recognised="`LLM.enqueue` with `wait_for_completion`",
    stand_in=f"{VERSION}, by a stand-in: it needs a GPU",
)
_BATCH = ("encode", "classify", "score", "beam_search")  # of which no tokens are counted


def patch_llm(module: ModuleType) -> None:
    """Wrap what an `LLM` itself defines."""
    _patch(module.LLM, needed=("generate", "chat"))


def patch_pooling(module: ModuleType) -> None:
    """Wrap what it inherits: `embed` and its like."""
    _patch(module.PoolingOfflineMixin, needed=("embed",))


def _patch(cls: Any, needed: tuple[str, ...]) -> None:
    reads = {
        "generate": Reads(semconv.TEXT_COMPLETION, result=_completed),
        "chat": Reads(semconv.CHAT, result=_completed),
        "embed": Reads(semconv.EMBEDDINGS, result=_embedded),
    }
    own = vars(cls)
    found = [own[name] for name in needed]  # a release that lacks one stays as it was
    wraps = {name: partial(generating, library=VLLM, reads=how) for name, how in reads.items()}
    wraps |= {name: partial(VLLM.wrap, how=Calls(cls.__name__, (name,))) for name in _BATCH}
    wrap_all((cls, name, wrap) for name, wrap in wraps.items() if found and name in own)


def _begin(call: Call, arguments: Arguments) -> None:
    _, args, kwargs = arguments
    params = args[1] if len(args) > 1 else kwargs.get("sampling_params")
    kind = getattr(params, "output_kind", 0)
    call.state = getattr(kind, "value", kind), {}
    if call.state[0] == FINAL_ONLY:
        del call.attributes[semconv.REQUEST_STREAM]


def _streamed(call: Call, output: Any, now: int) -> None:
    """Read one output of a request, for each of its sequences."""
    kind, sequences = call.state
    if kind == FINAL_ONLY:
        _completed(call, [output], now)
        return
    for one in output.outputs:
        count, since = sequences.get(one.index, (0, None))
        fresh = len(one.token_ids) - (0 if kind == DELTA else count)
        if fresh > 0:
            sequences[one.index] = count + fresh, now
            call.add(now, fresh, is_first=since is None, since=since)
    if call.input is None and output.prompt_token_ids is not None:
        call.input, call.cached = len(output.prompt_token_ids), output.num_cached_tokens
    if output.metrics is not None:
        _measured(call, output.metrics, PHASES_OF_BEGIN)


def _completed(call: Call, outputs: Any, _now: int) -> None:
    """Read the outputs of a batch of prompts."""
    sequences = [sequence for output in outputs for sequence in output.outputs]
    call.output = sum(len(sequence.token_ids) for sequence in sequences)
    if all(output.prompt_token_ids is not None for output in outputs):
        call.input = sum(len(output.prompt_token_ids) for output in outputs)
    if all(output.num_cached_tokens is not None for output in outputs):
        call.cached = sum(output.num_cached_tokens for output in outputs)
    measured = [output.metrics for output in outputs if output.metrics is not None]
    if not measured or len(measured) != len(sequences) or any(not one.first_token_ts for one in measured):
        return  # of a prompt with several sequences, the engine reports only one
    offset = time_ns() - monotonic_ns()
    call.first = offset + round(min(one.first_token_ts for one in measured) * 1e9)
    call.last = offset + round(max(one.last_token_ts for one in measured) * 1e9)
    took = sum(one.last_token_ts - one.first_token_ts for one in measured)
    call.following = call.output - len(sequences), round(took * 1e9)
    if len(measured) == 1:
        _measured(call, measured[0], tuple(PHASES))


def _measured(call: Call, metrics: Any, placed: tuple[str, ...]) -> None:
    """Take the phases of one request as they become known: each ends where the next one begins.

    Those that are `placed` lie within the step that has just ended.
    """
    offset = time_ns() - monotonic_ns()
    times = (metrics.queued_ts, metrics.scheduled_ts, metrics.first_token_ts, metrics.last_token_ts)
    for (name, attribute), start, end in zip(PHASES.items(), times, times[1:], strict=False):
        if 0 < start <= end:
            if attribute not in call.phases and name in placed:
                call.placed.append((name, offset + round(start * 1e9), offset + round(end * 1e9)))
            call.phases[attribute] = round((end - start) * 1e9)


def _embedded(call: Call, outputs: Any, _now: int) -> None:
    call.input = sum(len(output.prompt_token_ids) for output in outputs)


def _pooled(call: Call, output: Any, _now: int) -> None:
    call.input = len(output.prompt_token_ids)


# The engine that serves requests.
_GENERATE = Reads(semconv.TEXT_COMPLETION, _streamed, streams=True, begin=_begin)
_ENCODE = Reads(semconv.EMBEDDINGS, _pooled)
patch_async_llm = patching(
    {
        "AsyncLLM.generate": partial(generating, library=VLLM, reads=_GENERATE),
        "AsyncLLM.encode": partial(generating, library=VLLM, reads=_ENCODE),
    }
)
