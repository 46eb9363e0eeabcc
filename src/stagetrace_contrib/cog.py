"""cog: its worker process has an entry span for each prediction, from the call of `run` or `predict` on.

The HTTP server is a process of its own, not in Python: what it does before and after is not seen. The caller's trace
goes on where cog's own tracing is on, which brings its context here.
"""

from __future__ import annotations

import sys
from types import FunctionType
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.models.subclasses import for_subclasses
from stagetrace.instrumentation.served_call import ServedCall, served
from stagetrace.request.context import here
from stagetrace.request.current import recording
from stagetrace.runtime.runtime import runtime

if TYPE_CHECKING:
    from types import ModuleType

METHODS = ("run", "predict")
OWN = "cog."


def patch_predictor(module: ModuleType) -> None:
    """Wrap the methods of each class of a user, as it is made: cog's own base classes only call those."""
    for_subclasses(module.BaseRunner, _serve)


@guarded
def _serve(cls: type) -> None:
    coglet = sys.modules.get("coglet")
    if coglet is None or not coglet.server.active or cls.__module__.startswith(OWN):
        return
    for name in METHODS:
        method = vars(cls).get(name)
        if type(method) is FunctionType:
            setattr(cls, name, _served(method, f"cog/{name}"))
    if not runtime.ready:
        runtime.prepare_now()
        runtime.deliver_immediately()  # the worker's end is that of its connection: it may be killed


def _served(method: Any, name: str) -> Any:
    def begin() -> ServedCall | None:
        # cog replaces the defaults of the function that it finds, `Input(...)`, by the values that they stand for.
        method.__defaults__, method.__kwdefaults__ = made.__defaults__, made.__kwdefaults__
        return _begin(name)

    made: Any = served(method, begin)
    made.__defaults__, made.__kwdefaults__ = method.__defaults__, method.__kwdefaults__
    return made


@guarded
def _begin(method: str) -> ServedCall | None:
    if not runtime.ready or recording() is not None:
        return None
    return ServedCall(method, {"rpc.system.name": "cog", "rpc.method": method}, here.get_current())
