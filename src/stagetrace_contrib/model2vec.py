"""model2vec: static embeddings, and classifiers on top of them."""

from __future__ import annotations

from typing import Any

from stagetrace.instrumentation.models.base import Calls, Library


def _name(model: Any) -> str:
    return getattr(model, "base_model_name", None) or type(model).__name__


MODEL2VEC = Library(__name__, "model2vec", name=_name)
patch_model = MODEL2VEC.patch(Calls("StaticModel", ("encode", "encode_as_sequence")))
patch_inference = MODEL2VEC.patch(Calls("StaticModelPipeline", ("predict", "predict_proba")))
