"""Serve a WSGI application, `python wsgi_server.py SERVER MODULE:NAME`, on PORT by one of the servers that are functions."""

import importlib
import os
import sys

if __name__ == "__main__":
    server = sys.argv[1]
    module, _, name = sys.argv[2].partition(":")
    app = getattr(importlib.import_module(module), name)
    port = int(os.environ["PORT"])
    if server == "waitress":
        import waitress

        waitress.serve(app, host="127.0.0.1", port=port, threads=int(os.environ.get("THREADS", "4")))
    elif server == "werkzeug":
        from werkzeug.serving import run_simple

        run_simple("127.0.0.1", port, app, threaded=True)
    elif server == "wsgiref":
        from wsgiref.simple_server import make_server

        make_server("127.0.0.1", port, app).serve_forever()
