"""The app named by MODULE, served by one uvicorn on the TCP port PORT and on the unix socket UNIX_SOCKET."""

import importlib
import os
import socket

import uvicorn

if __name__ == "__main__":
    tcp = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
    unix = socket.socket(socket.AF_UNIX)
    unix.bind(os.environ["UNIX_SOCKET"])
    app = importlib.import_module(os.environ["MODULE"]).app
    server = uvicorn.Server(uvicorn.Config(app, http="h11"))  # httptools refuses methods that it does not know
    server.run([tcp, unix])
