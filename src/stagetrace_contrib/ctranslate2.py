"""ctranslate2: translators, generators, encoders and speech models, which are classes of C++."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from stagetrace.guard import guarded
from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.instrumentation.models.module_name import name_in

if TYPE_CHECKING:
    from collections.abc import Callable
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
# Made here, so that docs/libraries.md has the calls whether or not a module was patched.
_patch_text, _patch_speech = CTRANSLATE2.patch(*_OF_TEXT), CTRANSLATE2.patch(*_OF_SPEECH)


def patch_text(module: ModuleType) -> None:
    """Wrap the models of text."""
    _patch(module, _OF_TEXT, _patch_text)


def patch_speech(module: ModuleType) -> None:
    """Wrap the models of speech."""
    _patch(module, _OF_SPEECH, _patch_speech)


def _patch(module: ModuleType, calls: tuple[Calls, ...], wrap: Patch) -> None:
    owners = [getattr(module, one.owner) for one in calls]
    made = [(owner, _noting_folder(owner.__init__)) for owner in owners]
    wrap(module)
    for owner, init in made:
        owner.__init__ = init


def _noting_folder(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        _note_folder(self, args, kwargs)

    return __init__


@guarded
def _note_folder(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    folder = args[0] if args else kwargs.get("model_path")
    if isinstance(folder, str):
        _folders[model] = os.path.abspath(folder)  # noqa: PTH100 -- a text
