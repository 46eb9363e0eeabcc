"""Requests of ASGI applications, whichever server and framework."""
