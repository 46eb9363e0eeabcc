"""faster-whisper: the segments of a transcription are computed as they are iterated, after the call has returned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stagetrace.guard import switch
from stagetrace.instrumentation.base import after, patching
from stagetrace.instrumentation.models.base import Library, description, no_description
from stagetrace.instrumentation.models.marked import How, steps_of
from stagetrace.instrumentation.models.module_name import name_in
from stagetrace.instrumentation.models.signature import recorded
from stagetrace.request.current import recording
from stagetrace.request.steps import each_step
from stagetrace.semconv import INFERENCE, PREPARE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

FASTER_WHISPER = Library(
    __name__,
    "ctranslate2",
    library="faster-whisper",
    recognised="each step of the segments that `WhisperModel.transcribe` and `BatchedInferencePipeline.transcribe`"
    " return; the detection of a language before that, by the patch of ctranslate2",
)
_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # by a model, its size, id or folder as it was given


def patch_transcribe(module: ModuleType) -> None:
    """Wrap what transcribes: what a call does before it returns, the search for speech too, is preprocessing."""
    how = How(_describe, INFERENCE, switch(__name__), is_method=True)

    def stepwise(result: Any, model: Any, *_: Any, **__: Any) -> Any:
        """Return the result with each step of its segments the inference; None outside a recorded request."""
        if recording() is None:
            return None
        segments, info = result
        return each_step(steps_of(how, (model,), {}), segments), info

    patching(
        {
            "get_speech_timestamps": _preparing,
            "WhisperModel.__init__": after(_note_name),
            "WhisperModel.transcribe": after(stepwise),
            "BatchedInferencePipeline.transcribe": after(stepwise),
        }
    )(module)


def _preparing(original: Callable[..., Any]) -> Callable[..., Any]:
    return recorded(original, no_description, PREPARE, where=__name__, is_method=False)


def _note_name(_: None, model: Any, *args: Any, **kwargs: Any) -> None:
    _names[model] = str(args[0] if args else kwargs["model_size_or_path"])


def _describe(model: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> Mapping[str, Any]:
    inner = getattr(model, "model", model)  # of a pipeline, its model; of that, one of ctranslate2
    name = _names.get(model) or _names.get(inner) or type(model).__name__
    engine = getattr(inner, "model", inner)
    return description(name_in(name), "ctranslate2", None, device=str(engine.device))
