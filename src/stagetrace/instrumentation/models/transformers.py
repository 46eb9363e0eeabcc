"""transformers: `generate` is one inference, whatever it calls for each token."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.instrumentation.models.module_name import first_tensor, name_of

TRANSFORMERS = Library(__name__, "torch", library="transformers", name=name_of, rows=first_tensor)
patch_generation = TRANSFORMERS.patch(Calls("GenerationMixin", ("generate",)))
