"""transformers' `generate`: tokens are counted as its streamer gets them, or in what it returns.

The first thing that a streamer gets is the prompt; the next is the first token, or several.
"""

from __future__ import annotations

import inspect
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace import gen_ai
from stagetrace.guard import guarded
from stagetrace.instrumentation.models.generation import Reads, generating

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagetrace.instrumentation.models.base import Library
    from stagetrace.recording.generation import Call

    Arguments = tuple[Any, tuple[Any, ...], dict[str, Any]]

PUT, END = "put", "end"


def generating_by_streamer(generate: Callable[..., Any], library: Library) -> Callable[..., Any]:
    """Return transformers' `generate` as an inference that generates, with its signature."""
    names = list(inspect.signature(generate).parameters)
    place = names.index("streamer") - 1 if "streamer" in names else len(names)

    def begin(call: Call, arguments: Arguments) -> None:
        model, args, kwargs = arguments
        streamer = args[place] if len(args) > place else kwargs.get("streamer")
        call.state = _State(model, args, kwargs)
        if streamer is not None:
            call.attributes[gen_ai.REQUEST_STREAM] = True
            watch_streamer(call, streamer)

    return generating(generate, library, Reads(gen_ai.TEXT_COMPLETION, begin=begin, end=_end, result=_count))


class _State:
    """What is known of a call until it ends."""

    def __init__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else kwargs.get("inputs")
        given = kwargs.get("input_ids") if given is None else given
        shape: Any = getattr(given, "shape", ())
        # Of several prompts the shorter ones are padded: their tokens are not known.
        self.prompt = int(shape[-1]) if len(shape) == 2 and shape[0] == 1 else None  # noqa: PLR2004 -- prompts, tokens
        self.starts = 1 if getattr(model.config, "is_encoder_decoder", False) else self.prompt
        self.restore: Callable[[], None] | None = None


@guarded
def watch_streamer(call: Call, streamer: Any) -> None:
    """Count the tokens that a streamer gets until its end, after which `generate` may still take a while to return."""
    own = getattr(streamer, "__dict__", None)
    if own is None:  # it has slots
        return
    original, original_end = streamer.put, streamer.end
    before = {name: own[name] for name in (PUT, END) if name in own}
    has_prompt = False

    def put(value: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal has_prompt
        if has_prompt:
            _add(call, value)
        has_prompt = True
        return original(value, *args, **kwargs)

    def end(*args: Any, **kwargs: Any) -> Any:
        _end_stream(call)
        return original_end(*args, **kwargs)

    def restore() -> None:
        for name, ours in ((PUT, put), (END, end)):
            if name in before:
                own[name] = before[name]
            elif own.get(name) is ours:
                del own[name]

    streamer.put, streamer.end = put, end
    call.state.restore = restore


@guarded
def _end_stream(call: Call) -> None:
    call.input = call.state.prompt
    call.end(time_ns())


@guarded
def _add(call: Call, value: Any) -> None:
    now = time_ns()
    if call.first_chunk is None:
        call.first_chunk = now
    call.add(now, value.numel())


def _end(call: Call, _arguments: Arguments) -> None:
    if call.state.restore is not None:
        call.state.restore()


def _count(call: Call, result: Any, _now: int) -> None:
    """Count the tokens of one sequence that was returned; a longer batch is padded."""
    state = call.state
    call.input = state.prompt
    shape: Any = getattr(getattr(result, "sequences", result), "shape", ())
    if call.output is None and state.starts is not None and len(shape) == 2 and shape[0] == 1:  # noqa: PLR2004
        call.output = int(shape[1]) - state.starts
