"""hnswlib: a search in an index of vectors, which is the inference only where no model is."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.semconv import TRANSFORM

HNSWLIB = Library(__name__, "hnswlib")
patch_hnswlib = HNSWLIB.patch(Calls("Index", ("knn_query",), TRANSFORM), Calls("BFIndex", ("knn_query",), TRANSFORM))
