"""werkzeug: its WSGI server, which Flask's `run` starts, too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagetrace.instrumentation.wsgi_servers import patch_server

if TYPE_CHECKING:
    from types import ModuleType


def patch_serving(module: ModuleType) -> None:
    """Wrap the server."""
    patch_server(module.BaseWSGIServer, "serve_forever", "app")
