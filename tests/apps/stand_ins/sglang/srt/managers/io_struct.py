"""What a request asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class GenerateReqInput:
    """A text to generate."""

    text: Any
    stream: bool = False


@dataclass
class EmbeddingReqInput:
    """A text to embed."""

    text: Any
