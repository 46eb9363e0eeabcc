"""What models that are made of torch modules have in common: their name, device, and the input of a call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def name_of(model: Any) -> str:
    """Return a model's id or the last part of its folder, as transformers keeps them; else its class."""
    name = str(getattr(model, "name_or_path", "") or "")
    if not name:
        return type(model).__name__
    return PurePath(name).name if name[0] in "/.~" else name


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the first input that has a shape; of features by name, as a tokenizer returns them, the first."""
    rows: Any = args[0] if args else next((value for value in kwargs.values() if hasattr(value, "shape")), None)
    return next(iter(rows.values()), None) if isinstance(rows, Mapping) else rows
