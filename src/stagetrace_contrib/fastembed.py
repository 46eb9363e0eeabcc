"""fastembed: embeddings and scores, with tokenizing and the session of onnxruntime inside; each batch is a step."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library

EMBEDS = ("embed", "query_embed", "passage_embed")
FASTEMBED = Library(
    __name__,
    "fastembed",
    name=lambda model: str(model.model_name),
    not_recognised="processes of `parallel=...`; a class inside these that is used by itself is one of onnxruntime",
)
patch_text = FASTEMBED.patch(Calls("TextEmbedding", EMBEDS))
patch_sparse = FASTEMBED.patch(Calls("SparseTextEmbedding", EMBEDS))
patch_late_interaction = FASTEMBED.patch(Calls("LateInteractionTextEmbedding", EMBEDS))
patch_image = FASTEMBED.patch(Calls("ImageEmbedding", EMBEDS))
patch_multimodal = FASTEMBED.patch(Calls("LateInteractionMultimodalEmbedding", ("embed_text", "embed_image")))
patch_cross_encoder = FASTEMBED.patch(Calls("TextCrossEncoder", ("rerank", "rerank_pairs")))
