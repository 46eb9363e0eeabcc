"""Library calls inside a stage that are no model: a detail span a kind under that stage (`request/details.py`).

`detailed` wraps what a library calls itself; `record_detail` notes a call that has ended.
"""

from __future__ import annotations

from contextvars import ContextVar
from time import time_ns
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded, report, switch
from stagetrace.instrumentation.base import by_kind
from stagetrace.instrumentation.batching.consumer import working_for
from stagetrace.request.current import current, entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from contextvars import Token
    from types import ModuleType

    from stagetrace.guard import Switch
    from stagetrace.instrumentation.base import Patch
    from stagetrace.request.details import Kind
    from stagetrace.request.request import Request

# Span names.
TOKENIZE = "tokenize"
DETOKENIZE = "detokenize"
IMAGE_DECODE = "image.decode"
IMAGE_TRANSFORM = "image.transform"
FEATURE_FETCH = "feature.fetch"
# Of these each class of tokenizers defines what its releases have.
OF_TOKENIZERS = {
    TOKENIZE: ("__call__", "encode", "encode_batch", "encode_batch_fast", "encode_plus", "batch_encode_plus"),
    DETOKENIZE: ("decode", "decode_batch", "batch_decode"),
}

_inside: ContextVar[tuple[str, ...]] = ContextVar("stagetrace.inside_details", default=())  # names of the open ones


@guarded
def record_detail(
    request: Request, name: str, start_ns: int, end_ns: int, attributes: Mapping[str, Any] | None = None
) -> None:
    """Record a library call that has ended as a detail of the stage in which it began.

    Times in nanoseconds since the epoch. Calls without `attributes` are one span for each visit to a stage, with their
    number and their summed time; one with attributes is a span of its own.
    """
    from stagetrace.request.details import details_of

    if request.closed:
        return
    if attributes is None:
        details_of(request).add(request, (name, ""), (start_ns, end_ns, 1, end_ns - start_ns, 0))
    else:
        details_of(request).add_single(name, start_ns, end_ns, attributes)


def add_details(owner: Any, spans: Mapping[str, Iterable[str]], library: str, patch: str) -> None:
    """Make the functions of a module, or methods that a class defines itself, details: by the name of their span.

    Those that it lacks are skipped. Raises AttributeError if it has none of them.
    """
    defined = vars(owner)
    found = {name: span for span, names in spans.items() for name in names if name in defined}
    if not found:
        raise AttributeError(
            f"{owner.__name__} has none of {', '.join(name for names in spans.values() for name in names)}"
        )
    made = {name: detailed(defined[name], span, library, patch) for name, span in found.items()}
    for name, wrapped in made.items():
        setattr(owner, name, wrapped)


def details(owner: str, spans: Mapping[str, Iterable[str]], library: str, patch: str) -> Patch:
    """Return a patch that does so for a class of a module; for its functions without `owner`."""

    def patch_owner(module: ModuleType) -> None:
        add_details(getattr(module, owner) if owner else module, spans, library, patch)

    return patch_owner


def detailed(function: Any, name: str, library: str, patch: str, when: Callable[[Any], bool] | None = None) -> Any:
    """Return a function, method or coroutine function whose calls are details `name` of the stage that they are in.

    Of calls of one name within each other the outermost counts. `patch` is the module of the patch. `when` returns for
    the first argument of a function whether the call is one. Outside a recorded request a call costs one read of the
    context.
    """
    kind, here = (name, library), switch(patch)

    def call(*args: Any, **kwargs: Any) -> Any:
        if current.get() is None and not entries:
            return function(*args, **kwargs)
        begun = _begin(name, here, when, args)
        if begun is None:
            return function(*args, **kwargs)
        failed = 1
        began = time_ns()
        try:
            result = function(*args, **kwargs)
            failed = 0
            return result
        finally:
            _end(begun, kind, began, failed, here)

    async def awaited(*args: Any, **kwargs: Any) -> Any:
        begun = _begin(name, here, None, args)
        if begun is None:
            return await function(*args, **kwargs)
        failed = 1
        began = time_ns()
        try:
            result = await function(*args, **kwargs)
            failed = 0
            return result
        finally:
            _end(begun, kind, began, failed, here)

    return by_kind(function, call, awaited)


def _begin(
    name: str, patch: Switch, when: Callable[[Any], bool] | None, args: tuple[Any, ...]
) -> tuple[Request, Token[tuple[str, ...]]] | None:
    """Begin a detail; return the request, and what `_inside` was before. None if the call is none."""
    try:
        inside = _inside.get()
        if name in inside or patch.off:
            return None
        request = working_for()
        if request is None or (when is not None and not when(args[0])):
            return None
        return request, _inside.set((*inside, name))
    except Exception as error:  # noqa: BLE001 -- as `guarded`, without its price
        report(patch.name, error)
        return None


def _end(begun: tuple[Request, Token[tuple[str, ...]]], kind: Kind, began: int, failed: int, patch: Switch) -> None:
    try:
        ended = time_ns()
        request, token = begun
        try:  # noqa: SIM105 -- `suppress` takes half as long as all the rest
            _inside.reset(token)
        except ValueError:  # a coroutine was closed in another context, which has its own
            pass
        if request.closed:
            return
        details = request.details
        if details is None:
            from stagetrace.request.details import details_of

            details = details_of(request)
        took = max(ended - began, 0)  # the wall clock may step back
        details.add(request, kind, (began, began + took, 1, took, failed))
    except Exception as error:  # noqa: BLE001
        report(patch.name, error)
