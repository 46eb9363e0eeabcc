"""Ray Serve's handles, by which the proxy and deployments call deployments: each call carries a request reference.

It is one more entry of the metadata's `__dict__`, which Ray pickles for each call. The request becomes a text there:
a replica without stagetrace ignores it, and one with it begins below the request's open stage.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.model_servers.ray_serve_metadata import REFERENCE, kernel
from stagetrace.recording.current_record import recording

if TYPE_CHECKING:
    from types import ModuleType


def patch_router(module: ModuleType) -> None:
    """Wrap the method that assigns a call to a replica; it runs in the context of the caller."""
    module.AsyncioRouter.assign_request = _assigning(module.AsyncioRouter.assign_request)


def _assigning(original: Any) -> Any:
    @functools.wraps(original)
    def assign_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        _add_reference(*args, **kwargs)
        return original(self, *args, **kwargs)

    return assign_request


@guarded
def _add_reference(request_meta: Any, *_: Any, **__: Any) -> None:
    request = recording()
    if request is not None:
        request_meta.__dict__[REFERENCE] = request, kernel(), time.time_ns()
