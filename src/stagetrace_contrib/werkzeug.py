"""werkzeug: its WSGI server, which Flask's `run` starts, too."""

from __future__ import annotations

from stagetrace.instrumentation.servers import wsgi_server

patch_serving = wsgi_server("BaseWSGIServer", loop="serve_forever", attribute="app")
