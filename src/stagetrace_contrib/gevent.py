"""gevent: its WSGI server."""

from __future__ import annotations

from stagetrace.instrumentation.servers import wsgi_server

patch_pywsgi = wsgi_server("WSGIServer", loop="serve_forever", attribute="application")
