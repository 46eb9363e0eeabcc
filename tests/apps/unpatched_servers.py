"""A model behind servers without a patch, each as its documentation has it: `python unpatched_servers.py SERVER`."""

import os
import sys

import numpy as np
from sklearn.linear_model import LogisticRegression

SERVER, PORT = sys.argv[1], int(os.environ.get("PORT", "8080"))
rows = np.arange(8.0).reshape(4, 2)
model = LogisticRegression().fit(rows, [0, 0, 1, 1])
model.predict(rows)  # as many do, to warm it up


def predict() -> str:
    return str(model.predict(rows).tolist())


def serve_http() -> None:
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = (predict() if self.path == "/predict" else "ok").encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()


def serve_robyn() -> None:
    from robyn import Robyn

    app = Robyn(__file__)
    app.get("/health")(lambda: "ok")
    app.get("/predict")(predict)
    app.start(port=PORT)


if __name__ == "__main__":
    {"http.server": serve_http, "robyn": serve_robyn}[SERVER]()
