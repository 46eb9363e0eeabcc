"""cheroot: its WSGI server, which is CherryPy's, too."""

from __future__ import annotations

from stagetrace.instrumentation.servers import wsgi_server

patch_wsgi = wsgi_server("Server", loop="serve", attribute="wsgi_app")
