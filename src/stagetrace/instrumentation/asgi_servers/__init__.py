"""ASGI servers, each of which loads its application inside entry spans."""
