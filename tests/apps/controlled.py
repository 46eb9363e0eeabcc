"""The app of APP, with the part of stagetrace that BREAK names broken before the app is imported.

On the port CONTROL a server breaks another part by /break/NAME, and mends all by /mend.
"""

import importlib
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import breaking


class Control(BaseHTTPRequestHandler):
    """Break or mend, as the path says."""

    def do_GET(self) -> None:
        what, _, name = self.path.removeprefix("/").partition("/")
        if what == "break":
            breaking.make_broken(name)
        else:
            breaking.mend()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing: the log is the application's and stagetrace's."""


if os.environ.get("BREAK"):
    breaking.make_broken(os.environ["BREAK"])
app = importlib.import_module(os.environ["APP"]).app
server = HTTPServer(("127.0.0.1", int(os.environ["CONTROL"])), Control)
threading.Thread(target=server.serve_forever, daemon=True).start()
