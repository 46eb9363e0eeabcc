"""Hugging Face tokenizers, and the tokenizers and chat templates of transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.instrumentation.detail import DETOKENIZE, TOKENIZE, add_details

if TYPE_CHECKING:
    from types import ModuleType

# Of these each class defines what its releases have.
ENCODE = ("__call__", "encode", "encode_batch", "encode_batch_fast", "encode_plus", "batch_encode_plus")
DECODE = ("decode", "decode_batch", "batch_decode")


def patch_tokenizers(module: ModuleType) -> None:
    """Wrap the methods of the native class, which those of transformers call, too."""
    add_details(module.Tokenizer, {TOKENIZE: ENCODE, DETOKENIZE: DECODE}, "tokenizers", __name__)


def patch_transformers(module: ModuleType) -> None:
    """Wrap the methods of the base class of fast and slow tokenizers."""
    spans = {TOKENIZE: (*ENCODE, "apply_chat_template"), DETOKENIZE: DECODE}
    add_details(module.PreTrainedTokenizerBase, spans, "transformers", __name__)
