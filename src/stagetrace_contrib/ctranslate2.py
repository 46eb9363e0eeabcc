"""ctranslate2: translators, generators, encoders and speech models, which are classes of C++."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from stagetrace.instrumentation.base import after, wrap_all
from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.instrumentation.models.module_name import name_in

if TYPE_CHECKING:
    from types import ModuleType

    from stagetrace.instrumentation.base import Patch

_folders: WeakKeyDictionary[Any, str] = WeakKeyDictionary()  # by a model, where it was loaded from


def _name(model: Any) -> str:
    folder = _folders.get(model)
    return name_in(folder) if folder else type(model).__name__


CTRANSLATE2 = Library(
    __name__,
    "ctranslate2",
    name=_name,
    device=lambda model: str(model.device),
    recognised="generators of these step by step",
    not_recognised="`asynchronous=True`, of which only the call is the inference; the file and score methods",
)
_OF_TEXT: Final = (
    Calls("Translator", ("translate_batch", "translate_iterable", "generate_tokens")),
    Calls("Generator", ("generate_batch", "generate_iterable", "generate_tokens", "forward_batch")),
    Calls("Encoder", ("forward_batch",)),
)
_OF_SPEECH: Final = (
    Calls("Whisper", ("encode", "generate", "detect_language", "align")),
    Calls("Wav2Vec2", ("encode",)),
    Calls("Wav2Vec2Bert", ("encode",)),
)


def _patch(calls: tuple[Calls, ...]) -> Patch:
    wrap_calls = CTRANSLATE2.patch(*calls)

    def patch(module: ModuleType) -> None:
        constructors = [(getattr(module, one.owner), "__init__", after(_note_folder)) for one in calls]
        wrap_calls(module)
        wrap_all(constructors)

    return patch


def _note_folder(_: None, model: Any, *args: Any, **kwargs: Any) -> None:
    folder = args[0] if args else kwargs.get("model_path")
    if isinstance(folder, str):
        _folders[model] = os.path.abspath(folder)  # noqa: PTH100 -- a text


patch_text, patch_speech = _patch(_OF_TEXT), _patch(_OF_SPEECH)
