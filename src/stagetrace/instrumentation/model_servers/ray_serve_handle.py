"""Ray Serve's handles, by which the proxy and deployments call deployments: a request's name goes along with the call.

It is one more entry of the metadata's `__dict__`, which Ray pickles for each call. The request itself becomes a text
there (docs/decisions/022), so that a replica without us does not look at it, and one with us begins below its stage.
"""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.instrumentation.model_servers.ray_serve_metadata import TICKET, kernel
from stagetrace.recording.current_timeline import recording

if TYPE_CHECKING:
    from types import ModuleType


def patch_router(module: ModuleType) -> None:
    """Wrap what assigns a call to a replica, which is called by whoever makes it."""
    module.AsyncioRouter.assign_request = _assigning(module.AsyncioRouter.assign_request)


def _assigning(original: Any) -> Any:
    @functools.wraps(original)
    def assign_request(self: Any, *args: Any, **kwargs: Any) -> Any:
        _add_ticket(*args, **kwargs)
        return original(self, *args, **kwargs)

    return assign_request


@guarded
def _add_ticket(request_meta: Any, *_: Any, **__: Any) -> None:
    request = recording()
    if request is not None:
        request_meta.__dict__[TICKET] = request, kernel(), time.time_ns()
