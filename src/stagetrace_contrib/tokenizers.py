"""Hugging Face tokenizers, which those of transformers call, too: the methods of the native class."""

from __future__ import annotations

from stagetrace.instrumentation.detail import OF_TOKENIZERS, details

patch_tokenizers = details("Tokenizer", OF_TOKENIZERS, "tokenizers", __name__)
