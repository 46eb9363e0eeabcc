"""Requests of ASGI, WSGI and gRPC, whichever server and framework: a protocol each, and what they share."""
