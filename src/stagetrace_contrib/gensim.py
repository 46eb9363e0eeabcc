"""gensim: what word vectors, document vectors and topic models are asked for. A look-up is no call of a model."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.models.base import Calls, Library


def _no_rows(_args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Return None: a list of words is one input."""


GENSIM = Library(
    __name__, "gensim", rows=_no_rows, not_recognised="looking up a vector; `model[corpus]` of other models"
)
patch_keyedvectors = GENSIM.patch(
    Calls("KeyedVectors", ("most_similar", "most_similar_cosmul", "doesnt_match", "wmdistance", "distances"))
)
patch_doc2vec = GENSIM.patch(Calls("Doc2Vec", ("infer_vector",)))
patch_word2vec = GENSIM.patch(Calls("Word2Vec", ("predict_output_word",)))
patch_ldamodel = GENSIM.patch(Calls("LdaModel", ("get_document_topics", "inference")))
