"""faiss: a search in an index of vectors, which is the inference only where no model is.

Beside a model it is a transform: counted as inference, a slow index would look like a slow model.
"""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.semconv import TRANSFORM

FAISS = Library(__name__, "faiss", package="faiss-cpu", not_recognised="an index that another one holds")
SEARCHES = ("search", "range_search", "search_and_reconstruct")
# Each SWIG class has methods of its own, which faiss replaces by functions.
patch_faiss = FAISS.patch(
    Calls("Index", SEARCHES, TRANSFORM, derived=True), Calls("IndexBinary", SEARCHES, TRANSFORM, derived=True)
)
