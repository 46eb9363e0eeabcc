"""transformers: `generate` calls its model for each token, and is one inference. All else is torch's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.instrumentation.models.torch import calling

if TYPE_CHECKING:
    from types import ModuleType


def hook(module: ModuleType) -> None:
    """Wrap `generate` where it is defined."""
    cls = module.GenerationMixin
    cls.generate = calling(cls.generate, lambda _: True)
