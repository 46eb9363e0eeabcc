"""WSGI servers, each of which calls its application inside entry spans."""
