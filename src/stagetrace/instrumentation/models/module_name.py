"""What models that are made of torch modules have in common: their name, device, and the input of a call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any


def name_of(model: Any) -> str:
    """Return a model's id or the last part of its folder, as transformers keeps them; else its class."""
    name = str(getattr(model, "name_or_path", "") or "")
    return name_in(name) if name else type(model).__name__


def name_in(path: str) -> str:
    """Return an id as it is; of a folder the last part, or the id whose snapshot Hugging Face's cache has there."""
    if path[:1] not in ("/", ".", "~"):
        return path
    folder = PurePath(path)
    above = folder.parent
    is_snapshot = above.name == "snapshots" and above.parent.name.startswith("models--")
    return above.parent.name.removeprefix("models--").replace("--", "/") if is_snapshot else folder.name


def framework_of(model: Any) -> str:
    """Return `torch` for a module of torch, else the library of the model's class."""
    module = getattr(sys.modules.get("torch"), "nn", None)
    if module is not None and isinstance(model, module.Module):
        return "torch"
    return type(model).__module__.partition(".")[0]


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the first input that has a shape; of features by name, as a tokenizer returns them, the first."""
    rows: Any = args[0] if args else next((value for value in kwargs.values() if hasattr(value, "shape")), None)
    if isinstance(rows, Mapping):
        return next((value for value in rows.values() if hasattr(value, "shape")), None)
    return rows


def held_tensor(module: Any) -> Any:
    """Return the first parameter or buffer in a module, None if it has none: in a tenth of the time of torch's own."""
    for held in (module._parameters, module._buffers):
        for tensor in held.values() if held else ():
            if tensor is not None:
                return tensor
    for one in module._modules.values():
        tensor = None if one is None else held_tensor(one)
        if tensor is not None:
            return tensor
    return None


def device_of(one: Any) -> str | None:
    """Return where a tensor is, or the first parameter or buffer of a module, as `cpu` or `cuda:0`; None for others."""
    if hasattr(one, "_parameters"):
        one = held_tensor(one)
    device = getattr(one, "device", None)
    return None if device is None else _text(device)


_text = functools.lru_cache(64)(str)
