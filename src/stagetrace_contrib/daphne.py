"""daphne: the server gets its application wrapped, so that each request has an entry span."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from stagetrace.guard import guarded
from stagetrace.runtime.runtime import runtime

if TYPE_CHECKING:
    from types import ModuleType


def patch_server(module: ModuleType) -> None:
    """Wrap the run of a server: it has its application by then. daphne knows no lifespan."""
    original = module.Server.run

    @functools.wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        _wrap_application(self)
        return original(self, *args, **kwargs)

    module.Server.run = run


@guarded
def _wrap_application(server: Any) -> None:
    from stagetrace.protocols.asgi import around

    server.application = around(server.application) or server.application
    runtime.prepare_now()
