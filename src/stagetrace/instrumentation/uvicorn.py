"""uvicorn: deliver at shutdown where the application has no lifespan to tell us of it."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType


def hook(module: ModuleType) -> None:
    """Flush after the server's own shutdown: it re-raises SIGTERM next, and `atexit` never runs."""
    server = module.Server
    original = server.shutdown

    @functools.wraps(original)
    async def shutdown(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await original(self, *args, **kwargs)
        finally:
            from stagetrace import distro

            if distro.ready():
                await distro.flush()

    server.shutdown = shutdown
