"""transformers: `generate` is one inference, whatever it calls for each token."""

from __future__ import annotations

from stagetrace.instrumentation.models.base import Calls, Library
from stagetrace.instrumentation.models.device_time import begin_on_device
from stagetrace.instrumentation.models.module_name import device_of, first_tensor, name_of

TRANSFORMERS = Library(
    __name__, "torch", library="transformers", name=name_of, rows=first_tensor, device=device_of, timer=begin_on_device
)
patch_generation = TRANSFORMERS.patch(Calls("GenerationMixin", ("generate",)))
