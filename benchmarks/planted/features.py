"""A feature store as Redis is one: one command at a time, so a slow command delays all clients. Takes its port."""

from __future__ import annotations

import socketserver
import sys
import threading
import time

COMMANDS = {b"get": 0.001, b"scan": 0.2}  # seconds
one_at_a_time = threading.Lock()


class Connection(socketserver.StreamRequestHandler):
    """Serve the commands of one client."""

    def handle(self) -> None:
        """Answer each line in its turn."""
        for line in self.rfile:
            with one_at_a_time:
                time.sleep(COMMANDS[line.strip()])
            self.wfile.write(b"ok\n")


class Server(socketserver.ThreadingTCPServer):
    """Listens again at once on a port that was in use."""

    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    with Server(("127.0.0.1", int(sys.argv[-1])), Connection) as server:
        server.serve_forever()
