"""Requests of WSGI applications, whichever server and framework."""
