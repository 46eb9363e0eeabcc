"""Hugging Face tokenizers, which those of transformers call, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.instrumentation.detail import OF_TOKENIZERS, add_details

if TYPE_CHECKING:
    from types import ModuleType


def patch_tokenizers(module: ModuleType) -> None:
    """Wrap the methods of the native class."""
    add_details(module.Tokenizer, OF_TOKENIZERS, "tokenizers", __name__)
