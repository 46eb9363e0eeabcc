"""daphne: whatever application it is given is served inside entry spans."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.runtime.runtime import runtime

if TYPE_CHECKING:
    from types import ModuleType


def patch_server(module: ModuleType) -> None:
    """Wrap the running of a server, which knows its application by then and no lifespan."""
    original = module.Server.run

    @functools.wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        _surround(self)
        return original(self, *args, **kwargs)

    module.Server.run = run


@guarded
def _surround(server: Any) -> None:
    from stagetrace.instrumentation.asgi.application import around

    server.application = around(server.application) or server.application
    runtime.prepare_now()
