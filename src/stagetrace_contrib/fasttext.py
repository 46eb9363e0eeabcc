"""fastText: a loaded model's predictions and sentence vectors. Looking up the vector of a word is no model call."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library

FASTTEXT = Library(__name__, "fasttext", name=lambda _: "FastText", not_recognised="`get_word_vector`")
patch_fasttext = FASTTEXT.patch(
    Calls("_FastText", ("predict", "get_sentence_vector", "get_nearest_neighbors", "get_analogies"))
)
