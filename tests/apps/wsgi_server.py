"""Serve a WSGI application, `python wsgi_server.py SERVER MODULE:NAME`, on PORT by one of the servers that are functions."""

import importlib
import os
import sys

if __name__ == "__main__":
    server = sys.argv[1]
    if "gevent" in server:
        from gevent import monkey

        monkey.patch_all()
    module, _, name = sys.argv[2].partition(":")
    app = getattr(importlib.import_module(module), name)
    port = int(os.environ["PORT"])
    if server == "waitress":
        import waitress

        waitress.serve(app, host="127.0.0.1", port=port, threads=int(os.environ.get("THREADS", "4")))
    elif server in ("werkzeug", "werkzeug gevent"):
        from werkzeug.serving import run_simple

        run_simple("127.0.0.1", port, app, threaded=True)
    elif server == "gevent":
        from gevent.pywsgi import WSGIServer

        WSGIServer(("127.0.0.1", port), app).serve_forever()
    elif server == "cheroot":
        from cheroot.wsgi import Server

        Server(("127.0.0.1", port), app).start()
    elif server == "wsgiref":
        from wsgiref.simple_server import make_server

        make_server("127.0.0.1", port, app).serve_forever()
