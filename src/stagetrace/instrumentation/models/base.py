"""The contract of a model library: what its file declares, from which its patches and docs/libraries.md are made."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from stagetrace.instrumentation.models.marked import training
from stagetrace.instrumentation.models.signature import recorded, with_signature
from stagetrace.instrumentation.models.subclasses import wrap_in_subclasses
from stagetrace.semconv import (
    INFERENCE,
    ML_BATCH_SIZE,
    ML_DEVICE,
    ML_FRAMEWORK,
    ML_INPUT_SIZE,
    ML_MODEL_NAME,
    ML_MODEL_VERSION,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

    from stagetrace.instrumentation.base import Patch
    from stagetrace.instrumentation.models.marked import Timer

TRAIN = "train"  # the role of what trains: the calls of models in it are no inference
MAX_DESCRIBED = 1_024
MAX_COUNTED = 1_024  # texts of a batch whose characters are counted


class Calls(NamedTuple):
    """Callables of one class, or of a module itself, that play one role."""

    owner: str
    """The class, as it is called in its module; empty for functions of the module."""
    names: tuple[str, ...]
    """Those that the owner lacks, or inherits, are skipped; one of them must be there."""
    role: str = INFERENCE
    """`INFERENCE`; `PREPARE` for work on a model's input; `TRANSFORM` for what may be either; `TRAIN`."""
    lazy: bool = False
    """Whether a call returns an iterator, with each of whose steps the work is done. Generators need not say so."""
    derived: bool = False
    """Whether the owner is a base: plain methods of these names are wrapped on all classes that derive from it."""


class Shape(NamedTuple):
    """The shape of an input, where the input itself has no attribute `shape` that is a tuple."""

    shape: tuple[Any, ...]


def _class_name(model: Any) -> str:
    return type(model).__name__


def _unknown(_model: Any) -> None:
    return None


def no_description(_model: Any, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
    """Return None: the calls have no attributes."""


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the first argument of a call, by position or by name; None if it has none."""
    return args[0] if args else next(iter(kwargs.values()), None)


def rows_of_matrix(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the shape of a first argument that counts its rows itself, as xgboost's DMatrix and catboost's Pool."""
    data = first_argument(args, kwargs)
    return Shape((data.num_row(), data.num_col())) if hasattr(data, "num_row") else data


@dataclass(frozen=True)
class Library:
    """A model library: how a call of one of its models is described.

    The readers get what the method is called on, None for a function. They run in each outermost call within a request:
    they are quick, compute nothing on the model or its input, and may raise, which counts as a fault of the patch.
    """

    where: str
    """`__name__` of the patch file."""
    framework: str
    """`ml.framework`."""
    name: Callable[[Any], str] = _class_name
    """`ml.model.name`."""
    version: Callable[[Any], str | None] = _unknown
    """`ml.model.version`."""
    device: Callable[[Any], str | None] = _unknown
    """`ml.device`, as `cpu` or `cuda:0`."""
    rows: Callable[[tuple[Any, ...], dict[str, Any]], Any] = first_argument
    """What of the arguments has the length, or the first dimension, of the batch: an array, a list, a text."""
    is_flat: bool = False
    """Whether an array of one dimension is a batch, as of texts or ids; else it is one row."""
    library: str = ""
    """Its name, where that is not `framework`: its models run by another library."""
    timer: Timer | None = None
    """What times the work of a device for a call: `begin_on_device`, where a call is work in torch's stream."""
    package: str = ""
    """Its name on PyPI, where that is neither."""
    recognised: str = ""
    """For docs/libraries.md: what is recognised besides the calls that are declared."""
    not_recognised: str = ""
    """For docs/libraries.md: what is not."""
    stand_in: str = ""
    """For docs/libraries.md: why its patch was tested with a stand-in, where it was."""
    calls: list[Calls] = field(default_factory=list)
    """All that its patches wrap."""

    def patch(self, *calls: Calls) -> Patch:
        """Return a patch that wraps these callables of a module."""
        self.calls.extend(calls)

        def patch(module: ModuleType) -> None:
            bases = [(_owner(module, one), one) for one in calls if one.derived]
            own = [one for one in calls if not one.derived]
            found = [(one, _owner(module, one), name) for one in own for name in _names(module, one)]
            made = [(owner, name, self.wrap(vars(owner)[name], one)) for one, owner, name in found]
            for owner, name, wrapped in made:
                setattr(owner, name, wrapped)
            for base, one in bases:
                wrap_in_subclasses(base, dict.fromkeys(one.names, functools.partial(self.wrap, how=one)))

        return patch

    def wrap(self, function: Callable[..., Any], how: Calls) -> Callable[..., Any]:
        """Return a callable that is recorded: the outermost call of a model in a request is its inference."""
        if how.role == TRAIN:
            return with_signature(training(function), function)
        given = {"where": self.where, "is_method": bool(how.owner), "lazy": how.lazy, "timer": self.timer}
        return recorded(function, self.describe, how.role, **given)

    def describe(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any]:
        """Return the attributes of one call, not to be changed."""
        version = None if self.version is _unknown else self.version(model)
        device = None if self.device is _unknown else self.device(model)
        rows = self.rows(args, kwargs)
        how: dict[str, Any] = {"version": version, "device": device, "is_flat": self.is_flat}
        return description(self.name(model), self.framework, rows, **how)


def _owner(module: ModuleType, calls: Calls) -> Any:
    return getattr(module, calls.owner) if calls.owner else module


def _names(module: ModuleType, calls: Calls) -> list[str]:
    """Return the names that the owner defines itself. Raises AttributeError if it defines none."""
    defined = vars(_owner(module, calls))
    names = [name for name in calls.names if name in defined]
    if not names:
        owner = f"{module.__name__}.{calls.owner}".rstrip(".")
        raise AttributeError(f"{owner} has no {' or '.join(calls.names)}")
    return names


def description(
    name: str,
    framework: str,
    rows: Any,
    *,
    version: str | None = None,
    device: str | None = None,
    is_flat: bool = False,
) -> Mapping[str, Any]:
    """Return the attributes of one call, not to be changed; `rows` is its first input, of any type.

    An array of one dimension is one row, unless `is_flat`: then each of its elements is one.
    """
    shape = getattr(rows, "shape", None)
    batch: int | None = None
    size: int | None = None
    # In onnxruntime's values `shape` is a method, and in dask's arrays it holds no numbers yet.
    if isinstance(shape, tuple) and shape:
        size = 1
        for one in shape:
            if type(one) is not int:
                size = None
                break
            size *= one
        if isinstance(shape[0], int) and (is_flat or len(shape) > 1):
            batch = shape[0]
    elif isinstance(rows, str):
        size = len(rows)
    elif isinstance(rows, list | tuple):
        batch = len(rows)
        if batch <= MAX_COUNTED and set(map(type, rows)) <= {str}:
            size = sum(map(len, rows))
    described = _description(name, framework, batch, version, device)
    return described if size is None else {**described, ML_INPUT_SIZE: size}


@functools.lru_cache(MAX_DESCRIBED)
def _description(
    name: str, framework: str, batch: int | None, version: str | None, device: str | None
) -> Mapping[str, Any]:
    attributes: dict[str, Any] = {ML_MODEL_NAME: name, ML_FRAMEWORK: framework}
    if version:
        attributes[ML_MODEL_VERSION] = version
    if batch is not None:
        attributes[ML_BATCH_SIZE] = batch
    if device:
        attributes[ML_DEVICE] = device
    return attributes
