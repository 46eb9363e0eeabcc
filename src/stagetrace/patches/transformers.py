"""transformers: a pipeline is preprocessing, inference and postprocessing; `generate` is one inference.

Tokens of `generate` are counted as its streamer gets them, or in what it returns. The first thing that a streamer gets
is the prompt; the next is the first token, or several. Tokenizers and image processors are details.
"""

from __future__ import annotations

import functools
import inspect
from functools import partial
from time import time_ns
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stagetrace import semconv
from stagetrace.guard import guarded, report, switch
from stagetrace.instrumentation.base import patching, then
from stagetrace.instrumentation.batching.queued_items import CONSUMER
from stagetrace.instrumentation.detail import IMAGE_TRANSFORM, OF_TOKENIZERS, TOKENIZE, details
from stagetrace.instrumentation.models.base import Library, description, first_argument, no_description
from stagetrace.instrumentation.models.device_time import begin_on_device
from stagetrace.instrumentation.models.generation import Reads, generating
from stagetrace.instrumentation.models.module_name import device_of, first_tensor, framework_of, name_of
from stagetrace.instrumentation.models.signature import recorded, with_signature
from stagetrace.instrumentation.models.subclasses import wrap_in_subclasses
from stagetrace.request.current import current
from stagetrace.semconv import INFERENCE, POSTPROCESS, QUEUE, QUEUE_REASON

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextvars import Token
    from types import ModuleType

    from stagetrace.request.generation import Call
    from stagetrace.request.request import Request

    Arguments = tuple[Any, tuple[Any, ...], dict[str, Any]]


_switch = switch(__name__)
TRANSFORMERS = Library(
    __name__,
    "torch",
    library="transformers",
    name=name_of,
    device=device_of,
    rows=first_tensor,
    timer=begin_on_device,
    recognised="`GenerationMixin.generate`, those of single models too, in a thread of its own if it has a streamer;"
    " of each `Pipeline`, your own subclasses included: `forward` as inference, `postprocess` as "
    "postprocessing, and what comes before as preprocessing, of lists, data sets and generators too;"
    " `ContinuousMixin.generate_batch`; in `transformers serve`, with `stream` too, which waits for its one thread",
    not_recognised="`init_continuous_batching`, and so `transformers serve --continuous-batching`: its thread serves"
    " many requests",
)
_made_in: WeakKeyDictionary[Any, Request] = WeakKeyDictionary()  # by a streamer, the request that made it
_waits_since: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # by a streamer: since when its call waits, in ns


def patch_generation(module: ModuleType) -> None:
    """Wrap `generate`, which calls the model for each token, of all models: some have one of their own."""
    common = module.GenerationMixin.generate

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        if function is common:
            return _joining(generating_by_streamer(function, TRANSFORMERS), function)
        # A model's own: it is not known how that returns tokens.
        return _joining(generating(function, TRANSFORMERS, Reads(semconv.TEXT_COMPLETION)), function)

    wrap_in_subclasses(module.GenerationMixin, {"generate": wrap})


def _joining(generate: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return `generate`, a form of `original`, as the work of its streamer's request in a thread that works for none.

    A service that streams calls it in a `threading.Thread`, which has no context, and reads from the streamer.
    """
    names = list(inspect.signature(original).parameters)
    place = names.index("streamer") if "streamer" in names else len(names)

    @functools.wraps(original)
    def joined(*args: Any, **kwargs: Any) -> Any:
        streamer = args[place] if len(args) > place else kwargs.get("streamer")
        if streamer is None or (token := _join(streamer)) is None:
            return generate(*args, **kwargs)
        try:
            return generate(*args, **kwargs)
        finally:
            current.reset(token)

    return with_signature(joined, original)


@guarded
def _join(streamer: Any) -> Token[Request | None] | None:
    mine = current.get()
    if mine is not None and not mine.closed and not mine.is_batch:  # not one that this thread has worked for before
        return None
    request = _made_in.get(streamer)
    if request is None or request.closed:
        return None
    since = _waits_since.pop(streamer, None)
    if since is not None:
        request.visit(QUEUE, (since, time_ns()), {QUEUE_REASON: CONSUMER})
    return current.set(request)


def patch_streamers(module: ModuleType) -> None:
    """Wrap the constructors of all streamers, to know for which request they are."""
    wrap_in_subclasses(module.BaseStreamer, {"__init__": _noting_request})


def _noting_request(function: Callable[..., Any], note: Callable[[Any], None] | None = None) -> Callable[..., Any]:
    return with_signature(then(note or _note_request)(function), function)


def _note_request(streamer: Any) -> None:
    request = current.get()
    if request is not None:
        _made_in[streamer] = request


def _note_waiting_request(streamer: Any) -> None:
    _note_request(streamer)
    if streamer in _made_in:
        _waits_since[streamer] = time_ns()


# The streamer of `transformers serve`, which has no base, is made as its call is put into the queue of the one thread
# that generates.
patch_serving = patching({"DirectStreamer.__init__": partial(_noting_request, note=_note_waiting_request)})


def patch_pipelines(module: ModuleType) -> None:
    """Wrap `forward`, which also waits for the device, and each pipeline's own `postprocess`.

    What a pipeline does before `forward` is preprocessing by that: it is a step of a data loader, or a generator.
    """
    pipeline = module.Pipeline
    forward = _forwarding(pipeline.forward)
    wrap_in_subclasses(pipeline, {"postprocess": _postprocessing})
    pipeline.forward = forward


def _forwarding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that is the inference, unless the pipeline's model generates: then `generate` is."""
    call = recorded(original, _describe_forward, INFERENCE, where=__name__, is_method=True, timer=begin_on_device)

    @functools.wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        chosen = original
        try:
            if not _switch.off and not _generates(self):
                chosen = call
        except Exception as error:  # noqa: BLE001 -- as `guarded` does, without its cost
            report(__name__, error)
        return chosen(self, *args, **kwargs)

    return forward


def _generates(pipeline: Any) -> bool:
    return getattr(pipeline, "_pipeline_calls_generate", False) and pipeline.model.can_generate()


def _postprocessing(function: Callable[..., Any]) -> Callable[..., Any]:
    return recorded(function, no_description, POSTPROCESS, where=__name__, is_method=True)


def _count_prompts(call: Call, arguments: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> None:
    call.input = sum(map(len, first_argument(*arguments[1:])))


def _count_batch(call: Call, results: Any, _now: int) -> None:
    call.output = sum(len(one.generated_tokens) for one in results.values())


# It generates a batch in another thread, and returns when that is done.
_BATCH = Reads(semconv.TEXT_COMPLETION, begin=_count_prompts, result=_count_batch)
patch_continuous_batching = patching(
    {"ContinuousMixin.generate_batch": partial(generating, library=TRANSFORMERS, reads=_BATCH)}
)


def _describe_forward(pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
    model = pipeline.model
    rows = first_tensor(args, kwargs)
    return description(name_of(model), framework_of(model), rows, device=device_of(pipeline))


# The base classes of fast and slow tokenizers, and image processors.
_TOKENIZES = {**OF_TOKENIZERS, TOKENIZE: (*OF_TOKENIZERS[TOKENIZE], "apply_chat_template")}
patch_tokenizers = details("PreTrainedTokenizerBase", _TOKENIZES, "transformers", __name__)
patch_image_processors = details("BaseImageProcessor", {IMAGE_TRANSFORM: ("__call__",)}, "transformers", __name__)


# --- the tokens of `generate`


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
            call.attributes[semconv.REQUEST_STREAM] = True
            watch_streamer(call, streamer)

    return generating(generate, library, Reads(semconv.TEXT_COMPLETION, begin=begin, end=_end, result=_count))


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
